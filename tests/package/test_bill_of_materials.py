"""The bill of materials: nothing inside is left out, and the standard's own schema takes it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

import bill_of_materials
from bill_of_materials import pinned
from edge.base.errors import EdgeError
from support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml: Python 3.11 has it")
LOCKED = (
    "numpy==1.26.4; python_version < '3.11'\n# numpy==9\nnumpy==2.4.6; python_version >= '3.11'\n"
)


def make_wheel(path: Path, metadata: str, files: dict[str, bytes]) -> Path:
    name, version = path.name.split("-")[:2]
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, content in files.items():
            wheel.writestr(inside, content)
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", text)
    return path


def own_wheel(folder: Path) -> Path:
    """The kit's wheel, with some files of the tree and all its requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"License-Expression: {project['license']}"]
    lines += [f"Requires-Dist: {line}" for line in project["dependencies"]]
    for extra, wanted in project["optional-dependencies"].items():
        lines += [f'Requires-Dist: {line}; extra == "{extra}"' for line in wanted]
    inside = ("edge/run.py", "edge/models/int8-cpu.onnx", "edge/sources/portrait.jpg")
    files = {name: (ROOT / name).read_bytes() for name in inside}
    path = folder / "classroom_node-9.9-py3-none-any.whl"
    return make_wheel(path, "\n".join(lines), files)


def validated(path: Path) -> dict[str, Any]:
    """The bill of a file; fails where CycloneDX's own schema does not take it."""
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="needs cyclonedx-python-lib[json-validation]"
    )
    from cyclonedx.schema import SchemaVersion

    assert bill_of_materials.main([str(path)]) == 0
    text = path.with_name(f"{path.name}.cdx.json").read_text()
    error = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    return dict(json.loads(text))


def by_name(components: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in components}


def licence(component: dict[str, Any]) -> str:
    (only,) = component["licenses"]
    return str(only["expression"])


def test_a_wheels_bill_names_its_files_and_what_pip_installs_next_to_it(tmp_path: Path) -> None:
    path = own_wheel(tmp_path)
    bill = validated(path)
    about = bill["metadata"]["component"]
    assert (about["name"], about["version"]) == ("classroom-node", "9.9")
    assert about["hashes"][0]["content"] == hashlib.sha256(path.read_bytes()).hexdigest()
    found = by_name(bill["components"])
    model = found["edge/models/int8-cpu.onnx"]
    assert (model["type"], licence(model)) == ("machine-learning-model", "Apache-2.0")
    content = (ROOT / "edge/models/int8-cpu.onnx").read_bytes()
    assert model["hashes"][0]["content"] == hashlib.sha256(content).hexdigest()
    assert licence(found["edge/sources/portrait.jpg"]) == "LicenseRef-US-Government-Work"
    assert "edge/run.py" not in found
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        name = line.split(">")[0]
        assert found[name]["scope"] == "required", name
        assert found[name]["version"] in (ROOT / "constraints.txt").read_text()
    assert found["torch"]["scope"] == "optional"
    # The same file, the same bytes.
    first = path.with_name(f"{path.name}.cdx.json").read_bytes()
    validated(path)
    assert path.with_name(f"{path.name}.cdx.json").read_bytes() == first


def make_package(folder: Path) -> Path:
    share = folder / "root/usr/share/edge-node"
    for name in ("wheels", "weights", "bundle"):
        (share / name).mkdir(parents=True)
    (folder / "root/DEBIAN").mkdir()
    (folder / "root/DEBIAN/control").write_text(
        "Package: edge-node\nVersion: 9.9\nArchitecture: arm64\nDepends: openssl, udev\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: tried\n"
    )
    own_wheel(share / "wheels")
    make_wheel(
        share / "wheels/numpy-1.26.4-cp311-cp311-any.whl",
        "License: BSD\nClassifier: License :: OSI Approved :: BSD License",
        {"numpy.libs/libopenblas.so": b"open", "numpy/x.so": b"x"},
    )
    make_wheel(
        share / "wheels/onnxruntime-1.32.0-cp311-cp311-any.whl",
        "License-Expression: MIT\nRequires-Dist: numpy>=1.21.6\nRequires-Dist: absent>=1",
        {},
    )
    (share / "weights/face_detection_yunet_2023mar.onnx").write_bytes(b"yunet")
    (share / "bundle/fp32.onnx").write_bytes(b"model")
    (share / "bundle/known-inputs.npy").write_bytes(b"inputs")
    (folder / "root/usr/sbin").mkdir()
    (folder / "root/usr/sbin/edge-check").write_bytes(b"check")
    path = folder / "edge-node_9.9_arm64.deb"
    subprocess.run(["dpkg-deb", "--build", folder / "root", path], check=True, capture_output=True)
    return path


@pytest.mark.process
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_packages_bill_leaves_no_file_out(tmp_path: Path) -> None:
    path = make_package(tmp_path)
    bill = validated(path)
    inside = [p for p in (tmp_path / "root").rglob("*") if p.is_file() and "DEBIAN" not in p.parts]
    known = {c["hashes"][0]["content"]: c for c in bill["components"]}
    assert set(known) == {hashlib.sha256(p.read_bytes()).hexdigest() for p in inside}
    found = by_name(bill["components"])
    assert found["numpy"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert [c["name"] for c in found["numpy"]["components"]] == ["libopenblas.so"]
    assert "edge/models/int8-cpu.onnx" in by_name(found["classroom-node"]["components"])
    share = "usr/share/edge-node"
    assert licence(found[f"{share}/weights/face_detection_yunet_2023mar.onnx"]) == "MIT"
    assert licence(found[f"{share}/bundle/known-inputs.npy"]) == "LicenseRef-US-Government-Work"
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert needs[found["onnxruntime"]["bom-ref"]] == [found["numpy"]["bom-ref"]]
    assert len(needs[path.name]) == len(inside)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_what_is_no_release_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "classroom_node-9-py3-none-any.whl"
    damaged.write_bytes(b"PK")
    other = make_wheel(tmp_path / "numpy-1-py3-none-any.whl", "License: BSD", {})
    cut = tmp_path / "edge-node_9_arm64.deb"
    cut.write_bytes(b"!<arch>\n")
    for path, code, said in (
        (damaged, 1, "cut or damaged"),
        (other, 1, "the wheel of numpy, not of classroom-node"),
        (cut, 1, "cut or damaged"),
        (tmp_path / "missing.deb", 2, "not a .deb or .whl"),
    ):
        assert bill_of_materials.main([str(path)]) == code, path
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not list(tmp_path.glob("*.cdx.json"))


def test_pins_are_read_with_their_markers() -> None:
    assert pinned("numpy", LOCKED) == [
        ("1.26.4", 'python_version < "3.11"'),
        ("2.4.6", 'python_version >= "3.11"'),
    ]
    assert pinned("absent", LOCKED) == []


def test_a_file_that_no_table_names_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "classroom_node-9-any.whl", "", {"edge/new.woff2": b"font"})
    with pytest.raises(EdgeError, match=r"no table of REUSE.toml names edge/new.woff2"):
        bill_of_materials.wheel_bill(path)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_every_file_of_the_tree_has_a_licence_and_every_licence_its_text() -> None:
    """As `reuse lint` says too: here without it, in what is or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout, whose files it lists")
    there = [n for n in done.stdout.split("\0") if n and (ROOT / n).is_file()]
    tables = {n: bill_of_materials.licence_of(n) for n in there if not n.startswith("LICENSES/")}
    assert {path.stem for path in (ROOT / "LICENSES").iterdir()} == set(tables.values())
    pictures = [n for n in tables if n.endswith((".png", ".jpg"))]
    assert len(pictures) >= 6
    assert tables["demo/pictures/portrait-1.jpg"] == "LicenseRef-US-Government-Work"

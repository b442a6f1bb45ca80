"""The package's parts, without a network and without building it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import build_package
import edge
from build_package import PYTHONS, choose, fits, named, pins, read_lock
from build_steps import Steps
from edge.base.commands import MODULES
from edge.base.errors import EdgeError, UsageError
from support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml: Python 3.11 has it")
DEBIAN = ROOT / "systemd/debian"
SCRIPTS = ("postinst", "postrm", "prerm", "command", "edge-check")
WHEELS = (ROOT / "systemd/wheels.txt").read_text()


def fields(paragraph: str) -> dict[str, str]:
    """A paragraph of control, its folded lines joined."""
    text = re.sub(r"\n[ \t]+", " ", paragraph)
    return dict(line.split(": ", 1) for line in text.strip().splitlines())


@pytest.mark.process
@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_plain_sh(name: str, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    text = (DEBIAN / name).read_text()
    assert text.startswith("#!/bin/sh\n")
    assert not re.search(r"\blocal\b|\[\[|\bfunction\b|<<<|\becho -[en]", text), (
        "dash has it otherwise"
    )
    done = subprocess.run([shell, "-n", DEBIAN / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if name not in ("command",):
        assert "\nset -e\n" in text


def test_control_says_what_the_scripts_use() -> None:
    source, package = (DEBIAN / "control").read_text().split("\n\n")
    ours = fields(package)
    assert fields(source)["Source"] == ours["Package"] == build_package.PACKAGE
    assert ours["Architecture"] == "arm64"
    for needed in ("openssl", "passwd", "python3 (>= 3.10)", "systemd (>= 249)", "udev"):
        assert needed in ours["Depends"].split(", ")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.10"
    assert (DEBIAN / "changelog").read_text().startswith(f"edge-node ({edge.__version__}) ")


@pytest.mark.parametrize("python", PYTHONS)
def test_wheels_cover_what_a_node_needs(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins(WHEELS, python)
    for line in [*project["dependencies"], *project["optional-dependencies"]["node"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), line
    # JetPack's OpenCV was built for it; CUDA's bindings are of the major version of JetPack's CUDA.
    assert pinned["numpy"].startswith("1.26.")
    assert pinned["cuda-bindings"].split(".")[0] == ("13" if python == "3.12" else "12")
    assert set(pinned) >= {"pip", "opencv-python-headless", "cuda-pathfinder", "pydantic-core"}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_has_its_one_locked_file(python: str) -> None:
    lock = read_lock()
    files = choose(pins(WHEELS, python), python, lock)
    assert all(re.fullmatch("[0-9a-f]{64}", lock[file]) for file in files)
    for file in files:
        assert "x86_64" not in file
        assert "aarch64" in file or file.endswith("-none-any.whl"), file


def test_the_lock_names_nothing_that_no_python_uses() -> None:
    used = {
        file for python in PYTHONS for file in choose(pins(WHEELS, python), python, read_lock())
    }
    assert used == set(read_lock())


def test_wheels_are_told_apart() -> None:
    assert fits("numpy-1.26.4-cp310-cp310-manylinux_2_17_aarch64.whl", "3.10")
    assert not fits("numpy-1.26.4-cp310-cp310-manylinux_2_17_aarch64.whl", "3.12")
    assert fits("protobuf-7.0-cp310-abi3-manylinux2014_aarch64.whl", "3.12")
    assert not fits("protobuf-7.0-cp312-abi3-manylinux2014_aarch64.whl", "3.11")
    assert fits("coloredlogs-15.0.1-py2.py3-none-any.whl", "3.10")
    assert named("paho_mqtt-2.2.0-py3-none-any.whl") == ("paho-mqtt", "2.2.0")
    with pytest.raises(EdgeError, match="0 files for numpy 1"):
        choose({"numpy": "1"}, "3.10", [])


@pytest.mark.parametrize("line", ["numpy>=1.26", "numpy", 'numpy==1; sys_platform == "linux"'])
def test_what_is_not_pinned_is_refused(line: str) -> None:
    with pytest.raises(EdgeError, match="not a pinned requirement"):
        pins(line, "3.10")


def test_a_name_that_is_pinned_twice_is_refused() -> None:
    with pytest.raises(EdgeError, match=r"pinned twice for Python 3\.11"):
        pins('numpy==1; python_version < "3.12"\nnumpy==2; python_version >= "3.11"', "3.11")


def test_a_wheel_of_another_hash_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = choose({"pip": pins(WHEELS, "3.10")["pip"]}, "3.10", read_lock())
    (tmp_path / name).write_bytes(b"another")
    monkeypatch.setattr(build_package, "pins", lambda *_: {"pip": named(name)[1]})
    with pytest.raises(EdgeError, match="another sha256"):
        build_package.wheelhouse(tmp_path, ["3.10"], False, Steps(1))
    assert not (tmp_path / name).exists(), "the next run fetches it anew"


@pytest.mark.process
def test_each_line_of_a_command_is_seen_and_its_fault_is_one_line() -> None:
    seen: list[str] = []
    script = "import sys; print('a'); print('b'); sys.exit(bool(sys.argv[1:]))"
    assert build_package._run([sys.executable, "-c", script], seen=seen.append) == "a\nb\n"
    assert seen == ["a\n", "b\n"]
    with pytest.raises(EdgeError, match=r"\.\.\.: b$"):
        build_package._run([sys.executable, "-c", script, "fail"])
    with pytest.raises(EdgeError, match="no-such-tool is not here"):
        build_package._run(["no-such-tool"])


def test_a_version_that_cannot_name_a_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="digits, letters"):
        build_package.run(["--version", "1:2"])


def test_a_version_without_an_entry_gets_one() -> None:
    text = (DEBIAN / "changelog").read_text()
    assert build_package.entry("0.1.0", text, 0) == text
    more = build_package.entry("9.9", text, 1795589380)
    assert more.startswith("edge-node (9.9) unstable; urgency=medium\n")
    assert more.endswith(f"  Wed, 25 Nov 2026 06:49:40 +0000\n\n{text}")


def installed() -> dict[str, str]:
    """Where a file of systemd/ goes, from the lists that debhelper reads."""
    found = {}
    for line in (DEBIAN / "edge-node.install").read_text().splitlines():
        source, folder = line.split()
        assert source not in found
        found[source] = f"{folder}/{Path(source).name}"
    rules = (DEBIAN / "rules").read_text().replace("\\\n", " ")
    for source, target in re.findall(r"install -D -m 644 (\S+)\s+\$\(NODE\)/(\S+)", rules):
        assert source not in found
        found[source] = target
    return found


def test_every_file_of_the_folder_is_installed_once() -> None:
    """What is not part of a node is named here."""
    files = {f"systemd/{path.name}" for path in (ROOT / "systemd").iterdir() if path.is_file()}
    files -= {
        f"systemd/{name}"
        for name in ("README.md", "bill_of_materials.py", "build_package.py", "node.yaml")
    }
    files -= {"systemd/build_steps.py", "systemd/wheels.txt", "systemd/wheels.sha256"}
    places = installed()
    assert {source for source in places if source.count("/") == 1} - {"share/*"} == files
    assert len(set(places.values())) == len(places)
    for source in places:
        assert source == "share/*" or (ROOT / source).is_file(), source


def test_files_go_where_their_first_lines_say() -> None:
    for source, target in installed().items():
        if source != "share/*" and "Install as" in (text := (ROOT / source).read_text()):
            said = re.search(r"Install as (/[^\s;:,]+)", text)
            assert said is not None
            assert said[1].removesuffix(".") == "/" + re.sub(r"^lib/", "usr/lib/", target)


def test_the_first_settings_name_their_schema_where_it_is_installed() -> None:
    text = build_package.where_installed((ROOT / "systemd/node.yaml").read_text())
    first = text.splitlines()[0]
    assert first == "# yaml-language-server: $schema=/usr/share/edge-node/node.yaml.json"


def test_commands_of_the_package_are_commands_of_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    links = re.findall(r"usr/bin/(\S+)", (DEBIAN / "edge-node.links").read_text())
    assert links == ["edge-bench", "edge-run", "edge-update"]
    assert set(links) <= set(project["scripts"])


@pytest.mark.process
def test_every_command_of_the_package_starts_from_its_own_files(tmp_path: Path) -> None:
    """Without distill and the rest of export: what is installed, and what postinst tries."""
    for name in build_package.tracked():
        build_package.copy(ROOT / name, tmp_path / name)
    assert not (tmp_path / "distill").exists()
    text = build_package.node_commands((ROOT / "pyproject.toml").read_text(), tmp_path)
    scripts = tomllib.loads(text)["project"]["scripts"]
    needed = {"edge-run", "edge-bench", "edge-provision", "edge-update", "export-engine"}
    assert needed <= set(scripts)
    assert not any(name.startswith("distill") or name == "edge-crops" for name in scripts)
    modules = ", ".join(MODULES[name] for name in scripts)
    tried = re.search(r"-c '(import edge[^']+)'", (DEBIAN / "postinst").read_text())
    assert tried is not None
    code = f"import sys; sys.modules['distill'] = None\nimport {modules}\n{tried[1]}"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(edge.__file__)"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "edge/__init__.py")


@pytest.mark.process
def test_the_first_settings_name_the_packages_folders(tmp_path: Path) -> None:
    """postinst's own sed, run on the shipped example."""
    script = re.search(
        r"sed (-e .*?)\"\$SHARE/node\.yaml\"", (DEBIAN / "postinst").read_text(), re.S
    )
    assert script is not None
    words = f"sed {script[1]} {ROOT / 'systemd/node.yaml'}"
    env = {**os.environ, "SHARE": "/usr/share/edge-node", "UPDATES": "/var/lib/edge-update"}
    done = subprocess.run(["sh", "-ec", words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "node.yaml"
    path.write_text(done.stdout)
    from edge.base.strict_yaml import read_yaml, validate
    from edge.settings import Settings

    settings = validate(Settings, read_yaml(path), "node.yaml")
    assert settings.detector.weights == Path("/usr/share/edge-node/weights")
    assert settings.runtime.bundle == Path("/var/lib/edge-update/bundle")


NVIDIA = {
    "nvidia-l4t-core": ("36.4.0", "36.4.7"),
    "cuda-cudart-12-6": ("12.6.68", "12.9.79"),
    "libnvinfer10": ("10.3.0", "10.13.3"),
    "python3-libnvinfer": ("10.3.0", "10.13.3"),
    "openssh-server": ("1", "2"),
    "libnvinfer-bin": (None, "10.13.3"),
}


def apt_root(folder: Path) -> list[str]:
    """apt's options for a system in `folder`, with a repository that has newer versions of all."""
    status, packages = "", ""
    for name, (here, there) in NVIDIA.items():
        text = f"Package: {name}\nArchitecture: arm64\nMaintainer: x\nDescription: x\n"
        digest = hashlib.sha256(name.encode()).hexdigest()
        packages += f"{text}Version: {there}\nFilename: ./x.deb\nSize: 1\nSHA256: {digest}\n\n"
        if here:
            status += f"{text}Version: {here}\nStatus: install ok installed\n\n"
    for name in ("repo", "etc/preferences.d", "lib", "lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "repo/Packages").write_text(packages)
    (folder / "lib/status").write_text(status)
    (folder / "etc/sources.list").write_text(f"deb [trusted=yes] file:{folder}/repo ./\n")
    options = {"Dir": folder, "Dir::Etc": folder / "etc", "Dir::State": folder / "lib",
               "Dir::State::Lists": folder / "lists", "Dir::State::status": folder / "lib/status",
               "Dir::Cache": folder / "cache", "APT::Architecture": "arm64",
               "APT::Architectures": "arm64", "Acquire::Languages": "none"}  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return [*words, "-o", f"APT::Sandbox::User={'root' if os.getuid() == 0 else ''}"]


@pytest.mark.process
def test_a_plain_upgrade_leaves_nvidias_packages_alone(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    options = apt_root(tmp_path)

    def apt(*words: str) -> set[str]:
        done = subprocess.run(["apt-get", *options, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"^Inst (\S+)", done.stdout, re.M))

    apt("update")
    assert apt("--simulate", "upgrade") == set(NVIDIA) - {"libnvinfer-bin"}, "unpinned, all go"
    shutil.copy(DEBIAN / "apt-preferences", tmp_path / "etc/preferences.d/edge-node")
    assert apt("--simulate", "upgrade") == {"openssh-server"}
    assert apt("--simulate", "dist-upgrade") == {"openssh-server"}
    assert apt("--simulate", "install", "libnvinfer-bin") == {"libnvinfer-bin"}

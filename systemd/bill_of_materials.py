"""`make sbom`: what a release's files are made of, as CycloneDX 1.6 in JSON beside each.

It reads the finished wheel or Debian package, not the lists that they were built from. A component is
what lies inside (a wheel with the shared libraries that it brings, a model, a file), each with its
sha256; for the kit's own wheel also what pip installs next to it, in the version that constraints.txt
pins. The same file gives the same bytes. Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import email
import email.message
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edge
from edge.base import cli
from edge.base.errors import EdgeError, UsageError
from edge.base.files import sha256, sha256_of, write_atomically
from edge.inference.weights import locked

ROOT = Path(__file__).resolve().parents[1]
OURS = "classroom-node"
AUTHORS = [{"name": "The authors of the classroom node kit"}]
PART = f"{OURS}:part"  # a property: "inside" the file, or "installed" by pip next to it
PACKAGE_FOLDER = "usr/share/edge-node/"
MODEL_SUFFIX = ".onnx"
# Shared libraries that auditwheel put beside a wheel's modules.
BROUGHT = re.compile(r"[^/]+\.libs/[^/]+")

Component = dict[str, Any]


@dataclass(slots=True)
class Parts:
    """What was found. needs: by a component's bom-ref, the names of the projects that it requires."""

    components: list[Component] = field(default_factory=list)
    needs: dict[str, list[str]] = field(default_factory=dict)
    newest: float = 0.0  # of the members' times, UTC seconds


def licence_of(path: str) -> str:
    """Return a file's licence, as the last table of REUSE.toml that names it says.

    Raises UsageError below Python 3.11, EdgeError where no table does."""
    try:
        toml = importlib.import_module("tomllib")
    except ImportError as error:
        raise UsageError("make sbom reads REUSE.toml: give it Python 3.11 or later") from error
    tables = toml.loads((ROOT / "REUSE.toml").read_text(encoding="utf-8"))["annotations"]
    for table in reversed(tables):
        globs = [table["path"]] if isinstance(table["path"], str) else table["path"]
        if any(re.fullmatch(_expression(glob), path) for glob in globs):
            return str(table["SPDX-License-Identifier"])
    raise EdgeError(f"no table of REUSE.toml names {path}; add one with its licence")


def _expression(glob: str) -> str:
    """A path of REUSE.toml as a regular expression: `**` is anything, `*` anything but a slash."""
    parts = re.split(r"(\*\*|\*)", glob)
    return "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)


def _licences(metadata: email.message.Message) -> list[dict[str, Any]]:
    """A project's licence in its own words: an SPDX expression, else classifiers, else a line."""
    if expression := metadata["License-Expression"]:
        return [{"expression": expression}]
    classifiers = [c.split(" :: ") for c in metadata.get_all("Classifier", [])]
    names = [c[-1] for c in classifiers if c[0] == "License" and c[-1] != "OSI Approved"]
    if not names and (line := (metadata["License"] or "").strip().split("\n")[0]):
        names = [line[:100]]
    return [{"license": {"name": name}} for name in sorted(set(names))]


def _component(kind: str, name: str, digest: str, licence: str) -> Component:
    return {
        "type": kind,
        "bom-ref": f"{name}@{digest[:12]}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"expression": licence}],
        "properties": [{"name": PART, "value": "inside"}],
    }


def _kind(name: str) -> str:
    return "machine-learning-model" if name.endswith(MODEL_SUFFIX) else "file"


def _metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    found = [n for n in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
    if len(found) != 1:
        raise EdgeError(f"{wheel.filename} is not a wheel; build it again")
    return email.message_from_bytes(wheel.read(found[0]))


def _own_files(wheel: zipfile.ZipFile, inside: str) -> list[Component]:
    """The models, pictures and data of the kit's own wheel: what is not its code. inside: the wheel's
    name, which makes their bom-refs unique."""
    found = []
    for name in sorted(wheel.namelist()):
        if name.endswith((".py", "/")) or ".dist-info/" in name:
            continue
        licence = licence_of(name)
        made = _component(_kind(name), name, sha256(wheel.read(name)), licence)
        found.append({**made, "bom-ref": f"{inside}/{made['bom-ref']}"})
    return found


def _brought(wheel: zipfile.ZipFile, inside: str) -> list[Component]:
    """Shared libraries that another's wheel brings; their licences are in its own licence files."""
    found = []
    for name in sorted(filter(BROUGHT.fullmatch, wheel.namelist())):
        made = _component("library", PurePosixPath(name).name, sha256(wheel.read(name)), "")
        del made["licenses"]
        found.append({**made, "bom-ref": f"{inside}/{made['bom-ref']}"})
    return found


def add_wheel(parts: Parts, name: str, content: bytes) -> email.message.Message:
    """Add a wheel with what lies in it; return its METADATA. name: of its file."""
    try:
        wheel = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise EdgeError(f"{name} is cut or damaged ({error}); build it again") from error
    with wheel:
        metadata = _metadata(wheel)
        project, version = canonicalize_name(metadata["Name"]), metadata["Version"]
        made: Component = {
            "type": "library",
            "bom-ref": name,
            "name": project,
            "version": version,
            "purl": f"pkg:pypi/{project}@{version}?file_name={name}",
            "hashes": [{"alg": "SHA-256", "content": sha256(content)}],
            "properties": [{"name": PART, "value": "inside"}],
        }
        if licences := _licences(metadata):
            made["licenses"] = licences
        own = project == OURS
        if inner := (_own_files if own else _brought)(wheel, name):
            made["components"] = inner
    parts.components.append(made)
    required = map(Requirement, metadata.get_all("Requires-Dist", []))
    parts.needs[name] = [
        canonicalize_name(r.name) for r in required if "extra" not in str(r.marker)
    ]
    return metadata


def _members(package: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the files of a Debian package. Raises EdgeError where it cannot be read."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    try:
        stream = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise EdgeError("dpkg-deb is not here; apt-get install dpkg") from error
    with stream:
        assert stream.stdout is not None
        try:
            with tarfile.open(fileobj=stream.stdout, mode="r|") as members:
                for member in members:
                    if member.isfile() and (file := members.extractfile(member)):
                        yield member, file.read()
        except tarfile.TarError as error:
            raise EdgeError(f"{package} is cut or damaged ({error}); build it again") from error
    if stream.returncode:
        raise EdgeError(f"{package} is cut or damaged; build it again")


def _package_licence(name: str) -> str:
    """Of a file that is not a wheel, by its path in the package."""
    at = PurePosixPath(name)
    if name.startswith(f"{PACKAGE_FOLDER}weights/"):
        return next(str(e["licence"]) for e in locked().values() if e["file"] == at.name)
    if name.startswith(f"{PACKAGE_FOLDER}bundle/"):
        return licence_of(f"edge/models/{at.name}")
    return "Apache-2.0"


def package_bill(path: Path) -> dict[str, Any]:
    """Return the bill of a Debian package. Raises EdgeError where it cannot be read."""
    parts = Parts()
    for member, content in _members(path):
        name = member.name.removeprefix("./")
        parts.newest = max(parts.newest, member.mtime)
        if name.startswith(f"{PACKAGE_FOLDER}wheels/"):
            add_wheel(parts, PurePosixPath(name).name, content)
        else:
            licence = _package_licence(name)
            parts.components.append(_component(_kind(name), name, sha256(content), licence))
    asked = ["dpkg-deb", "--field", str(path), "Package", "Version", "Architecture", "Depends"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", said, re.MULTILINE))
    about = {
        "name": fields["Package"],
        "version": fields["Version"],
        "purl": f"pkg:generic/{fields['Package']}@{fields['Version']}?arch={fields['Architecture']}",
        "properties": [{"name": f"{OURS}:debian-depends", "value": fields.get("Depends", "")}],
    }
    return _bill(path, about, parts)


def pinned(project: str, constraints: str) -> list[tuple[str, str]]:
    """Return the versions that constraints.txt pins of a project, each with its marker or ""."""
    found = []
    for line in constraints.splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if canonicalize_name(pin.name) == project:
                (only,) = pin.specifier
                found.append((only.version, str(pin.marker or "")))
    return found


def _installed(requirement: Requirement, constraints: str) -> list[Component]:
    """What pip installs for a line of the wheel's requirements, a component a pin."""
    project, marker = canonicalize_name(requirement.name), str(requirement.marker or "")
    found = []
    for version, only in pinned(project, constraints) or [("", "")]:
        said = {PART: "installed", f"{OURS}:requirement": str(requirement), f"{OURS}:where": only}
        made: Component = {
            "type": "library",
            "bom-ref": f"pypi:{requirement}@{version or 'any'}{only}",
            "name": project,
            "scope": "optional" if "extra" in marker else "required",
            "purl": f"pkg:pypi/{project}" + (f"@{version}" if version else ""),
            "properties": [{"name": k, "value": v} for k, v in said.items() if v],
        }
        found.append({**made, "version": version} if version else made)
    return found


def wheel_bill(path: Path) -> dict[str, Any]:
    """Return the bill of the kit's own wheel. Raises EdgeError where it is another, or damaged."""
    parts, content = Parts(), path.read_bytes()
    metadata = add_wheel(parts, path.name, content)
    if canonicalize_name(metadata["Name"]) != OURS:
        raise EdgeError(f"{path} is the wheel of {metadata['Name']}, not of {OURS}")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        times = [datetime(*i.date_time, tzinfo=timezone.utc) for i in wheel.infolist()]
    parts.newest = max(times).timestamp()
    (itself,) = parts.components
    parts.components = itself.pop("components")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for line in sorted(metadata.get_all("Requires-Dist", [])):
        if canonicalize_name((wanted := Requirement(line)).name) != OURS:
            parts.components += _installed(wanted, constraints)
    parts.needs.clear()
    about = {key: itself[key] for key in ("name", "version", "purl", "licenses")}
    return _bill(path, about, parts)


def _bill(path: Path, about: Component, parts: Parts) -> dict[str, Any]:
    """Put the whole together. about: of the file itself."""
    digest, refs = sha256_of(path), [c["bom-ref"] for c in parts.components]
    by_name: dict[str, list[str]] = {}
    for component in parts.components:
        by_name.setdefault(component["name"], []).append(component["bom-ref"])
    graph = [{"ref": path.name, "dependsOn": refs}]
    for ref, names in sorted(parts.needs.items()):
        wanted = sorted({other for name in names for other in by_name.get(name, [])})
        graph.append({"ref": ref, "dependsOn": wanted})
    whole: Component = {
        "type": "application",
        "bom-ref": path.name,
        "authors": AUTHORS,
        "licenses": [{"expression": "Apache-2.0"}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
        **about,
    }
    tool = {
        "type": "application",
        "name": "systemd/bill_of_materials.py",
        "version": edge.__version__,
    }
    made_at = datetime.fromtimestamp(parts.newest, timezone.utc)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{digest}')}",
        "version": 1,
        "metadata": {
            "timestamp": made_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "authors": AUTHORS,
            "tools": {"components": [tool]},
            "component": whole,
        },
        "components": parts.components,
        "dependencies": graph,
    }


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "bill_of_materials",
        "Write what a wheel or Debian package of the kit is made of beside it, as CycloneDX 1.6:\n"
        "every wheel, shared library, model and file inside, with hash and licence.",
        "bill_of_materials dist/edge-node_0.1.0_arm64.deb",
        version=False,
    )
    p.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".deb or .whl")
    for path in p.parse_args(argv).files:
        if not path.is_file() or path.suffix not in (".deb", ".whl"):
            raise UsageError(f"{path} is not a .deb or .whl; `make sbom` builds both")
        bill = package_bill(path) if path.suffix == ".deb" else wheel_bill(path)
        out = path.with_name(f"{path.name}.cdx.json")
        write_atomically(out, (json.dumps(bill, indent=1) + "\n").encode())
        print(f"{out}: {len(bill['components'])} components")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("bill_of_materials", run, argv)


if __name__ == "__main__":
    sys.exit(main())

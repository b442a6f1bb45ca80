"""The node's Debian package, as `edge-flash` reads it: its fields, and the two files that an image
needs before the package is installed.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import EdgeError
from edge.flash.ext4 import run_tool, tool_path

BOOTSTRAP = "/usr/lib/edge-node/bootstrap"
PROVISION = "/usr/lib/systemd/system/edge-provision.service"


@dataclass(frozen=True, slots=True)
class Package:
    """What an image needs of a package.

    depends: its field `Depends`; pythons: versions that it has wheels for; bootstrap and provision:
    the content of these two files.
    """

    path: Path
    version: str
    depends: str
    pythons: tuple[str, ...]
    bootstrap: bytes
    provision: bytes


def open_package(path: Path) -> Package:
    """Read a package; raises EdgeError where it is not a node's."""
    if not path.is_file():
        raise EdgeError(f"{path} is not a file; build the package with `make deb`")
    reader = tool_path("dpkg-deb")
    done = run_tool("dpkg-deb", "--field", str(path))
    fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", done.stdout, re.MULTILINE))
    if fields.get("Package") != "edge-node" or fields.get("Architecture") != "arm64":
        raise EdgeError(f"{path} is not an edge-node package for arm64; build it with `make deb`")
    wanted: dict[str, bytes] = {}
    pythons = []
    with subprocess.Popen([reader, "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as stream:
        assert stream.stdout is not None
        try:
            with tarfile.open(fileobj=stream.stdout, mode="r|") as members:
                for member in members:
                    name = member.name.removeprefix(".")
                    if found := re.search(r"/requirements-(\d+\.\d+)\.txt$", name):
                        pythons.append(found[1])
                    if name in (BOOTSTRAP, PROVISION):
                        content = members.extractfile(member)
                        wanted[name] = content.read() if content else b""
        except tarfile.TarError as error:
            raise EdgeError(f"{path} is cut or damaged ({error}); copy it again whole") from error
    if len(wanted) != 2 or not pythons:
        raise EdgeError(f"{path} lacks {BOOTSTRAP}, its unit or its wheels; build it again")
    pythons.sort(key=lambda version: int(version.split(".")[1]))
    return Package(
        path,
        fields.get("Version", ""),
        fields.get("Depends", ""),
        tuple(pythons),
        wanted[BOOTSTRAP],
        wanted[PROVISION],
    )

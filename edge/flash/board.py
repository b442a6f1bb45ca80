"""Which board a root file system is for, by its files alone, and whether a node can run there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edge.base.errors import EdgeError
from edge.base.jetson import parse_l4t
from edge.flash.tree import Tree

OLDEST_L4T = 36  # JetPack 6: Python 3.10, systemd 249
TENSORRT = re.compile(r"python3-libnvinfer(-lean)?")
SETTINGS = "/etc/edge-node/node.yaml"


@dataclass(frozen=True, slots=True)
class Board:
    """What a root file system says of itself.

    architecture: Debian's name; l4t: such as "36.4.3", "" where it is not a Jetson's; packages:
    versions of what is installed, by name.
    """

    architecture: str
    l4t: str
    packages: Mapping[str, str]

    @property
    def tensorrt(self) -> str:
        """Return the version of TensorRT for Python, "" without."""
        return next((v for name, v in self.packages.items() if TENSORRT.fullmatch(name)), "")

    @property
    def python(self) -> str:
        """Return Python's version, such as "3.10", "" without."""
        version = re.match(r"(\d+\.\d+)", self.packages.get("python3", ""))
        return version[1] if version else ""


def installed(status: str) -> dict[str, tuple[str, str]]:
    """Parse dpkg's status file: version and architecture by name, of what is fully installed."""
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = (fields.get("Version", ""), fields.get("Architecture", ""))
    return found


def inspect(tree: Tree) -> Board:
    """Read the board off the files; raises EdgeError where they are not Debian's or Ubuntu's."""
    status = tree.read("/var/lib/dpkg/status")
    found = installed((status or b"").decode(errors="replace"))
    if "dpkg" not in found:
        raise EdgeError(
            f"{tree.name} holds no Debian or Ubuntu (no packages in /var/lib/dpkg/status); give a "
            f"JetPack SD card image"
        )
    release = (tree.read("/etc/nv_tegra_release") or b"").decode(errors="replace")
    versions = {name: version for name, (version, _) in found.items()}
    return Board(found["dpkg"][1], parse_l4t(release).removeprefix("R"), versions)


def missing(depends: str, board: Board) -> list[str]:
    """Return what the board lacks of a package's `Depends`; versions are left to dpkg."""
    lacking = []
    for wanted in filter(None, (part.strip() for part in depends.split(","))):
        names = [re.split(r"[ (:]", choice.strip())[0] for choice in wanted.split("|")]
        if not any(name in board.packages for name in names):
            lacking.append(" or ".join(names))
    return lacking


def check_board(
    tree: Tree, board: Board, cpu: bool, nvidia: bool, pythons: list[str], depends: str
) -> None:
    """Raise EdgeError where a node cannot run there.

    cpu: without TensorRT, on any arm64 board; nvidia: NVIDIA's packages go in too; pythons: versions
    that the node's package has wheels for; depends: its field `Depends`.
    """
    if tree.kind(SETTINGS) is not None:
        raise EdgeError(
            f"{tree.name} is flashed already (it has {SETTINGS}); start from NVIDIA's image"
        )
    if board.architecture != "arm64":
        raise EdgeError(
            f"{tree.name} is for {board.architecture}, not arm64; give a Jetson's image"
        )
    if not cpu:
        if not board.l4t:
            raise EdgeError(
                f"{tree.name} is not a Jetson's (no /etc/nv_tegra_release); give a JetPack image, or "
                f"--cpu for another arm64 board, without TensorRT"
            )
        if int(board.l4t.split(".")[0]) < OLDEST_L4T:
            raise EdgeError(
                f"{tree.name} is L4T {board.l4t}, for older boards; a node wants JetPack 6 (L4T "
                f"{OLDEST_L4T}) or later"
            )
        if not board.tensorrt and not nvidia:
            raise EdgeError(
                f"{tree.name} holds no TensorRT for Python; give NVIDIA's packages (python3-libnvinfer "
                f"and what it needs) with --nvidia DIR, or --cpu to run without"
            )
    if board.python not in pythons:
        raise EdgeError(
            f"{tree.name} has Python {board.python or '-'}; the package has wheels for "
            f"{', '.join(pythons)}: build it with --python {board.python or '3.x'}"
        )
    if lacking := missing(depends, board):
        raise EdgeError(
            f"{tree.name} lacks {', '.join(lacking)}, which the node's package needs; install them "
            f"into the base image first"
        )

"""The card's SSH takes keys alone, whatever the base image's own settings say.

sshd takes the first value that it meets of each keyword, and a `Match` block's before those outside
(sshd_config(5); tried with OpenSSH 9.2). So one file with both comes before everything else: it is
included by the first line of sshd_config, and has a name that the usual `Include sshd_config.d/*.conf`
meets early, should an update of openssh bring its own sshd_config back. A `Match` in an included file
ends with that file.
"""

from __future__ import annotations

import re

from edge.flash.board import Board
from edge.flash.tree import Entry, File, Tree

CONFIG = "/etc/ssh/sshd_config"
RULES = "/etc/ssh/sshd_config.d/00-edge-node.conf"
FIRST_LINE = f"Include {RULES}"
KEYWORDS = (
    "PubkeyAuthentication yes",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "PermitEmptyPasswords no",
    "PermitRootLogin no",
)
OTHER_SERVERS = ("dropbear", "dropbear-bin", "tinysshd")
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system")
UNIT = re.compile(r"sshd?(@.*)?\.service")
DEFAULTS = "/etc/default/ssh"  # Debian's unit reads it
OPTIONS = re.compile(r"(?:^|[\s\"'=])-[A-Za-z0-9]*[of]")  # -o KEYWORD=VALUE, -f FILE


def rules() -> bytes:
    """Return the file that decides who may log in and how."""
    block = "\n".join(KEYWORDS)
    return (
        f"# Written by edge-flash: a key, never a password. Also in a block, where no other Match can "
        f"win.\n{block}\nMatch all\n{block}\n"
    ).encode()


def entries(tree: Tree) -> list[Entry]:
    """Return the files that let nobody in by a password."""
    found: list[Entry] = [File(RULES, rules())]
    config = tree.read(CONFIG)
    if config is not None:
        found.append(File(CONFIG, f"{FIRST_LINE}\n".encode() + config))
    return found


def doubts(tree: Tree, board: Board) -> list[str]:
    """Return why a password might be taken all the same, a line each; empty where it cannot be."""
    found = []
    if "openssh-server" in board.packages and tree.kind(CONFIG) != "file":
        found.append(f"{CONFIG} is not a file that edge-flash could change")
    found += [
        f"{package} is installed, which reads other settings"
        for package in OTHER_SERVERS
        if package in board.packages
    ]
    return [*found, *(f"{path} gives sshd options" for path in _started_with_options(tree))]


def _started_with_options(tree: Tree) -> list[str]:
    """List the files that start sshd with settings of their own, which come before any file's."""
    units = []
    for folder in UNIT_FOLDERS:
        for name in tree.names(folder):
            if UNIT.fullmatch(name):
                units.append(f"{folder}/{name}")
            elif UNIT.fullmatch(name.removesuffix(".d")):
                units += [f"{folder}/{name}/{part}" for part in tree.names(f"{folder}/{name}")]
    found = [DEFAULTS] if _gives_options(tree, DEFAULTS, "SSHD_OPTS") else []
    for unit in units:
        if _gives_options(tree, unit, "ExecStart|Environment"):
            found.append(unit)
        others = set(_values(tree, unit, "EnvironmentFile")) - {DEFAULTS, f"-{DEFAULTS}"}
        found += [f"{unit} ({other})" for other in sorted(others)]
    return found


def _gives_options(tree: Tree, path: str, key: str) -> bool:
    return any(OPTIONS.search(value) for value in _values(tree, path, key))


def _values(tree: Tree, path: str, key: str) -> list[str]:
    """Return what a file of `KEY=VALUE` lines sets. key: a regular expression."""
    text = (tree.read(path) or b"").decode(errors="replace").replace("\\\n", " ")
    return [
        str(v).strip() for v in re.findall(rf"(?m)^[ \t]*(?:export[ \t]+)?(?:{key})=(.*)$", text)
    ]

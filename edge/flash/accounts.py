"""One user with an SSH key and no password, written into a root file system's own account files."""

from __future__ import annotations

import re

from edge.base.errors import EdgeError, UsageError
from edge.flash.tree import Entry, File, Folder, Tree

FIRST_UID = 1000
# As far as the base has them: administration, logs, camera, GPU, serial ports.
GROUPS = ("sudo", "adm", "video", "render", "dialout")
KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( .*)?")
# The day (since 1970) on which the absent password was last changed; 0 would ask for a new one.
PASSWORD_CHANGED_DAY = 20000


def public_keys(text: str, where: str) -> str:
    """Return the keys of a .pub file, a line each; raises UsageError for anything else.

    where: names the file in messages.
    """
    if "PRIVATE KEY" in text:
        raise UsageError(f"{where} holds a private key; give the file that ends in .pub")
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    if not lines or not all(KEY.fullmatch(line) for line in lines):
        raise UsageError(f"{where} holds no SSH public key; make one with ssh-keygen -t ed25519")
    return "\n".join(lines) + "\n"


def _lines(tree: Tree, path: str) -> list[list[str]]:
    content = tree.read(path)
    if content is None:
        raise EdgeError(f"{tree.name} has no {path}; give a whole root file system")
    text = content.decode(errors="surrogateescape")
    return [line.split(":") for line in text.splitlines() if line]


def _text(rows: list[list[str]]) -> bytes:
    text = "\n".join(":".join(row) for row in rows) + "\n"
    return text.encode(errors="surrogateescape")


def add_user(tree: Tree, name: str, keys: str) -> list[Entry]:
    """Return the entries that make a user who may use sudo. keys: as `public_keys` returns them.

    Raises EdgeError where the root file system has no accounts, UsageError for a name that cannot be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise UsageError(f"--user must be a-z, 0-9 and '-', not '{name}'")
    users, shadow = _lines(tree, "/etc/passwd"), _lines(tree, "/etc/shadow")
    groups = _lines(tree, "/etc/group")
    if any(row[0] == name for row in [*users, *groups]):
        raise UsageError(f"{tree.name} has a user or group {name} already; give another --user")
    # A line such as "+::::::" has no number.
    taken = {int(row[2]) for row in [*users, *groups] if len(row) > 2 and row[2].isdigit()}
    number = next(n for n in range(FIRST_UID, 60000) if n not in taken)
    home = f"/home/{name}"
    shell = "/bin/bash" if tree.kind("/usr/bin/bash") or tree.kind("/bin/bash") else "/bin/sh"
    users.append([name, "x", str(number), str(number), "Technician", home, shell])
    # "*": no password ever fits. "!" would be a locked account, which sshd refuses without PAM.
    shadow.append([name, "*", str(PASSWORD_CHANGED_DAY), "0", "99999", "7", "", "", ""])
    for row in groups:
        if row[0] in GROUPS and len(row) == 4:
            row[3] = ",".join(filter(None, [row[3], name]))
    groups.append([name, "x", str(number), ""])
    shadow_gid = next((int(row[2]) for row in groups if row[0] == "shadow"), 0)
    entries: list[Entry] = [
        File("/etc/passwd", _text(users)),
        File("/etc/shadow", _text(shadow), 0o640, gid=shadow_gid),
        File("/etc/group", _text(groups)),
        Folder(home, 0o750, number, number),
        Folder(f"{home}/.ssh", 0o700, number, number),
        File(f"{home}/.ssh/authorized_keys", keys.encode(), 0o600, number, number),
    ]
    if tree.kind("/etc/gshadow") == "file":
        hidden = _lines(tree, "/etc/gshadow")
        for row in hidden:
            if row[0] in GROUPS and len(row) == 4:
                row[3] = ",".join(filter(None, [row[3], name]))
        hidden.append([name, "!", "", ""])
        entries.append(File("/etc/gshadow", _text(hidden), 0o640, gid=shadow_gid))
    if tree.kind("/etc/sudoers.d") == "folder":
        rule = f"# There is no password that sudo could ask for.\n{name} ALL=(ALL) NOPASSWD: ALL\n"
        entries.append(File("/etc/sudoers.d/edge-node", rule.encode(), 0o440))
    return entries

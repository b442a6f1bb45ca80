"""What sshd would take, by its configuration: a model of sshd_config(5), for images that nobody runs.

The first value of a keyword counts, and one in a `Match` block that applies before one outside; a
`Match` in an included file ends with that file, and one around an `Include` holds within it. Its
answers were compared with those of `sshd -T` (OpenSSH 9.2), on the bases of test_ssh.py and 60 random
ones.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

CONFIG = "/etc/ssh/sshd_config"
ALIASES = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
}
# sshd's own, where nothing is said.
DEFAULTS = {
    "passwordauthentication": "yes",
    "kbdinteractiveauthentication": "yes",
    "pubkeyauthentication": "yes",
    "permitemptypasswords": "no",
    "permitrootlogin": "prohibit-password",
}


def _lines(root: Path, path: Path, match: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the condition ("" outside of all), keyword and value of each line, included files' too."""
    for line in path.read_text().splitlines():
        words = shlex.split(line.replace("=", " ", 1), comments=True)
        if not words:
            continue
        keyword = words[0].lower()
        if keyword == "match":
            match = " ".join(words[1:])
        elif keyword == "include":
            for pattern in words[1:]:
                whole = pattern if pattern.startswith("/") else f"/etc/ssh/{pattern}"
                for file in sorted(root.glob(whole.lstrip("/"))):
                    yield from _lines(root, file, match)
        else:
            yield match, ALIASES.get(keyword, keyword), " ".join(words[1:]).lower()


def blocks(root: Path) -> set[str]:
    """Return the conditions of the configuration's `Match` blocks."""
    return {match for match, _, _ in _lines(root, root / CONFIG.lstrip("/")) if match}


def effective(root: Path, applies: Collection[str]) -> dict[str, str]:
    """Return the values for a connection to which these conditions apply, and `Match all`."""
    outside: dict[str, str] = {}
    inside: dict[str, str] = {}
    for match, keyword, value in _lines(root, root / CONFIG.lstrip("/")):
        if not match:
            outside.setdefault(keyword, value)
        elif match.lower() == "all" or match in applies:
            inside.setdefault(keyword, value)
    return {**DEFAULTS, **outside, **inside}

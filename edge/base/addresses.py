"""What of an address may be shown: its scheme and host, never what could be a password.

A password stands in user:password@, in a query, in a path, in a pipeline's user-pw=, in a file's place
by mistake. So nothing is searched for: the parts that cannot hold one are kept, all else goes. Every
error of ours, every line of the log and every traceback passes `redact`; whoever knows an address calls
`shown`, since only then it is known where an address with spaces in it ends.
"""

from __future__ import annotations

import re

SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
HOST = r"\[[0-9A-Fa-f:.]+\]|[\w.-]+"
# Alone: nothing but scheme, host and port. Else before the host stands a plain user part at most, and
# no other @ follows, since it would be the true end of a password that holds / or ?.
_ALONE = re.compile(rf"({SCHEME})://({HOST})(:\d{{1,5}})?/?")
_PARTS = re.compile(
    rf"({SCHEME})://(?:[^/?#@\\\s]*@)?({HOST})(?::\d{{0,5}})?([/?#;][^@]*)?", re.DOTALL
)
_SQLITE = re.compile(r"sqlite://(/[^?#@;=&]*)", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w ./~,+()-]+")
# How our own messages say what an address looks like.
_FORM = re.compile(
    rf"{SCHEME}://(\.\.\.|host\[:port\](/folder)?|/FILE|\[USER@\]HOST\[:PORT\]/DATABASE)?[,;.:)]*"
)
# Ends of a sentence, of brackets and quotes, in which a text shows an address.
_ENDS = ")]}'\"`,;:.!"
# An address; a word with a user part and no scheme; a name that says what its value is.
_IN_TEXT = re.compile(
    rf"(?P<address>{SCHEME}:/{{1,2}}\S*)"
    r"|(?P<user>[^\s'\"(/]+:\S*@\S*)"
    r"|(?P<name>[\w-]*(?:pass|pwd|-pw|secret|token|api[_-]?key|credential)[\w-]*=)"
    r"(?:\"[^\"]*\"|'[^']*'|\S*)",
    re.IGNORECASE,
)


def shown(text: str) -> str:
    """Return what of an address or a name may be shown: scheme and host; a plain path as it is; "***"
    for what could hold a password anywhere."""
    if match := _SQLITE.fullmatch(text):
        return f"sqlite://{match[1]}"
    if match := _ALONE.fullmatch(text):
        return f"{match[1]}://{match[2]}{match[3] or ''}"
    if match := _PARTS.fullmatch(text):
        return f"{match[1]}://{match[2]}"
    if match := re.match(rf"({SCHEME})://", text):
        return f"{match[1]}://***"
    return text if _PLAIN_NAME.fullmatch(text) else "***"


def may_hold_password(text: str) -> bool:
    """Tell whether an address has a part in which a password usually stands: before the host, in a
    query, in a path of names and values."""
    return "://" in text and bool(re.search(r"[@?=&;]", text))


def redact(text: str) -> str:
    """Return a text with every address in it as `shown` gives it, and without what stands behind a name
    such as password=."""
    return _IN_TEXT.sub(_replacement, text)


def _replacement(match: re.Match[str]) -> str:
    if name := match["name"]:
        return f"{name}***"
    found = match[0]
    if _FORM.fullmatch(found):
        return found
    if match["user"] or "://" not in found:
        # rtsp:/... is mistyped; in C:/... nothing can be a password.
        return "***" if set(found) & set("@=?") else found
    whole = found.rstrip(_ENDS)
    return found if _ALONE.fullmatch(whole) else shown(whole) + found[len(whole) :][:2]

"""index.json: every certificate that the school's authority signed, and the state of each."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from edge.base.errors import EdgeError, UsageError
from edge.base.files import sync_folder, write_atomically
from edge.base.strict_yaml import Strict

NODE = re.compile(r"[a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+")
# X.509 has room for no more in a common name.
MAX_NAME_CHARACTERS = 64

State = Literal["valid", "superseded", "revoked", "ended"]


class IndexEntry(Strict):
    """A certificate that was signed. serial: 16 hex digits; ends, revoked: moments in UTC."""

    serial: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
    ends: AwareDatetime
    revoked: AwareDatetime | None = None


class Index(Strict):
    """The file's content. authority: sha256 of ca.pem; certificates: oldest first."""

    version: Literal[1] = 1
    authority: str
    certificates: tuple[IndexEntry, ...] = ()

    def adding(self, entry: IndexEntry) -> Index:
        """Return the index with one more certificate."""
        return self.model_copy(update={"certificates": (*self.certificates, entry)})

    def revoking(self, serials: set[str], moment: datetime) -> Index:
        """Return the index with these revoked; what was revoked before keeps its moment."""
        changed = tuple(
            entry.model_copy(update={"revoked": entry.revoked or moment})
            if entry.serial in serials
            else entry
            for entry in self.certificates
        )
        return self.model_copy(update={"certificates": changed})

    def as_json(self) -> bytes:
        """Return the file's bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def read_index(path: Path, authority: str) -> Index:
    """Read index.json. authority: sha256 of its ca.pem. Raises EdgeError."""
    try:
        index = Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise EdgeError(
            f"{path} is damaged ({error.errors()[0]['msg']}); restore it from the backup: what it "
            f"does not list cannot be revoked"
        ) from error
    except OSError as error:
        raise EdgeError(f"{path} cannot be read ({error.strerror})") from error
    if index.authority != authority:
        raise EdgeError(f"{path} is another authority's; restore the folder's backup")
    return index


def states(index: Index, moment: datetime) -> list[tuple[IndexEntry, State]]:
    """Return every certificate with its state, oldest first. superseded: still valid, and its owner has
    a newer one."""
    newer: set[str] = set()
    found: list[tuple[IndexEntry, State]] = []
    for entry in reversed(index.certificates):
        state: State = "valid"
        if entry.revoked is not None:
            state = "revoked"
        elif entry.ends <= moment:
            state = "ended"
        elif entry.name in newer:
            state = "superseded"
        else:
            newer.add(entry.name)
        found.append((entry, state))
    return found[::-1]


def node_name(name: str) -> str:
    """Check and return site/room/node, as the broker's access list wants it; raises UsageError."""
    if not NODE.fullmatch(name):
        raise UsageError(f"'{name}' is not site/room/node; use a-z, 0-9 and '-' between two '/'")
    if len(name) > MAX_NAME_CHARACTERS:
        raise UsageError(
            f"'{name}' has {len(name)} characters, a certificate takes {MAX_NAME_CHARACTERS}; "
            f"use shorter names"
        )
    return name


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file of the authority's, which is on the disk when this returns. Raises EdgeError."""
    try:
        # With sudo once, and the technician could not read the own authority again.
        folder = path.parent.stat() if os.geteuid() == 0 else None
        write_atomically(path, data, mode, (folder.st_uid, folder.st_gid) if folder else None)
        # Else a power cut may bring the old file back, after the certificate has left.
        sync_folder(path.parent)
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be written ({error.strerror}); make room or take another folder"
        ) from error

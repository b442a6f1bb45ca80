"""A signed release on the school's server: verified before it is read, fetched within limits.

A folder over HTTPS: the files, `release.json`, and `release.json.sig`, the raw Ed25519 signature of
release.json's bytes. `edge-flash release` makes it; `edge-update` takes it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import edge
from edge.base.errors import EdgeError
from edge.base.files import sha256_of
from edge.base.tls import client_context
from edge.delivery.messages import LARGEST, TIME_PATTERN

SCHEMA = "edge.release/1"
MANIFEST, SIGNATURE = "release.json", "release.json.sig"
MIB = 1024 * 1024
MANIFEST_BYTES, SIGNATURE_BYTES = 64 * 1024, 64
MOST_BYTES = {"bundle": 256 * MIB, "package": 1024 * MIB}
MEMBERS = 32
STEP = MIB // 4
QUIET_SECONDS = 30.0  # without a byte
MANIFEST_SECONDS, FILE_SECONDS = 60.0, 3600.0
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}$"


class Refused(EdgeError):
    """A release that must not be installed, whoever sent it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Part):
    """One file of a release. version: of a package Debian's, of a bundle the first 12 digits of its
    bundle.json's sha256."""

    kind: Literal["bundle", "package"]
    name: str = Field(pattern=FILE_NAME)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str = Field(pattern=FILE_NAME)

    @model_validator(mode="after")
    def _bounds(self) -> File:
        if self.bytes > MOST_BYTES[self.kind]:
            raise ValueError(f"{self.name} is larger than {MOST_BYTES[self.kind]} bytes")
        if self.kind == "bundle" and not re.fullmatch(r"[0-9a-f]{12}", self.version):
            raise ValueError(f"{self.name}: a bundle's version has 12 hexadecimal digits")
        return self


class Release(_Part):
    """The content of release.json."""

    schema_: Literal["edge.release/1"] = Field(default="edge.release/1", alias="schema")
    serial: int = Field(ge=1, le=LARGEST)
    made: str = Field(pattern=TIME_PATTERN)
    files: Annotated[list[File], Field(min_length=1, max_length=2)]

    @model_validator(mode="after")
    def _one_of_each(self) -> Release:
        if len({file.kind for file in self.files}) < len(self.files):
            raise ValueError("files holds two of a kind")
        return self


def parse(data: bytes) -> Release:
    """Read release.json's bytes, whose signature was verified; raises Refused."""
    try:
        content = json.loads(data)
        known = content.get("schema") if isinstance(content, dict) else None
        if known != SCHEMA:
            raise Refused(
                f"{MANIFEST} has schema {known!r}, this node reads '{SCHEMA}'; update its package "
                f"first, with a release of that schema"
            )
        return Release.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Refused(f"{MANIFEST}: '{place}' {first['msg'].lower()}; make it again") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{MANIFEST} is not valid JSON; make the release again") from error


def verify(key: Path, data: bytes, signature: bytes) -> None:
    """Raise Refused where `signature` is not that of `data` by the Ed25519 key in the file `key`."""
    if not key.is_file():
        raise EdgeError(f"{key} cannot be read; put the school's release.pub there (update.key)")
    with tempfile.TemporaryDirectory() as folder:
        signed, by = Path(folder, "signed"), Path(folder, "by")
        signed.write_bytes(data)
        by.write_bytes(signature)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(key), "-rawin"]
        command += ["-in", str(signed), "-sigfile", str(by)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60)
        except FileNotFoundError as error:
            raise EdgeError(
                "needs the program openssl (Debian: apt-get install openssl)"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise EdgeError("openssl gives no answer; try again") from error
    if done.returncode != 0:
        raise Refused(
            f"{MANIFEST} is not signed by the key in {key}; make the release again with "
            f"`edge-flash release make` and the school's key"
        )


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.lower().startswith("https://"):
            raise Refused(f"the server sends on to {newurl[:80]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Server:
    """The folder at `url`, over TLS that is verified against `ca` (PEM; default: the system's)."""

    def __init__(
        self, url: str, ca: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url, self._clock = url.rstrip("/"), clock
        context = client_context("update", ca)
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _HttpsOnly()
        )

    def _copy(self, name: str, take: Callable[[bytes], None], offset: int, seconds: float) -> None:
        """Give take the file's bytes from offset on; b"" first where the server starts over."""
        headers = {"User-Agent": f"edge-update/{edge.__version__}"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = urllib.request.Request(f"{self._url}/{quote(name)}", headers=headers)
        deadline = self._clock() + seconds
        try:
            with self._opener.open(request, timeout=QUIET_SECONDS) as answer:
                start = f"bytes {offset}-"
                if answer.status != 206 or not answer.headers["Content-Range"].startswith(start):
                    take(b"")
                while part := answer.read1(STEP):
                    take(part)
                    if self._clock() > deadline:
                        raise EdgeError(f"{name} takes longer than {seconds:.0f} s; tried again")
        except (OSError, http.client.HTTPException, AttributeError, ValueError) as error:
            # AttributeError: 206 without a Content-Range; ValueError: sent on to what is no host.
            reason = getattr(error, "reason", None) or error
            raise EdgeError(
                f"{name} cannot be fetched from {self._url} ({str(reason)[:120]}); check update.url, "
                f"update.ca and the server"
            ) from error

    def _small(self, name: str, most: int) -> bytes:
        content = bytearray()

        def take(part: bytes) -> None:
            content.extend(part)
            if len(content) > most:
                raise Refused(f"{name} is larger than {most} bytes; check update.url")

        self._copy(name, take, 0, MANIFEST_SECONDS)
        return bytes(content)

    def release(self, key: Path) -> Release:
        """Fetch what the server offers, signed by the owner of `key`. Raises Refused or EdgeError."""
        signature = self._small(SIGNATURE, SIGNATURE_BYTES)
        data = self._small(MANIFEST, MANIFEST_BYTES)
        verify(key, data, signature)
        return parse(data)

    def download(self, file: File, folder: Path) -> Path:
        """Fetch a file into `folder`, whole and of the signed hash; resumes what an earlier try left.
        Raises Refused or EdgeError."""
        ready, part = folder / file.name, folder / f"{file.sha256}.part"
        if ready.is_file() and sha256_of(ready) == file.sha256:
            return ready
        have = part.stat().st_size if part.is_file() else 0
        with part.open("ab") as out:

            def take(more: bytes) -> None:
                nonlocal have
                longer = have + len(more) > file.bytes
                if not more or longer:
                    out.truncate(0)
                    have = 0
                if longer:
                    raise Refused(f"{file.name} is longer than the signed {file.bytes} bytes")
                out.write(more)
                have += len(more)

            try:
                if have < file.bytes:
                    self._copy(file.name, take, have, FILE_SECONDS)
            except EdgeError as error:
                # 416: the server's file is shorter than what is here.
                cause = error.__cause__
                if isinstance(cause, urllib.error.HTTPError) and cause.code == 416:
                    out.truncate(0)
                raise
            out.flush()
            os.fsync(out.fileno())
        if have < file.bytes:
            raise EdgeError(
                f"{file.name} ends after {have} of {file.bytes} bytes; the rest is fetched next time"
            )
        if (found := sha256_of(part)) != file.sha256:
            part.unlink()
            raise Refused(
                f"{file.name} has sha256 {found[:12]}..., not the signed {file.sha256[:12]}...; copy "
                f"the release to the server again"
            )
        os.replace(part, ready)
        return ready


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a bundle's .tar into a new folder. Raises Refused for anything but flat, regular files."""
    wrong = f"{archive.name} is no bundle"
    left = archive.stat().st_size
    folder.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:") as members:
            for count, member in enumerate(members, 1):
                # isreg() would also be true of a sparse file, whose size is whatever it says; so may an
                # extended header say it of a regular one, or that members lie over one another.
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                if not regular or member.issparse():
                    raise Refused(f"{wrong}: {member.name[:60]!r} is no regular file")
                if not 0 <= member.size <= left:
                    raise Refused(f"{wrong}: its files are larger than itself")
                left -= member.size
                if not re.fullmatch(FILE_NAME, member.name):
                    raise Refused(f"{wrong}: {member.name[:60]!r} is no plain file name")
                if count > MEMBERS:
                    raise Refused(f"{wrong}: more than {MEMBERS} files")
                content = members.extractfile(member)
                with (folder / member.name).open("xb") as out:
                    out.write(content.read() if content else b"")
                    out.flush()
                    os.fsync(out.fileno())
    except FileExistsError as error:
        raise Refused(f"{wrong}: a name appears twice") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Refused(f"{wrong}: {str(error)[:80]}; make the release again") from error

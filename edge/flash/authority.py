"""The school's certificate authority: a folder on the technician's machine, and nothing else.

key.pem      its private key, mode 0600; whoever reads it can be any node
ca.pem       its certificate, which nodes, broker and server trust
index.json   every certificate it signed, written before one is handed out
revoked.pem  those that were revoked (CRL), mosquitto's crlfile
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.base.files import sha256
from edge.flash.certificates import (
    PEM,
    alternative_name,
    common_name,
    new_key,
    private_pem,
    revocation_list,
    self_signed,
    sign,
)
from edge.flash.index import Index, IndexEntry, State, node_name, read_index, states, write_file

AUTHORITY_DAYS, MAX_DAYS = 3650, 36_500
DAYS = 825
BROKER, SERVER = "broker", "server"


def program_name(name: str) -> str:
    """Return the name of a program on the server. Raises UsageError."""
    if name == BROKER or not re.fullmatch(r"[a-z0-9-]{1,64}", name):
        raise UsageError(
            f"--name must be 1 to 64 of a-z, 0-9 and '-', other than {BROKER}, not '{name:.80}'"
        )
    return name


@dataclass(frozen=True, slots=True)
class Issued:
    """What the owner of a certificate gets: three PEM files, and its entry in the index."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    entry: IndexEntry


def create(
    folder: Path, school: str, days: int = AUTHORITY_DAYS, now: Callable[[], datetime] = utc_now
) -> Authority:
    """Make an authority in a folder that is absent or empty. Raises UsageError or EdgeError."""
    if not 0 < len(school) <= 40 or not school.isprintable() or school != school.strip():
        raise UsageError("--school must be the school's name, 1 to 40 characters")
    if not 0 < days <= MAX_DAYS:
        raise UsageError(f"--days must be 1 to {MAX_DAYS}")
    if (folder / "key.pem").exists() or (folder / "index.json").exists():
        raise EdgeError(f"{folder} already holds an authority; give another folder")
    moment = now().replace(microsecond=0)
    key = new_key()
    certificate = self_signed(key, school, moment, days)
    pem = certificate.public_bytes(PEM)
    draft = None
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole, so that half an authority is never seen. mkdtemp makes 0700.
        draft = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=".authority."))
        write_file(draft / "key.pem", private_pem(key))
        write_file(draft / "index.json", Index(authority=sha256(pem)).as_json())
        write_file(draft / "ca.pem", pem, 0o644)
        # An empty list: crlfile can be set from the first day, a missing file stops mosquitto.
        Authority.open(draft, now).write_crl()
        os.rename(draft, folder.absolute())
    except OSError as error:
        raise EdgeError(
            f"{folder} cannot become an authority ({error.strerror}); give a new or empty folder"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return Authority.open(folder, now)


class Authority:
    """Signs, lists and revokes. Any number of processes may do so at once."""

    def __init__(
        self,
        folder: Path,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        now: Callable[[], datetime],
    ) -> None:
        self.folder, self._key, self._certificate, self._now = folder, key, certificate, now
        self.pem = certificate.public_bytes(PEM)
        self.ends = certificate.not_valid_after_utc
        self.school = common_name(certificate.subject)

    @classmethod
    def open(cls, folder: Path, now: Callable[[], datetime] = utc_now) -> Authority:
        """Open a folder; raises EdgeError with what is wrong with it."""
        try:
            for name in ("key.pem", "ca.pem", "index.json"):
                if not (folder / name).is_file():
                    raise EdgeError(
                        f"{folder} is not an authority ({name} is missing); make one with "
                        f"`edge-flash ca init`, or restore its backup"
                    )
            if (folder.stat().st_mode | (folder / "key.pem").stat().st_mode) & 0o077:
                raise EdgeError(
                    f"{folder} or its key.pem can be read by others; say "
                    f"`chmod 700 {folder} && chmod 600 {folder / 'key.pem'}`"
                )
            key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            raise EdgeError(
                f"{folder}: key.pem or ca.pem is damaged; restore the folder's backup"
            ) from error
        except OSError as error:
            raise EdgeError(f"{folder} cannot be read ({error.strerror})") from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != certificate.public_key()
        ):
            raise EdgeError(f"{folder}: key.pem is not ca.pem's key; restore the folder's backup")
        authority = cls(folder, key, certificate, now)
        authority._index()
        return authority

    def _index(self) -> Index:
        return read_index(self.folder / "index.json", sha256(self.pem))

    @contextmanager
    def _locked_index(self) -> Iterator[Index]:
        """Yield the index as it is now, while nobody else changes it. Raises EdgeError."""
        moment = self._now()
        if not self._certificate.not_valid_before_utc <= moment < self.ends:
            raise EdgeError(
                f"the authority ends on {self.ends:%Y-%m-%d} and here it is {moment:%Y-%m-%d}; "
                f"set the clock, or make a new authority"
            )
        try:
            # A file that is never replaced, open for writing as NFS wants it.
            lock = (self.folder / "ca.pem").open("r+b")
        except OSError as error:
            raise EdgeError(f"{self.folder} cannot be changed ({error.strerror})") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._index()

    def _write_index(self, index: Index) -> None:
        write_file(self.folder / "index.json", index.as_json())

    def issue(self, name: str, days: int = DAYS, renew: bool = False) -> Issued:
        """Issue a node's certificate, for its name site/room/node.

        renew: also where it has one that is valid; that one stays valid until it ends or is revoked.
        Raises UsageError or EdgeError.
        """
        return self._issue(node_name(name), days, renew, [])

    def issue_server(self, days: int = DAYS, renew: bool = False, name: str = SERVER) -> Issued:
        """Issue the certificate of a program on the server: the recorder's, which reads and commands
        every node, or that of another one by its own name; see `issue`."""
        return self._issue(program_name(name), days, renew, [])

    def issue_broker(self, hosts: Sequence[str], days: int = DAYS, renew: bool = False) -> Issued:
        """Issue a broker's certificate for the names and addresses it is reached by; see `issue`."""
        if not hosts:
            raise UsageError("say by which names and addresses the nodes reach the broker")
        return self._issue(BROKER, days, renew, [alternative_name(h) for h in dict.fromkeys(hosts)])

    def _issue(
        self, name: str, days: int, renew: bool, hosts: Sequence[x509.GeneralName]
    ) -> Issued:
        """hosts: of a broker; a client has none."""
        if days < 1:
            raise UsageError("--days must be 1 or more")
        with self._locked_index() as index:
            moment = self._now().replace(microsecond=0)
            left = (self.ends - moment).days
            if days > left:
                raise EdgeError(
                    f"the authority ends on {self.ends:%Y-%m-%d}, before a certificate of {days} "
                    f"days would; give --days {left} or less, or make a new authority"
                )
            valid = [e for e, s in states(index, moment) if e.name == name and s == "valid"]
            if valid and not renew:
                raise EdgeError(
                    f"{name} has a certificate that is valid until {valid[0].ends:%Y-%m-%d}; use "
                    f"--renew for one beside it, or revoke it first"
                )
            key = new_key()
            certificate = sign(
                self._certificate, self._key, key.public_key(), name, moment, days, hosts
            )
            entry = IndexEntry(
                serial=f"{certificate.serial_number:016x}",
                name=name,
                ends=certificate.not_valid_after_utc,
            )
            self._write_index(index.adding(entry))
        return Issued(certificate.public_bytes(PEM), private_pem(key), self.pem, entry)

    def listed(self) -> list[tuple[IndexEntry, State]]:
        """Return every certificate and its state now, oldest first."""
        return states(self._index(), self._now())

    def revoke(self, what: str) -> list[IndexEntry]:
        """Revoke a serial, or all of a name, and write revoked.pem; return what was revoked.

        Raises EdgeError where there is none.
        """
        serial = what.replace(":", "").lower().zfill(16)
        with self._locked_index() as index:
            meant = {e.serial for e in index.certificates if what == e.name or serial == e.serial}
            if not meant:
                raise EdgeError(
                    f"no certificate has the name or serial '{what}'; see `edge-flash ca list`"
                )
            moment = self._now().replace(microsecond=0)
            index = index.revoking(meant, moment)
            self._write_index(index)
            self._write_crl(index)
        return [e for e in index.certificates if e.serial in meant]

    def adopt(self, pem: bytes) -> str:
        """List a certificate of ours again that an older backup lost; return its serial.

        Raises EdgeError where the authority did not sign it.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            certificate.verify_directly_issued_by(self._certificate)
            entry = IndexEntry(
                serial=f"{certificate.serial_number:016x}",
                name=common_name(certificate.subject),
                ends=certificate.not_valid_after_utc,
            )
        except (ValueError, TypeError, InvalidSignature) as error:
            raise EdgeError("the file is not a certificate of this authority's") from error
        with self._locked_index() as index:
            if entry.serial not in {e.serial for e in index.certificates}:
                self._write_index(index.adding(entry))
        return entry.serial

    def write_crl(self) -> Path:
        """Write revoked.pem and return its path. Raises EdgeError."""
        with self._locked_index() as index:
            return self._write_crl(index)

    def _write_crl(self, index: Index) -> Path:
        path = self.folder / "revoked.pem"
        data = revocation_list(self._certificate, self._key, index.certificates, self._now())
        write_file(path, data, 0o644)
        return path

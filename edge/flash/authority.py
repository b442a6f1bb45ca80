"""The school's certificate authority: a folder on the technician's machine, and nothing else.

key.pem      its private key, mode 0600; whoever reads it can be any node
ca.pem       its certificate, which nodes, broker and server trust
index.json   every certificate it signed, written before one is handed out
revoked.pem  those that were taken back (CRL), mosquitto's crlfile
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.flash.index import Index, IndexEntry, State, node_name, read_index, states, write_file
from edge.inference.weights import sha256

AUTHORITY_DAYS, MAX_DAYS = 3650, 36_500
DAYS = 825
# A node has no battery clock: what is valid from now on would not be yet, where one is a bit behind.
BACKDATED = timedelta(days=1)
HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
BROKER, SERVER = "broker", "server"
PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Issued:
    """What the owner of a certificate gets: three PEM files, and what the index says of it."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    entry: IndexEntry


def alternative_name(host: str) -> x509.GeneralName:
    """An address or a name that a broker is reached by; raises UsageError."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower()
        # 192.0.2.300 has the form of a name, and is meant for an address.
        typo = name.replace(".", "").isdigit()
        if typo or len(name) > 253 or not HOST.fullmatch(name):
            raise UsageError(f"'{host}' is neither a host name nor an IP address") from None
        return x509.DNSName(name)
    if getattr(address, "scope_id", None):
        raise UsageError(f"'{host}': leave out what follows '%', it holds on one machine only")
    return x509.IPAddress(address)


def _common_name(subject: x509.Name) -> str:
    values = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def common_name_of(pem: bytes) -> str:
    """Whose certificate it is; "" where it is none."""
    try:
        return _common_name(x509.load_pem_x509_certificate(pem).subject)
    except ValueError:
        return ""


def _key_usage(signs: bool) -> x509.KeyUsage:
    """signs: certificates and lists, as an authority does; else TLS handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        # 64 random bits: more than anybody guesses, and few enough to be read in a list.
        .serial_number(secrets.randbits(64) or 1)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def create(
    folder: Path, school: str, days: int = AUTHORITY_DAYS, now: Callable[[], datetime] = utc_now
) -> Authority:
    """A new authority in a folder that is not there, or empty. Raises UsageError or EdgeError."""
    if not 0 < len(school) <= 40 or not school.isprintable() or school != school.strip():
        raise UsageError("--school must be the school's name, 1 to 40 characters")
    if not 0 < days <= MAX_DAYS:
        raise UsageError(f"--days must be 1 to {MAX_DAYS}")
    if (folder / "key.pem").exists() or (folder / "index.json").exists():
        raise EdgeError(f"{folder} already holds an authority; give another folder")
    moment = now().replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own for each: beside its successor, an authority must not be taken for it.
    title = f"{school} {secrets.token_hex(4)}"
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, school),
            x509.NameAttribute(NameOID.COMMON_NAME, title),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, key.public_key(), moment, days)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(PEM)
    draft = None
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Made aside and moved in one step: a folder is an authority or it is none. mkdtemp makes 0700.
        draft = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=".authority."))
        write_file(draft / "key.pem", _private_pem(key))
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
    """Signs, lists and takes back. Any number of processes may do so at once."""

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
        self.school = _common_name(certificate.subject)

    @classmethod
    def open(cls, folder: Path, now: Callable[[], datetime] = utc_now) -> Authority:
        """Raises EdgeError with what is wrong with the folder."""
        try:
            for name in ("key.pem", "ca.pem", "index.json"):
                if not (folder / name).is_file():
                    raise EdgeError(
                        f"{folder} is no authority ({name} is missing); make one with "
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
        """The index as it is now, while nobody else changes it. Raises EdgeError."""
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
        """A node's certificate, which says it is site/room/node.

        renew: also where it has one that is valid; that one stays valid until it ends or is revoked.
        Raises UsageError or EdgeError."""
        return self._issue(node_name(name), days, renew, [])

    def issue_server(self, days: int = DAYS, renew: bool = False) -> Issued:
        """A certificate of the recorder, which hears and commands every node; see `issue`."""
        return self._issue(SERVER, days, renew, [])

    def issue_broker(self, hosts: Sequence[str], days: int = DAYS, renew: bool = False) -> Issued:
        """A broker's certificate for the names and addresses it is reached by; see `issue`."""
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
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(key.public_key(), name, moment, days, hosts)
            entry = IndexEntry(
                serial=f"{certificate.serial_number:016x}",
                name=name,
                ends=certificate.not_valid_after_utc,
            )
            self._write_index(index.adding(entry))
        return Issued(certificate.public_bytes(PEM), _private_pem(key), self.pem, entry)

    def _sign(
        self,
        public: ec.EllipticCurvePublicKey,
        name: str,
        moment: datetime,
        days: int,
        hosts: Sequence[x509.GeneralName],
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        # One or the other: a node's key must not serve as a broker's, nor the broker's as a node's.
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _builder(subject, public, moment, days)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(self._identifier(), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)

    def listed(self) -> list[tuple[IndexEntry, State]]:
        """Every certificate and what it is now, oldest first."""
        return states(self._index(), self._now())

    def revoke(self, what: str) -> list[IndexEntry]:
        """Take back a serial, or all of a name; writes revoked.pem. Those that were meant.

        Raises EdgeError where there is none."""
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
        """The serial of a certificate of ours, which is listed again where an older backup lost it.

        Raises EdgeError."""
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            certificate.verify_directly_issued_by(self._certificate)
            entry = IndexEntry(
                serial=f"{certificate.serial_number:016x}",
                name=_common_name(certificate.subject),
                ends=certificate.not_valid_after_utc,
            )
        except (ValueError, TypeError, InvalidSignature) as error:
            raise EdgeError("the file is no certificate of this authority's") from error
        with self._locked_index() as index:
            if entry.serial not in {e.serial for e in index.certificates}:
                self._write_index(index.adding(entry))
        return entry.serial

    def write_crl(self) -> Path:
        """revoked.pem anew. Raises EdgeError."""
        with self._locked_index() as index:
            return self._write_crl(index)

    def _write_crl(self, index: Index) -> Path:
        """Valid until the authority ends. The end of a list is meant for those who fetch it from afar;
        mosquitto reads it from its own disk, and would refuse everybody once it had ended."""
        moment = self._now().replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(moment - BACKDATED)
            .next_update(self.ends)
            .add_extension(self._identifier(), critical=False)
            # Must grow, also after a restore from an older backup: the time does.
            .add_extension(x509.CRLNumber(int(self._now().timestamp() * 1000)), critical=False)
        )
        for entry in index.certificates:
            # Also those that have ended: the broker's clock may be behind.
            if entry.revoked is not None:
                taken = x509.RevokedCertificateBuilder().serial_number(int(entry.serial, 16))
                builder = builder.add_revoked_certificate(
                    taken.revocation_date(entry.revoked).build()
                )
        path = self.folder / "revoked.pem"
        write_file(path, builder.sign(self._key, hashes.SHA256()).public_bytes(PEM), 0o644)
        return path

"""X.509 as the school's authority writes it: P-256 keys, certificates and the list of revoked ones.

Source: RFC 5280. Nothing here knows of folders or of what was signed before.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.base.errors import UsageError
from edge.flash.index import IndexEntry

# A node has no battery clock: what is valid from now on would not be yet, where one is a bit behind.
BACKDATED = timedelta(days=1)
HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
PEM = serialization.Encoding.PEM


def alternative_name(host: str) -> x509.GeneralName:
    """Return an address or a name that a broker is reached by; raises UsageError."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower()
        # 192.0.2.300 has the form of a name, and is meant for an address.
        typo = name.replace(".", "").isdigit()
        if typo or len(name) > 253 or not HOST_NAME.fullmatch(name):
            raise UsageError(f"'{host}' is neither a host name nor an IP address") from None
        return x509.DNSName(name)
    if getattr(address, "scope_id", None):
        raise UsageError(f"'{host}': leave out what follows '%', it holds on one machine only")
    return x509.IPAddress(address)


def common_name(subject: x509.Name) -> str:
    """Return the subject's common name, "" where it has none."""
    values = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def common_name_of(pem: bytes) -> str:
    """Return whose certificate a PEM file is; "" where it holds none."""
    try:
        return common_name(x509.load_pem_x509_certificate(pem).subject)
    except ValueError:
        return ""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM, not encrypted."""
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


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
    subject: x509.Name, public: ec.EllipticCurvePublicKey, moment: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        # 64 random bits: more than anybody guesses, and few enough to be read in a list.
        .serial_number(secrets.randbits(64) or 1)
        .not_valid_before(moment - BACKDATED)
        .not_valid_after(moment + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _authority_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def self_signed(
    key: ec.EllipticCurvePrivateKey, school: str, moment: datetime, days: int
) -> x509.Certificate:
    """Return an authority's own certificate, which may sign certificates but no other authority."""
    # A name of its own for each: next to its successor, an authority must not be taken for it.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, school),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{school} {secrets.token_hex(4)}"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(subject, key.public_key(), moment, days)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
        .sign(key, hashes.SHA256())
    )


def sign(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    name: str,
    moment: datetime,
    days: int,
    hosts: Sequence[x509.GeneralName],
) -> x509.Certificate:
    """Sign a client's certificate, or a broker's for the hosts that it is reached by."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    # One or the other: a node's key must not serve as a broker's, nor the broker's as a node's.
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(subject, public, moment, days)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(_authority_identifier(authority), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def revocation_list(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    entries: Iterable[IndexEntry],
    now: datetime,
) -> bytes:
    """Sign the list (CRL) of those `entries` that are revoked, as PEM.

    It is valid until the authority ends. The end of a list is meant for those who fetch it from afar;
    mosquitto reads it from its own disk, and would refuse everybody once it had ended.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now.replace(microsecond=0) - BACKDATED)
        .next_update(authority.not_valid_after_utc)
        .add_extension(_authority_identifier(authority), critical=False)
        # Must grow, also after a restore from an older backup: the time does.
        .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
    )
    for entry in entries:
        # Also those that have ended: the broker's clock may be behind.
        if entry.revoked is not None:
            revoked = x509.RevokedCertificateBuilder().serial_number(int(entry.serial, 16))
            builder = builder.add_revoked_certificate(
                revoked.revocation_date(entry.revoked).build()
            )
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(PEM)

"""Whom a client trusts does not hang on the Python that runs it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.base.errors import SettingsError
from edge.base.tls import client_context
from support.brokers import certificates

OWN_DEFAULT = ssl.create_default_context
STRICT = ssl.VERIFY_X509_STRICT
PARTIAL = ssl.VERIFY_X509_PARTIAL_CHAIN


@pytest.fixture(params=["3.10", "3.13"])
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The defaults of that Python, whichever runs."""

    def default(**how: str | None) -> ssl.SSLContext:
        context = OWN_DEFAULT(**how)  # type: ignore[arg-type]
        context.verify_flags &= ~(STRICT | PARTIAL)
        if request.param == "3.13":
            context.verify_flags |= STRICT | PARTIAL
        return context

    monkeypatch.setattr(ssl, "create_default_context", default)
    return str(request.param)


@contextlib.contextmanager
def server(certificate: Path, key: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                context.wrap_socket(peer, server_side=True).close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def trusts(context: ssl.SSLContext, port: int, name: str = "127.0.0.1") -> bool:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        try:
            context.wrap_socket(peer, server_hostname=name).close()
        except ssl.SSLCertVerificationError:
            return False
    return True


@pytest.mark.process
def test_an_authority_of_openssls_making_is_trusted_and_no_other(
    python: str, tmp_path: Path
) -> None:
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    ours, theirs = (certificates(tmp_path / name, ["broker"]) for name in ("ours", "theirs"))
    extensions = subprocess.run(
        ["openssl", "x509", "-in", ours["ca.pem"], "-noout", "-ext", "keyUsage"],
        capture_output=True,
        text=True,
    )
    assert "Certificate Sign" not in extensions.stdout, "what this test is about"
    with server(ours["broker.pem"], ours["broker.key"]) as port:
        assert trusts(client_context("broker.tls", ours["ca.pem"]), port)
        assert not trusts(client_context("broker.tls", theirs["ca.pem"]), port)
        assert not trusts(client_context("broker.tls", None), port), "the system's authorities"
        assert not trusts(client_context("broker.tls", ours["ca.pem"]), port, "localhost"), (
            "another name"
        )


@pytest.mark.process
def test_an_intermediate_authority_is_enough(python: str, tmp_path: Path) -> None:
    """A school signs with what its district signed, and gives its nodes its own certificate alone."""
    root = certificates(tmp_path, ["school", "other"])
    (tmp_path / "extensions").write_text("basicConstraints=critical,CA:TRUE\n")
    own = tmp_path / "own"
    own.mkdir()

    def openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    for name in ("school", "other"):
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "extensions", "-days", "30", "-out", own / f"{name}.pem",
        )  # fmt: skip
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
        "leaf.key", "-out", "leaf.csr", "-subj", "/CN=leaf",
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", "leaf.csr", "-CA", own / "school.pem", "-CAkey", "school.key",
        "-CAcreateserial", "-extfile", "san", "-days", "30", "-out", "leaf.pem",
    )  # fmt: skip
    with server(tmp_path / "leaf.pem", tmp_path / "leaf.key") as port:
        assert trusts(client_context("broker.tls", own / "school.pem"), port)
        assert not trusts(client_context("broker.tls", own / "other.pem"), port)
        assert not trusts(client_context("broker.tls", root["ca.pem"]), port), (
            "the school's certificate was not sent"
        )


def test_a_file_that_cannot_be_used_is_named_with_its_setting(tmp_path: Path) -> None:
    (path := tmp_path / "ca.pem").write_text("no certificate\n")
    for ca in (path, tmp_path / "absent.pem"):
        with pytest.raises(SettingsError, match=rf"^update\.ca {ca}: .*; give a PEM file$"):
            client_context("update", ca)
    with pytest.raises(SettingsError, match=r"^broker\.tls\.certificate .* and its own key, PEM"):
        client_context("broker.tls", None, path, path)


def test_old_tls_is_refused() -> None:
    assert client_context("broker.tls", None).minimum_version == ssl.TLSVersion.TLSv1_2

"""What is wrong with trust between a client and its broker is said as such, whichever client asks."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.delivery.connection import Connector
from edge.delivery.trust import describe_tls_error
from edge.settings import Broker, Tls
from support.brokers import Mosquitto, certificates, free_port, revoke
from support.command import call
from support.patience import PATIENCE

AUTHORITY = "the broker's certificate is not from this authority"
WANTED = "the broker wants a client certificate"
NAME = "the broker's certificate is not for 'localhost'"
EXPIRED = "the broker's certificate has expired"
PLAIN = "the broker speaks no TLS on this port"
SECURE = "the broker wants TLS on this port"
UNKNOWN = "the broker does not know the authority that this client's certificate is from"
OWN_EXPIRED = "this client's certificate has expired"
OWN_REVOKED = "this client's certificate was revoked"
VERSIONS = ("auto", "5", "3.1.1")


@dataclass(frozen=True)
class Brokers:
    """One of plain MQTT, one with TLS, one that wants certificates, one whose certificate has ended."""

    plain: Mosquitto
    secure: Mosquitto
    mutual: Mosquitto
    ended: Mosquitto
    ours: dict[str, Path]
    theirs: dict[str, Path]

    def tls(self, authority: dict[str, Path], own: str = "", of: str = "ours") -> Tls:
        files: dict[str, Path] = getattr(self, of)
        pair = {"certificate": files[f"{own}.pem"], "key": files[f"{own}.key"]} if own else {}
        return Tls(ca=authority["ca.pem"], **pair)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    folder = tmp_path_factory.mktemp("trust")
    ours, theirs = (folder / name for name in ("ours", "theirs"))
    ours.mkdir()
    theirs.mkdir()
    names = ["broker", "node", "ended", "taken"]
    certificates(ours, names, days={"ended": "0"})
    revoke(ours, ["taken"])
    certificates(theirs, ["node"])

    def start(name: str, certificate: str, more: str = "") -> Mosquitto:
        (folder / name).mkdir()
        lines = f"cafile {ours}/ca.pem\ncertfile {ours}/{certificate}.pem\n"
        lines += f"keyfile {ours}/{certificate}.key\n{more}"
        return Mosquitto(folder / name, tls=lines if certificate else "")

    wanting = f"require_certificate true\ncrlfile {ours}/revoked.pem\n"
    made = Brokers(
        start("plain", ""),
        start("secure", "broker"),
        start("mutual", "broker", wanting),
        start("ended", "ended"),
        {path.name: path for path in ours.iterdir()},
        {path.name: path for path in theirs.iterdir()},
    )
    yield made
    for broker in (made.plain, made.secure, made.mutual, made.ended):
        broker.stop()


NO_TLS = Tls()


def told(url: str, tls: Tls = NO_TLS, version: str = "auto") -> str:
    """Why there is no connection, at the first attempt."""
    settings = Broker(url=url, tls=tls, protocol=version)  # type: ignore[arg-type]
    connector = Connector(settings, connack_timeout=PATIENCE, quiet=True)
    assert connector.connect("somebody") is None
    return str(connector.status)


@pytest.mark.broker
@pytest.mark.parametrize("version", VERSIONS)
def test_whom_the_client_does_not_trust_is_told(brokers: Brokers, version: str) -> None:
    secure, ours = brokers.secure.url, brokers.tls(brokers.ours)
    assert AUTHORITY in told(secure, brokers.tls(brokers.theirs), version)
    assert AUTHORITY in told(secure, Tls(), version), "the system's authorities"
    assert NAME in told(secure.replace("127.0.0.1", "localhost"), ours, version)
    assert EXPIRED in told(brokers.ended.url, ours, version)


@pytest.mark.broker
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("again", range(3))
def test_whom_the_broker_does_not_trust_is_told_at_the_first_attempt(
    brokers: Brokers, version: str, again: int
) -> None:
    """Its last word comes after the handshake, and a reset may overtake it."""
    for own, of, line in (
        ("", "ours", WANTED),
        ("node", "theirs", UNKNOWN),
        ("ended", "ours", OWN_EXPIRED),
        ("taken", "ours", OWN_REVOKED),
    ):
        tls = brokers.tls(brokers.ours, own, of)
        assert line in told(brokers.mutual.url, tls, version), (own, of)


@pytest.mark.broker
@pytest.mark.parametrize("version", VERSIONS)
def test_plain_and_tls_that_meet_each_other_are_told(brokers: Brokers, version: str) -> None:
    plain, ours = brokers.plain.url, brokers.tls(brokers.ours)
    assert PLAIN in told(plain.replace("mqtt:", "mqtts:"), ours, version)
    for broker in (brokers.secure, brokers.mutual):
        assert SECURE in told(broker.url.replace("mqtts:", "mqtt:"), version=version)


@pytest.mark.broker
def test_right_trust_is_not_refused(brokers: Brokers) -> None:
    for url, tls in (
        (brokers.plain.url, Tls()),
        (brokers.secure.url, brokers.tls(brokers.ours)),
        (brokers.mutual.url, brokers.tls(brokers.ours, "node")),
    ):
        connector = Connector(Broker(url=url, tls=tls), connack_timeout=PATIENCE, quiet=True)
        client = connector.connect("somebody")
        assert client is not None
        client.disconnect()


@pytest.mark.broker
def test_every_client_says_it(brokers: Brokers, tmp_path: Path) -> None:
    """edge-watch in its last line, `edge-run --check` in its broker's, edge-run in its log."""
    for authority, line in ((brokers.theirs, AUTHORITY), (brokers.ours, WANTED)):
        url, ca = brokers.mutual.url, authority["ca.pem"]
        env = {"XDG_STATE_HOME": str(tmp_path / "state")}
        watch = call("edge.watch.run", "--broker", url, "--ca", ca, "--lines", env=env)
        assert watch.code == 1
        assert line in watch.last
        config = tmp_path / "node.yaml"
        config.write_text(
            f"broker: {{url: '{url}', tls: {{ca: {ca}}}}}\n"
            f"detector: {{width: 160, height: 128}}\n"
            f"runtime: {{backend: fake, state: {tmp_path / 'node'}}}\n"
        )
        common = ("--config", config, "--camera", "test", "--max-seconds", "1")
        check = call("edge.run", *common, "--check", env=env)
        assert line in next(text for text in check.out.splitlines() if "FAIL broker" in text)
        assert line in call("edge.run", *common, env=env).err


@contextlib.contextmanager
def tls_1_2(files: dict[str, Path], folder: Path) -> Iterator[str]:
    """A server of TLS 1.2 that wants a certificate: mosquitto always offers 1.3 too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files["ca.pem"])
    context.load_cert_chain(files["broker.pem"], files["broker.key"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer, contextlib.suppress(ssl.SSLError):
                        context.wrap_socket(peer, server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"mqtts://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


@pytest.mark.process
def test_tls_1_2_has_no_word_for_a_missing_certificate_and_is_understood(tmp_path: Path) -> None:
    files, other = certificates(tmp_path), tmp_path / "other"
    other.mkdir()
    theirs = certificates(other, ["node"])
    with tls_1_2(files, tmp_path) as url:
        assert WANTED in told(url, Tls(ca=files["ca.pem"]))
        wrong = Tls(ca=files["ca.pem"], certificate=theirs["node.pem"], key=theirs["node.key"])
        assert UNKNOWN in told(url, wrong)


@pytest.mark.process
def test_a_port_that_answers_neither_is_not_given_a_name(tmp_path: Path) -> None:
    """Who closes without a word, TLS or not, is no broker that one could name."""
    files, port = certificates(tmp_path), free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        said = [told(f"mqtt://127.0.0.1:{port}")]
        said.append(told(f"mqtts://127.0.0.1:{port}", Tls(ca=files["ca.pem"])))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
    for line in said:
        assert all(word not in line for word in (PLAIN, SECURE, WANTED, AUTHORITY)), line


@pytest.mark.parametrize("certificate", [True, False])
@pytest.mark.parametrize("reason", ["SSLV3_ALERT_ILLEGAL_PARAMETER", "", "NO_CIPHERS_AVAILABLE"])
def test_what_has_no_words_of_its_own_keeps_openssls(reason: str, certificate: bool) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}] something")
    error.reason = reason
    assert describe_tls_error(error, "broker", certificate).startswith("TLS failed (")

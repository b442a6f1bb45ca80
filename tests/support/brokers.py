"""A real mosquitto for a test, also as `edge-watch broker` sets one up, and certificates for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from support.patience import PATIENCE, wait_for
from support.ports import free_port


class Mosquitto:
    """A real broker on a free port, with a configuration of the test's."""

    def __init__(
        self,
        folder: Path,
        extra: str = "allow_anonymous true\n",
        tls: str = "",
        port: int | None = None,
        listener: str = "",
    ) -> None:
        """tls: lines of the listener's; listener: a line in them that is replaced by one on a free port
        of loopback, where they bring their own."""
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("needs mosquitto (Debian: apt-get install mosquitto)")
        self.port = port or free_port()
        config = folder / "mosquitto.conf"
        own = f"listener {self.port} 127.0.0.1"
        text = tls.replace(listener, own) if listener else f"{own}\n{tls}"
        config.write_text(text + extra)
        if os.getuid() == 0:
            config.write_text(f"user root\n{config.read_text()}")
        self.url = f"{'mqtts' if tls else 'mqtt'}://127.0.0.1:{self.port}"
        self._command = [program, "-c", str(config)]
        self.log = folder / "mosquitto.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError("mosquitto did not start")

    def stop(self, how: int = signal.SIGTERM) -> None:
        def ended() -> bool:
            # Again and again: mosquitto 2.0 forgets a signal that comes after it began to listen and
            # before its loop.
            self.process.send_signal(how)
            return self.process.poll() is not None

        wait_for(ended, "mosquitto has ended")


def certificates(
    folder: Path,
    names: Sequence[str] = ("broker", "node"),
    days: Mapping[str, str] | None = None,
    renew: bool = False,
) -> dict[str, Path]:
    """A school's authority and a certificate a name (its common name), by openssl. days: of validity,
    by name, where not 30; renew: keeps the authority. Returns paths by file name; / in a name is -."""

    def openssl(*words: str) -> None:
        done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    if not renew:
        openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=School")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in names:
        file = name.replace("/", "-")
        subject = "/CN=" + name.replace("/", "\\/")
        openssl("req", *key, "-keyout", f"{file}.key", "-out", f"{file}.csr", "-subj", subject)
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san"]
        valid = ["-days", (days or {}).get(name, "30")]
        openssl("x509", "-req", "-in", f"{file}.csr", *signing, *valid, "-out", f"{file}.pem")
    for path in folder.glob("*.key"):
        path.chmod(0o644)
    return {path.name: path for path in folder.iterdir()}


def revoke(folder: Path, names: Sequence[str] = ()) -> None:
    """Writes revoked.pem of the authority that `certificates` made: the list of these names' ones."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    now = datetime.now(timezone.utc)
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    made = x509.CertificateRevocationListBuilder().issuer_name(ca.subject)
    made = made.last_update(now - timedelta(days=1)).next_update(now + timedelta(days=30))
    for name in names:
        pem = (folder / f"{name.replace('/', '-')}.pem").read_bytes()
        entry = x509.RevokedCertificateBuilder().revocation_date(now)
        serial = x509.load_pem_x509_certificate(pem).serial_number
        made = made.add_revoked_certificate(entry.serial_number(serial).build())
    signed = made.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    (folder / "revoked.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def school_broker(
    folder: Path, names: Sequence[str], access: str = "", more: str = ""
) -> Mosquitto:
    """mosquitto as `edge-watch broker` sets it up, beside what Debian's own mosquitto.conf says.

    names: who gets a certificate besides the broker; access: more lines of the access list; more: of
    the configuration, a bridge for one."""
    from edge.watch.broker import files

    certificates(folder, ["broker", *names])
    revoke(folder)
    for name, text in files(str(folder), 8883, "server").items():
        (folder / name).write_text(text)
    with (folder / "edge.acl").open("a") as acl:
        acl.write(access)
    own = f"persistence true\npersistence_location {folder}/\nlog_dest stderr\n"
    return Mosquitto(
        folder, own + more, (folder / "edge.conf").read_text(), listener="listener 8883"
    )

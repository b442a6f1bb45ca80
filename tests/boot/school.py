"""The school around the emulated node: authority, broker with mutual TLS, an ear, and a server that
offers signed releases; all on this machine's loopback, which the node reaches as 10.0.2.2.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from edge.watch.broker import files
from support.brokers import Mosquitto
from support.paths import ROOT

HOST = "10.0.2.2"


def flash(*words: object, cwd: Path) -> str:
    """edge-flash as the technician calls it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("edge-flash"), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; the report is not its place to talk."""

    def log_message(self, *words: object) -> None:
        pass


class School:
    """Made as the README says; `folder` is the technician's."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder, self._node = folder, node
        flash("ca", "init", "authority", "--school", "North School", cwd=folder)
        flash("ca", "broker", "authority", HOST, "127.0.0.1", cwd=folder)
        flash("ca", "server", "authority", cwd=folder)
        flash("release", "key", "keys", cwd=folder)
        self._at = folder / "certificates"
        for name, text in files(str(self._at / "broker"), 8883, "server").items():
            (self._at / "broker" / name).write_text(text)
        own = f"persistence true\npersistence_location {folder}/\nlog_dest stderr\n"
        configuration = (self._at / "broker/edge.conf").read_text()
        self.broker = Mosquitto(folder, own, configuration, listener="listener 8883")
        self._heard = folder / "heard.txt"
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(self.broker.port), "-v", "-q", "1"]
        command += ["-t", "edge/v1/#", "--cafile", str(self._at / "server/ca.pem")]
        command += ["--cert", str(self._at / "server/server.pem")]
        command += ["--key", str(self._at / "server/server.key")]
        with self._heard.open("wb") as out:
            self._ear = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.releases = folder / "offered"
        self.releases.mkdir()
        self._web = self._serve()

    def _serve(self) -> http.server.ThreadingHTTPServer:
        handler = functools.partial(Quiet, directory=str(self.releases))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._at / "broker/broker.pem", self._at / "broker/broker.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    @property
    def update_url(self) -> str:
        return f"https://{HOST}:{self._web.server_address[1]}"

    def all(self, kind: str) -> list[dict[str, Any]]:
        """What came on one topic of the node, in order."""
        topic = f"edge/v1/{self._node}/{kind} "
        lines = self._heard.read_text().splitlines()
        return [json.loads(line.removeprefix(topic)) for line in lines if line.startswith(topic)]

    def counted(self) -> list[dict[str, Any]]:
        """Readings of which nothing was hidden."""
        return [c for c in self.all("counts") if c["counts"] is not None]

    def state(self) -> str:
        """The node's last, or "" before the first."""
        said = self.all("status")
        return str(said[-1]["state"]) if said else ""

    def offer_bundle(self) -> str:
        """Sign a release whose bundle is the shipped one under another name; its sha256."""
        bundle = self._folder / "bundle"
        shutil.copytree(ROOT / "edge/models", bundle)
        file = bundle / "bundle.json"
        description = json.loads(file.read_text())
        description["provenance"]["note"] = "offered by the school's server"
        file.write_text(json.dumps(description))
        words = ("--key", "keys/release.key", "--out", self.releases, "--serial", "1")
        flash("release", "make", *words, "--bundle", bundle, cwd=self._folder)
        from edge.inference.bundle import load_bundle

        return load_bundle(bundle).sha256

    def close(self) -> None:
        self._web.shutdown()
        self._ear.kill()
        self._ear.wait()
        self.broker.stop()

"""RabbitMQ members of one cluster on loopback, with the settings of docs/brokers.md."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from edge.base.errors import BrokerError
from edge.delivery.connection import probe
from edge.settings import Settings
from support.brokers import certificates, free_port
from support.paths import ROOT
from support.patience import wait_for

FETCHED = ROOT / ".rabbitmq"  # by `make rabbitmq`
SERVER, EPMD = "/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/bin/epmd"
PAGE_MEMBERS = ("rabbit@a", "rabbit@b", "rabbit@c")
# What docs/brokers.md shows; a test compares.
SETTINGS = """\
listeners.tcp = none
mqtt.listeners.tcp = none
mqtt.listeners.ssl.default = 8883
mqtt.durable_queue_type = quorum
mqtt.prefetch = 1000
mqtt.allow_anonymous = false
mqtt.ssl_cert_login = true
ssl_cert_login_from = common_name
ssl_options.cacertfile = /etc/rabbitmq/ca.pem
ssl_options.certfile = /etc/rabbitmq/broker.pem
ssl_options.keyfile = /etc/rabbitmq/broker.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
load_definitions = /etc/rabbitmq/definitions.json
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = rabbit@a
cluster_formation.classic_config.nodes.2 = rabbit@b
cluster_formation.classic_config.nodes.3 = rabbit@c
"""
# A program of the fetched ones, which want the C library of their own Debian: $1 is their root, $2 the
# folder, /mnt to them.
WITHIN = """\
mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --bind "$2" "$1/mnt" &&
cd "$1" && shift 2 && exec chroot . "$@"
"""


def roots() -> dict[str, Path]:
    """Where RabbitMQ lies, by its version: what is installed, and what `make rabbitmq` fetched."""
    found = {}
    for root in (Path("/"), FETCHED):
        for folder in root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"):
            found[folder.name.partition("-")[2]] = root
    return found


def definitions(names: Sequence[str]) -> str:
    """Who may connect by a certificate of this common name: a user each, without a password."""
    users = [{"name": name, "password_hash": "", "tags": ""} for name in names]
    rights = {"vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    return json.dumps(
        {
            "vhosts": [{"name": "/"}],
            "users": users,
            "permissions": [{"user": name, **rights} for name in names],
        }
    )


class Members:
    """Processes of a cluster on free ports of loopback, with an epmd and a cookie of their own."""

    def __init__(self, folder: Path, version: str, names: Sequence[str]) -> None:
        """version: of those in `roots`; names: who gets a certificate and may do anything there."""
        self._root = roots()[version]
        self._inside = Path("/mnt") if self._root == FETCHED else folder
        self._folder, self._epmd_port = folder, free_port()
        certificates(folder, ["broker", *names])
        (folder / "definitions.json").write_text(definitions(names))
        (folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        ports = [free_port() for _ in range(len(PAGE_MEMBERS))]
        self._distribution = [free_port() for _ in range(len(PAGE_MEMBERS))]
        for number, port in enumerate(ports):
            (folder / f"r{number}.conf").write_text(self._settings(port))
        self.urls = [f"mqtts://127.0.0.1:{port}" for port in ports]
        self.log = folder / "members.log"
        epmd = [EPMD, "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = self._run(epmd, {})
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for number, url in enumerate(self.urls):
                self._processes.append(self._start(number))
                # 3.10.8 never opens a virtual host that one member defines while another joins; 4.0.5
                # waits for the others.
                if version.startswith("3."):
                    wait_for(partial(self._takes_clients, url), self._said, every=0.5)
            wait_for(lambda: all(map(self._takes_clients, self.urls)), self._said, every=0.5)
        except BaseException:
            self.close()
            raise

    def _settings(self, port: int) -> str:
        """What docs/brokers.md shows, with this cluster's ports, files and names."""
        text = SETTINGS.replace("= 8883", f"= 127.0.0.1:{port}")
        text = text.replace("/etc/rabbitmq", str(self._inside))
        for number, name in enumerate(PAGE_MEMBERS):
            text = text.replace(name, f"r{number}@localhost")
        return text

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]

    def _takes_clients(self, url: str) -> bool:
        """Whether a member has all it needs: it opens its port before it knows its users."""
        for number, process in enumerate(self._processes):
            assert process.poll() is None, f"member {number} ended: {self._said()}"
        try:
            probe(Settings.model_validate({"broker": {"url": url, "tls": self.tls()}}).broker)
        except BrokerError:
            return False
        return True

    def tls(self, name: str = "server") -> dict[str, str]:
        """What a client proves itself with."""
        ends = {"ca": "ca.pem", "certificate": f"{name}.pem", "key": f"{name}.key"}
        return {key: str(self._folder / file) for key, file in ends.items()}

    def _run(self, command: Sequence[str], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if self._root == FETCHED:
            alone = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
            within = ["sh", "-c", WITHIN, "-", str(FETCHED), str(self._folder)]
            command = [*alone, *within, *command]
        own = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._inside),
            "LANG": "C.UTF-8",
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env={**own, **more}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self._folder,
            )  # fmt: skip

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        at, name = self._inside, f"r{number}"
        variables = {
            "RABBITMQ_NODENAME": f"{name}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution[number]),
            "RABBITMQ_CONFIG_FILE": f"{at}/{name}.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{at}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{at}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{at}/{name}",
            "RABBITMQ_LOG_BASE": f"{at}/{name}-log",
            # With it the process is Erlang itself and no shell around it, and SIGKILL meets it.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -start_epmd false "
            "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": f"{at}/{name}.dump",
        }
        return self._run([SERVER], variables)

    def kill(self, number: int) -> None:
        """SIGKILL a member, and start it again after a second."""
        self._processes[number].kill()
        self._processes[number].wait()
        time.sleep(1.0)
        self._processes[number] = self._start(number)

    def close(self) -> None:
        for process in (*self._processes, self._epmd):
            process.kill()
            process.wait()

"""`edge-provision`: the steps that make an installed node ready, each of which asks whether it is done.

    network   who edge-run may speak to, as a drop-in for its sandbox   every boot, every 5 minutes
    engine    edge-engine.service, where the board has TensorRT         first boot
    check     edge-check: student, detector, broker, camera             first boot
    run       edge-run.service

Run as root by /usr/lib/edge-node/bootstrap. Each step is a line on the console, and on the node's
`status` as soon as the broker can be reached. A check that fails keeps no node from running: a camera
may be plugged in tomorrow.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import edge
from edge.base import cli
from edge.base.addresses import redact, shown
from edge.base.clock import clock_synced, rfc3339
from edge.base.errors import EdgeError
from edge.base.files import write_atomically
from edge.base.strict_yaml import read_yaml, validate
from edge.delivery.connection import deliver
from edge.delivery.messages import Outgoing, Status, as_dict
from edge.settings import Settings

SETTINGS = Path("/etc/edge-node/node.yaml")
DROP_IN = Path("/etc/systemd/system/edge-run.service.d/network.conf")
DONE = Path("/var/lib/edge-update/provisioned")
CONSOLE = Path("/dev/console")
STEPS = Path("/run/edge-node.steps")  # bootstrap's own
NAME_SERVERS = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))
TIMERS = ("edge-network.timer", "edge-update.timer")
NAME_SECONDS = 60.0  # how long first boot waits for a network that knows the broker's name
CHECK_SECONDS = 5
HEADER = """\
# Written by edge-provision from node.yaml: whom the node may speak to. Looked up anew at every boot and
# every five minutes (edge-network.timer); what is changed here is overwritten.
[Service]
"""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # A camera's or a disk's name may be in any encoding.
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )


def peers(settings: Settings) -> list[str]:
    """List whom the node speaks to: broker, time servers, a camera at an address."""
    found = [urlsplit(url).hostname for url in settings.broker.urls]
    found += settings.clock.servers
    found.append(host_of(settings.camera.source))
    return list(dict.fromkeys(host for host in found if host))


def host_of(source: str) -> str | None:
    """Return the host of a camera's address; None where there is none, or where it is not plain which
    part that is: one of a password is to be looked up nowhere."""
    clear = shown(source)
    return None if "***" in clear or "://" not in clear else urlsplit(clear).hostname


def name_servers(files: Iterable[Path] = NAME_SERVERS) -> list[str]:
    """Read the addresses in the first resolv.conf that names any beyond this machine."""
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # the next one
        listed = re.findall(r"^nameserver\s+([0-9A-Fa-f.:]+)", text, re.MULTILINE)
        if beyond := [a for a in listed if _beyond_this_machine(a)]:
            return beyond
    return []


def _beyond_this_machine(address: str) -> bool:
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def addresses(host: str) -> list[str]:
    """Look up a name. Raises OSError where it is not known now, UnicodeError where it cannot be one."""
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(answer[4][0]).split("%")[0] for answer in answers})


def allow(hosts: Sequence[str], servers: Sequence[str], before: str) -> tuple[str, list[str]]:
    """Write the drop-in, and list the names that are not known now: for those, what `before` allowed
    stays."""
    allowed, unknown = list(servers), []
    for host in hosts:
        try:
            allowed += addresses(host)
        except (OSError, UnicodeError):
            unknown.append(host)
    if unknown:
        allowed += re.findall(r"^IPAddressAllow=(\S+)$", before, re.MULTILINE)
    lines = [f"IPAddressAllow={address}" for address in dict.fromkeys(allowed)]
    return HEADER + "\n".join(lines) + "\n", unknown


class Provision:
    """One run of the steps. run: a program, its output kept; say: a line on the console."""

    def __init__(
        self,
        settings: Settings,
        run: Run = _run,
        drop_in: Path = DROP_IN,
        done: Path = DONE,
        console: Path = CONSOLE,
        steps: Path = STEPS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._run, self._drop_in, self._done = settings, run, drop_in, done
        self._console, self._steps, self._sleep = console, steps, sleep
        self._session, self._n = str(uuid.uuid4()), 0

    def say(self, step: str, text: str, public: str | None = None) -> None:
        """Print a line, and tell it to the broker; where that cannot be reached, the steps go on.

        public: what is told in its place; "" for nothing. Whoever hears the broker learns of no file
        and no address.
        """
        # Known as a whole, it has an end also where it holds spaces.
        source = self._settings.camera.source
        line = redact(f"edge-node: {step}: {text}".replace(source, shown(source)))
        print(line, flush=True)
        with contextlib.suppress(OSError):
            self._console.write_text(f"{line}\n")
        told = text if public is None else public
        if told:
            self._tell(f"{step}: {told}")

    def _tell(self, text: str) -> bool:
        """Publish on `status`; returns whether the broker took it."""
        if not self._settings.broker.urls:
            return False
        self._n += 1
        message = Status(
            node=self._settings.node.path,
            session=self._session,
            state="starting",
            reason=f"first boot, {redact(text)}"[:200],
            n=self._n,
            time=rfc3339(time.time()),
            clock_synced=clock_synced(),
        )
        # Whoever looks at the console sees the check's own line about the broker.
        with contextlib.suppress(EdgeError):
            deliver(
                self._settings.broker,
                f"edge/{self._settings.node.path}/provision",
                Outgoing("status", as_dict(message), retain=True),
            )
            return True
        return False

    def catch_up(self) -> None:
        """Tell what was done before there was a program that could."""
        try:
            lines = self._steps.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            if not self._tell(line):
                return

    def network(self, wait: float) -> None:
        """Write the drop-in where it changed. wait: seconds for names that are not known yet."""
        before = self._drop_in.read_text(encoding="utf-8") if self._drop_in.is_file() else ""
        hosts = peers(self._settings)
        deadline = time.monotonic() + wait
        text, unknown = allow(hosts, name_servers(), before)
        while unknown and time.monotonic() < deadline:
            self._sleep(2.0)
            text, unknown = allow(hosts, name_servers(), before)
        if text != before:
            write_atomically(self._drop_in, text.encode())
            self._run(["systemctl", "daemon-reload"])
        if unknown:
            text = f"not known here: {self._names(unknown)}; looked up again"
        else:
            text = f"may speak to {self._names(hosts) or 'nobody'}"
        self.say("network", text, public="")

    def _names(self, hosts: Sequence[str]) -> str:
        """Join names as people may read them: a camera's address that is written wrongly has a part of
        its password where the host should be."""
        source = self._settings.camera.source
        camera = host_of(source)
        if camera and host_of(shown(source)) != camera:
            hosts = ["the camera" if host == camera else host for host in hosts]
        return ", ".join(hosts)

    def engine(self) -> None:
        self.say("engine", "building what this board can use; up to an hour")
        done = self._run(["systemctl", "start", "edge-engine.service"])
        shown = self._run(["systemctl", "show", "--property=Result,ConditionResult", "edge-engine"])
        if "exec-condition" in shown.stdout:
            self.say("engine", "no TensorRT on this board; ONNX Runtime serves")
        elif done.returncode:
            self.say("engine", "FAILED, ONNX Runtime serves; journalctl --namespace=edge-node")
        else:
            self.say("engine", "built and verified")

    def check(self) -> None:
        self.say("check", "student, detector, broker, camera")
        done = self._run(["/usr/sbin/edge-check", "--max-seconds", str(CHECK_SECONDS)])
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        for line in lines:
            self.say("check", line, public="")
        failed = [line.removeprefix("FAIL ") for line in lines if line.startswith("FAIL")]
        if failed:
            parts = ", ".join(line.partition(":")[0] for line in failed)
            why = f"FAILED {parts}; sudo edge-check says why"
            self.say("check", f"FAILED {'; '.join(failed)}", public=why)
        elif done.returncode:
            last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            self.say("check", f"FAILED {last}", public="FAILED; sudo edge-check says why")
        else:
            self.say("check", "all right")

    def all(self) -> None:
        """Run every step; those of a first boot once for each version of the program."""
        first = not self._done.is_file() or self._done.read_text() != edge.__version__
        # Started again by hand, or by an update: the camera is taken, and the node speaks for itself.
        first = first and self._run(["systemctl", "is-active", "edge-run"]).returncode != 0
        self.network(NAME_SECONDS if first else 0.0)
        if first:
            self.catch_up()
            self.engine()
            self.check()
            write_atomically(self._done, edge.__version__.encode())
        self.say("run", "starting edge-run", public=None if first else "")
        # Not waited for: it waits for this.
        self._run(["systemctl", "start", "--no-block", "edge-run.service", *TIMERS])


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-provision",
        "Make an installed node ready: network, engine, self-test, start. As root, by systemd.",
        "edge-provision --network",
    )
    p.add_argument(
        "--config", type=Path, default=SETTINGS, metavar="node.yaml", help="the node's settings"
    )
    p.add_argument(
        "--network", action="store_true", help="look up whom the node may speak to; no more"
    )
    args = p.parse_args(argv)
    settings = validate(Settings, read_yaml(args.config), str(args.config))
    steps = Provision(settings)
    if args.network:
        steps.network(0.0)
    else:
        steps.all()


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-provision", run, argv)


if __name__ == "__main__":
    sys.exit(main())

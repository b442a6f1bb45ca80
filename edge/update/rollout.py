"""Put an update on trial: write the way back down first, and take it unless a whole minute goes well.

Power may be cut anywhere. `trial/` says what to go back to; by rename it appears whole and goes whole,
and whoever finds it goes back: `recover` here, or the shell of /usr/lib/edge-node/bootstrap, which
works where the new package does not; it waits for nobody, and leaves alone a trial whose edge-update
holds `lock`. Going back may itself be cut short, and is done again.

    trial/package   path of the .deb to install     trial/bundle   what the link `bundle` pointed to
    trial/serial    of the release on trial         went-back      the same, until last.json tells of it
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import EdgeError
from edge.base.files import sync_folder, write_atomically
from edge.health.state import parse

log = logging.getLogger(__name__)

HEALTHY_SECONDS = 60.0
WATCH_SECONDS = 600.0  # then it goes back; counted from the restart's end
LOOK_SECONDS = 5.0
DPKG_SECONDS = 1800.0  # a slow card
ENGINE_SECONDS = 4500.0  # an hour is edge-engine.service's own limit
LOCKED_TRIES, LOCKED_SECONDS = 30, 10.0
RUN, ENGINE = "edge-run.service", "edge-engine.service"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a node's files are, and how time passes (seconds, monotonic)."""

    root: Path = Path("/")
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def home(self) -> Path:
        return self.root / "var/lib/edge-update"

    @property
    def trial(self) -> Path:
        return self.home / "trial"

    @property
    def went_back(self) -> Path:
        return self.home / "went-back"

    @property
    def link(self) -> Path:
        """Lead to the bundle in use."""
        return self.home / "bundle"

    @property
    def shipped(self) -> Path:
        """Hold the package's own bundle."""
        return self.root / "usr/share/edge-node/bundle"


@dataclass(frozen=True, slots=True)
class Transition:
    """What an update replaces by what; a package or bundle that stays is None.

    old_package, new_package: .deb files; old_bundle, new_bundle: the link's targets."""

    serial: int
    old_package: Path | None = None
    new_package: Path | None = None
    old_bundle: str | None = None
    new_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How edge-run does. fault: why it is not healthy, or None; own: whether its release can be to
    blame; restarts: systemd's count of them."""

    fault: str | None
    restarts: str
    own: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial was rolled back. own: whether the release can be to blame; such a release is not
    tried again."""

    reason: str
    own: bool = True


def call(*words: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program for at most `seconds`, keeping its output; code 124 where it took longer."""
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except FileNotFoundError as error:
        raise EdgeError(f"{words[0]} is not on this machine; a node is a Debian with it") from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"took longer than {seconds:.0f} s")


def look() -> Health:
    """Ask systemd how edge-run does."""
    shown = call(
        "systemctl", "show", RUN, "-p", "ActiveState", "-p", "StatusText", "-p", "NRestarts"
    )
    facts = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    active, line = facts.get("ActiveState", ""), facts.get("StatusText", "")
    return judge(active, line, facts.get("NRestarts", ""))


def judge(active: str, line: str, restarts: str) -> Health:
    """Make a Health of what systemd says: a unit's state, the line that it gave, and its restarts."""
    standing = parse(line)
    if active != "active":
        return Health(f"edge-run is {active or 'not known to systemd'}", restarts)
    if standing is None:
        return Health(f"edge-run says '{line}'", restarts)
    fault = None if standing.healthy else f"edge-run says '{line}'"
    if standing.closed:
        fault = "edge-run looks at nothing: outside of privacy.hours"
    return Health(fault, restarts, own=not standing.external)


def watch(machine: Machine) -> Failure | None:
    """Wait for a whole minute of healthy frames without a restart; returns what was last in the way
    where none came in WATCH_SECONDS."""
    began = machine.clock()
    since: float | None = None
    restarts, failure = "", Failure("edge-run was not healthy for a whole minute")
    while True:
        health, now = look(), machine.clock()
        if health.fault is not None:
            since, failure = None, Failure(health.fault, health.own)
        elif since is None:
            since = now
        elif health.restarts != restarts:
            since, failure = now, Failure("edge-run ended and was restarted")
        elif now - since >= HEALTHY_SECONDS:
            return None
        restarts = health.restarts
        if health.fault == "edge-run is failed" or now - began >= WATCH_SECONDS:
            return failure
        machine.sleep(LOOK_SECONDS)


def installed() -> str:
    """Ask dpkg for the package's version on this machine, "" where it is not installed whole.

    One on hold is (`apt-mark hold`): that is said to apt. `dpkg --install` takes it all the same."""
    lines = call("dpkg", "--status", "edge-node").stdout.splitlines()
    facts = dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != " ")
    return facts.get("Version", "") if facts.get("Status", "").endswith(" ok installed") else ""


def install_package(machine: Machine, path: Path) -> None:
    """Install a .deb; raises EdgeError with dpkg's last line. Waits for a package manager that is at
    work: rolling back would need the same lock."""
    for tried in range(LOCKED_TRIES):
        # A setting that a technician changed stays, and nobody is there to be asked.
        done = call("dpkg", "--force-confold", "--install", str(path), seconds=DPKG_SECONDS)
        if done.returncode == 0:
            call("systemctl", "daemon-reload")
            return
        if "lock" not in done.stderr or tried == LOCKED_TRIES - 1:
            break
        machine.sleep(LOCKED_SECONDS)
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise EdgeError(f"{path.name} does not install ({last[:160]})")


def point(machine: Machine, target: str) -> None:
    """Make the link `bundle` lead to target; a power cut leaves the old link or the new one."""
    new = machine.home / "bundle.new"
    new.unlink(missing_ok=True)
    os.symlink(target, new)
    os.replace(new, machine.link)
    sync_folder(machine.home)


def restart(verb: str = "restart") -> bool:
    """Restart the engine's builder, then edge-run: building takes up to an hour, in which the old
    program runs on. What comes of it is seen in edge-run's state. verb: "try-restart" leaves alone what
    does not run. Returns whether systemd did so with edge-run."""
    call(
        "systemctl", "reset-failed", ENGINE, RUN
    )  # or a limit of starts would hold the next one back
    call("systemctl", verb, ENGINE, seconds=ENGINE_SECONDS)
    return call("systemctl", verb, RUN, seconds=ENGINE_SECONDS).returncode == 0


def begin(machine: Machine, transition: Transition) -> None:
    """Write `trial/`: from here on, whoever finds this machine rolls back."""
    new = machine.home / "trial.new"
    for rest in (new, machine.home / "trial.over"):
        shutil.rmtree(rest, ignore_errors=True)
    new.mkdir()
    content = {
        "serial": str(transition.serial),
        "package": str(transition.old_package) if transition.new_package else None,
        "bundle": transition.old_bundle if transition.new_bundle else None,
    }
    for name, text in content.items():
        if text is not None:
            with (new / name).open("w") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
    sync_folder(new)
    os.rename(new, machine.trial)
    sync_folder(machine.home)


def end(machine: Machine) -> None:
    """Take `trial/` away. Renamed first: one that is half deleted must not be taken for a whole one.

    Raises OSError where it could not be renamed, and only then: after that, nothing can go back."""
    over = machine.home / "trial.over"
    shutil.rmtree(over, ignore_errors=True)
    os.rename(machine.trial, over)
    with contextlib.suppress(OSError):
        sync_folder(machine.home)
    shutil.rmtree(over, ignore_errors=True)


def roll_back(machine: Machine) -> None:
    """Bring the old package and bundle back, and end the trial. Raises EdgeError where dpkg fails; the
    trial stays then."""
    package, bundle = machine.trial / "package", machine.trial / "bundle"
    if package.is_file():
        call("dpkg", "--configure", "-a", seconds=DPKG_SECONDS)
        install_package(machine, Path(package.read_text()))
    if bundle.is_file():
        point(machine, bundle.read_text())
    with contextlib.suppress(OSError):  # on a full disk it goes back without a word
        write_atomically(machine.went_back, (machine.trial / "serial").read_bytes())
    end(machine)


def attempt(machine: Machine, transition: Transition) -> Failure | None:
    """Install the new, watch it, and keep it or roll back; returns None, or why it was rolled back.

    Raises EdgeError where there was no way back; then trial/ stays and the next start tries again."""
    begin(machine, transition)
    try:
        if transition.new_package:
            log.info("installing %s", transition.new_package.name)
            install_package(machine, transition.new_package)
        if transition.new_bundle:
            point(machine, transition.new_bundle)
        if restart() or look().fault is not None:
            log.info("watching edge-run for a minute")
            failure = watch(machine)
        else:  # as during a shutdown: healthy is what was there before
            failure = Failure("systemd did not restart edge-run", own=False)
    except (EdgeError, OSError) as error:
        failure = Failure(str(error))
    if failure is None:
        try:
            commit(machine, transition)
            return None
        except OSError as error:
            failure = Failure(f"cannot be kept ({error.strerror})", own=False)
    if machine.trial.is_dir():
        log.warning("going back: %s", failure.reason)
        roll_back(machine)
    else:  # a person, or the shell of a package from before the lock
        failure = Failure("somebody else went back during its trial", own=False)
    if transition.new_package:
        # Where commit may have put it; the bootstrap would take it for the newest.
        (machine.home / "packages" / transition.new_package.name).unlink(missing_ok=True)
    restart()
    return failure


def commit(machine: Machine, transition: Transition) -> None:
    """End the trial, after which the new is what stays. Its package is moved to its place before: it is
    the next update's way back."""
    if transition.new_package:
        packages = machine.home / "packages"
        packages.mkdir(exist_ok=True)
        os.replace(transition.new_package, packages / transition.new_package.name)
        sync_folder(packages)
    end(machine)


def recover(machine: Machine) -> int | None:
    """Roll back where a trial was cut short. Returns the serial of the release that was rolled back,
    here or by the shell, 0 where it cannot be read, or None where there is nothing to tell."""
    if machine.trial.is_dir():
        roll_back(machine)
        restart("try-restart")
    if not machine.went_back.is_file():
        return None
    serial = machine.went_back.read_text().strip()
    return int(serial) if serial.isdigit() else 0


def prune(machine: Machine, transition: Transition) -> None:
    """Delete all bundles and packages but the present and the previous."""
    if transition.new_package and transition.old_package:
        keep = {transition.new_package.name, transition.old_package.name}
        for path in (machine.home / "packages").glob("edge-node_*.deb"):
            if path.name not in keep:
                path.unlink()
    if transition.new_bundle:
        keep = {
            Path(target).name for target in (transition.new_bundle, transition.old_bundle) if target
        }
        for path in (machine.home / "bundles").iterdir():
            if path.name not in keep:
                shutil.rmtree(path)

"""`edge-update`: take the school's next signed release, keep it only if the node stays healthy.

Run as root by edge-update.timer. Its steps: roll back where power cut a trial short; fetch release.json
and verify it; ask whether it is new and the node healthy; download, unpack, prove; then the trial
(`rollout.py`). What came of a release stands in last.json; the journal has the rest.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edge.base import cli
from edge.base.clock import plausible, rfc3339
from edge.base.errors import EdgeError
from edge.base.files import file_lock, sha256, sync_folder, write_atomically
from edge.base.strict_yaml import read_yaml, validate
from edge.inference.bundle import load_bundle
from edge.inference.loader import open_student
from edge.settings import Runtime, Settings
from edge.update.release import MIB, File, Refused, Release, Server, unpack
from edge.update.rollout import (
    DPKG_SECONDS,
    Machine,
    Transition,
    attempt,
    call,
    installed,
    look,
    prune,
    recover,
)

log = logging.getLogger(__name__)

OUTCOME = "edge.update/1"
# A power cut during a trial is no fault of the release's, nor is a lesson's end or a broker away; one
# that hangs the board, or loses the broker, looks the same.
MOST_TRIES = 3
CUT = "power was cut during its trial, or edge-update was killed"
AGAIN_SECONDS = 30.0
PROVE_SECONDS = 300.0
SPARE_BYTES = 256 * MIB
# On the disk at once, in its own size: a bundle as .tar and as files; a package also as wheels and as
# the environment that is made of them.
TIMES = {"bundle": 2, "package": 5}


class RolledBack(EdgeError):
    """A release that did not stay healthy; the old one is back, and last.json says so."""


def _number(path: Path) -> int:
    """Read a number from a file of ours; 0 where there is none."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise EdgeError(f"{path} holds no number; write that of the release in use") from error


def _tried(machine: Machine) -> tuple[int, int]:
    """Read the serial of the last release that went on trial, and how often it did."""
    try:
        serial, times = (machine.home / "tried").read_text().split()
        return int(serial), int(times)
    except FileNotFoundError:
        return 0, 0
    except ValueError as error:
        raise EdgeError(f"{machine.home / 'tried'} is damaged; delete it") from error


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    sync_folder(path.parent)


def record(
    machine: Machine,
    serial: int | None,
    outcome: str,
    reason: str,
) -> None:
    """Write last.json. serial: None where the release cannot be trusted to have one; outcome:
    committed, rolled-back, refused (what was offered) or failed (what was tried)."""
    content = {
        "schema": OUTCOME,
        "serial": serial,
        "outcome": outcome,
        "reason": reason,
        "time": rfc3339(time.time()),
    }
    _write(machine.home / "last.json", json.dumps(content) + "\n")
    if outcome == "rolled-back":
        machine.went_back.unlink(missing_ok=True)


def record_standing(machine: Machine, serial: int, outcome: str, reason: str) -> None:
    """Record what became of the release on offer, where last.json says anything else: a refusal that
    passed must not stay."""
    try:
        last = json.loads((machine.home / "last.json").read_bytes())
        same, before = (last["serial"], last["outcome"]) == (serial, outcome), str(last["reason"])
    except (OSError, ValueError, TypeError, KeyError):
        same, before = False, ""
    if not same:
        record(machine, serial, outcome, reason)
    elif outcome == "rolled-back" and reason not in before:
        record(machine, serial, outcome, f"{before}; {reason}")


@contextmanager
def alone(machine: Machine) -> Iterator[None]:
    """Hold the lock of edge-update; raises EdgeError where another one is at work."""
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(machine.home / "lock", wait=False))
        except BlockingIOError:
            raise EdgeError("another edge-update is at work; wait for it") from None
        yield


def prove(folder: Path) -> None:
    """Load a bundle and hold it against its known answers; raises EdgeError."""
    settings = Settings(runtime=Runtime(backend="ort", bundle=folder))
    _, student = open_student(settings)
    student.backend.close()


def prove_aside(folder: Path) -> None:
    """Run `prove` in a process of its own: a model that takes all memory, or crashes the runtime, takes
    nothing else with it. Raises Refused."""
    command = [sys.executable, "-I", "-m", "edge.update.run", "--prove", str(folder)]
    done = call(*command, seconds=PROVE_SECONDS)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise Refused(f"the bundle is not fit to serve: {last.removeprefix('edge-update: ')}")


def in_use(machine: Machine) -> tuple[str, str]:
    """Return what the link `bundle` points to, and its bundle's version."""
    if machine.link.exists() and not machine.link.is_symlink():
        raise EdgeError(f"{machine.link} is no link; move it away, the shipped bundle serves then")
    target = os.readlink(machine.link) if machine.link.is_symlink() else str(machine.shipped)
    try:
        return target, sha256((machine.home / target / "bundle.json").read_bytes())[:12]
    except OSError:
        return target, ""


def pending_files(machine: Machine, release: Release) -> list[File]:
    """List those of a release's files that are not in use already."""
    present = {"bundle": in_use(machine)[1], "package": installed()}
    return [file for file in release.files if present[file.kind] != file.version]


def wanted(machine: Machine, release: Release) -> tuple[str, str] | None:
    """Decide whether a release should be taken: None, or what became of it, as outcome and reason.
    Raises Refused for an older one than this node took: whoever replays it wants its faults back."""
    taken, (tried, times) = _number(machine.home / "serial"), _tried(machine)
    if release.serial == taken:
        return "committed", "is in use"
    if release.serial < max(taken, tried):
        raise Refused(
            f"release {release.serial} is older than {max(taken, tried)}, which this node saw; to go "
            f"back to an older program, release it under a higher serial"
        )
    if release.serial == tried and times >= MOST_TRIES:
        return "rolled-back", "is not tried again; waiting for a higher serial"
    return None


def _space(machine: Machine, files: Sequence[File]) -> None:
    needed = SPARE_BYTES + sum(TIMES[file.kind] * file.bytes for file in files)
    free = shutil.disk_usage(machine.home).free
    if free < needed:
        raise EdgeError(
            f"{machine.home} has {free // MIB} MiB free, the release needs {needed // MIB}; make room"
        )


def _stage_bundle(machine: Machine, file: File, archive: Path) -> str:
    """Unpack and prove a bundle in its own folder; returns the link's new target."""
    draft = machine.home / "staging" / "bundle"
    shutil.rmtree(draft, ignore_errors=True)
    unpack(archive, draft)
    prove_aside(draft)
    loaded = load_bundle(draft)
    if not loaded.sha256.startswith(file.version):
        raise Refused(f"{file.name} holds bundle {loaded.sha256[:12]}, not {file.version}")
    sync_folder(draft)
    folder = machine.home / "bundles" / file.version
    folder.parent.mkdir(exist_ok=True)
    if folder.exists():  # of a trial that went back
        shutil.rmtree(folder)
    os.rename(draft, folder)
    sync_folder(folder.parent)
    return f"bundles/{file.version}"


def _stage_package(file: File, path: Path) -> None:
    found = call("dpkg", "--field", str(path), "Package", "Version")
    if found.stdout.split() != ["Package:", "edge-node", "Version:", file.version]:
        raise Refused(f"{file.name} is no package edge-node {file.version}")


def present_package(machine: Machine) -> Path:
    """Find the .deb of what is installed: the way back. Raises EdgeError where it is not kept here."""
    folder, version = machine.home / "packages", installed()
    path = next(iter(sorted(folder.glob(f"edge-node_{version}_*.deb"))), None) if version else None
    if path is None:
        raise EdgeError(
            f"no way back: put edge-node_{version or 'VERSION'}_arm64.deb, as installed, into {folder}"
        )
    # Read to its end, as going back would: by then there is nobody to bring another.
    if call("dpkg-deb", "--contents", str(path), seconds=DPKG_SECONDS).returncode:
        raise EdgeError(f"no way back: {path} is damaged; put it there again, as installed")
    return path


def stage(machine: Machine, server: Server, release: Release, files: Sequence[File]) -> Transition:
    """Download and prove everything; touches nothing that is in use. Raises Refused or EdgeError."""
    staging = machine.home / "staging"
    staging.mkdir(exist_ok=True)
    known = {name for file in files for name in (file.name, f"{file.sha256}.part")}
    for path in staging.iterdir():  # of an earlier release
        if path.name not in known:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    package, bundle = (
        next((file for file in files if file.kind == kind), None) for kind in ("package", "bundle")
    )
    old_package = present_package(machine) if package else None
    _space(machine, files)
    new_package = new_bundle = None
    if package:
        new_package = server.download(package, staging)
        _stage_package(package, new_package)
    if bundle:
        new_bundle = _stage_bundle(machine, bundle, server.download(bundle, staging))
    return Transition(release.serial, old_package, new_package, in_use(machine)[0], new_bundle)


def _tell(release: Release, files: Sequence[File]) -> str:
    parts = [f"{file.kind} {file.version} ({file.bytes / MIB:.1f} MiB)" for file in files]
    return f"release {release.serial}: {', '.join(parts) or 'nothing that is not in use'}"


def finalize(machine: Machine, release: Release, transition: Transition | None) -> None:
    """Remember that the release is in use, and forget what came before the previous one."""
    _write(machine.home / "serial", f"{release.serial}\n")
    record(
        machine, release.serial, "committed", "healthy for a minute" if transition else "was in use"
    )
    if transition:
        prune(machine, transition)
    shutil.rmtree(machine.home / "staging", ignore_errors=True)
    print(f"release {release.serial} is in use", flush=True)


def take(machine: Machine, server: Server, release: Release, files: Sequence[File]) -> None:
    """Install what is new and finalize it. Raises RolledBack, or EdgeError where it never began."""
    if not files:
        finalize(machine, release, None)
        return
    transition = stage(machine, server, release, files)
    if (fault := look().fault) is not None:  # downloads may have taken an hour
        print(f"{fault}: nothing is begun, next time again", flush=True)
        return
    tried, times = _tried(machine)
    times = times + 1 if tried == release.serial else 1
    _write(machine.home / "tried", f"{release.serial} {times}\n")
    if failure := attempt(machine, transition):
        if failure.own:
            times = MOST_TRIES
            _write(machine.home / "tried", f"{release.serial} {times}\n")
        record(machine, release.serial, "rolled-back", failure.reason)
        then = "is tried again" if times < MOST_TRIES else "make one with a higher serial"
        raise RolledBack(
            f"release {release.serial} was rolled back: {failure.reason}; the old one runs, {then}"
        )
    finalize(machine, release, transition)


def offered(machine: Machine, server: Server, key: Path) -> Release:
    """Fetch the release on offer. One that is refused is fetched once more: somebody may be writing
    between release.json and its signature. Raises Refused or EdgeError."""
    try:
        return server.release(key)
    except Refused as error:
        log.warning("%s; looking again in %.0f s", error, AGAIN_SECONDS)
        machine.sleep(AGAIN_SECONDS)
        return server.release(key)


def update(machine: Machine, settings: Settings, check: bool = False) -> None:
    """Ask the server once, and take what is new. check: only say what would be done."""
    u = settings.update
    if u.url is None or u.key is None:
        print("updates are off (update.url in node.yaml)")
        return
    if not plausible(time.time()):
        print(f"the clock says {rfc3339(time.time())}: TLS waits for the time, next time again")
        return
    server = Server(u.url, u.ca, machine.clock)
    try:
        # That the server is away is no outcome: what came of the last release stays in last.json.
        release = offered(machine, server, u.key)
        if standing := wanted(machine, release):
            print(f"release {release.serial} {standing[1]}")
            if not check:
                record_standing(machine, release.serial, *standing)
            return
    except Refused as error:
        if not check:
            record(machine, None, "refused", str(error))
        raise
    try:
        files = pending_files(machine, release)
        if any(file.kind == "bundle" for file in files) and settings.runtime.bundle != machine.link:
            raise EdgeError(f"a new bundle would not be used: set runtime.bundle to {machine.link}")
        print(_tell(release, files), flush=True)
        if files and (fault := look().fault) is not None:
            print(f"{fault}: nothing is begun, next time again")
        elif not check:
            take(machine, server, release, files)
    except (EdgeError, OSError) as error:
        if not check and not isinstance(error, RolledBack):
            outcome = "refused" if isinstance(error, Refused) else "failed"
            record(machine, release.serial, outcome, str(error))
        raise


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-update",
        "Take the school's next signed release; keep it after a healthy minute, else go back.",
        "edge-update --check",
    )
    p.add_argument("--check", action="store_true", help="only say what would be done")
    p.add_argument(
        "--recover", action="store_true", help="go back where a trial was cut short; no more"
    )
    p.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    p.add_argument("--prove", type=Path, help=argparse.SUPPRESS)
    return p


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.prove:
        prove(args.prove)
        return
    cli.start_log()
    machine = Machine(args.root)
    with alone(machine):
        if args.check and machine.trial.is_dir():
            print("a trial was cut short: would go back first")
            return
        if not args.check and (serial := recover(machine)) is not None:
            record(machine, serial or None, "rolled-back", CUT)
            print(f"release {serial or ''}: {CUT}; the old one is back", flush=True)
        if args.recover:
            return
        config = machine.root / "etc/edge-node/node.yaml"
        settings = validate(Settings, read_yaml(config), str(config))
        update(machine, settings, args.check)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-update", run, argv)


if __name__ == "__main__":
    sys.exit(main())

"""`edge-watch`: hear every node; show them in a terminal or on a page, and keep what they count.

`edge-watch NAME ...` runs one of the other commands of the server's side; see COMMANDS.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta, timezone, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from edge.base import cli
from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.base.setting_types import default_state
from edge.base.signals import on_signal
from edge.delivery.credentials import read_password
from edge.delivery.protocol import MEMORY_FILE
from edge.settings import Broker
from edge.watch import ask
from edge.watch.home_assistant import check_home_assistant, home_assistant_option, open_discovery
from edge.watch.lines import json_line, line, printable
from edge.watch.messages import WARN_AT, Message, Refused, read
from edge.watch.minutes import AHEAD, KEEP_MINUTES
from edge.watch.options import broker_options, broker_settings, metrics_option
from edge.watch.password import STRENGTH
from edge.watch.receive import Receiver, Token
from edge.watch.rooms import Rooms
from edge.watch.share import Share, open_store, read_share, recorder_name, share_options
from edge.watch.zones import parse_zone

if TYPE_CHECKING:
    from edge.watch.home_assistant import Discovery
    from edge.watch.lease import Leases
    from edge.watch.record import Recorder
    from edge.watch.store import Store
    from edge.watch.web import Server

log = logging.getLogger(__name__)

COMMANDS = {
    "simulate": ("edge.watch.simulate", "play many nodes, to size a broker and a recorder"),
    "broker": ("edge.watch.broker", "write mosquitto's configuration for a school"),
    "probe-broker": ("edge.watch.probe_broker", "try what the kit leans on at a broker or cluster"),
    "forget": ("edge.watch.forget", "delete what a recorder stored, by age or by room"),
    "retire": ("edge.watch.retire", "take a room that is no more off the page"),
    "export": ("edge.watch.parquet", "stored readings as Parquet files"),
}
COMMANDS |= {name: ("edge.watch.ask", text.short) for name, text in ask.TEXTS.items()}


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-watch",
        "Show what every node of a broker publishes: a table (a line a message where there is no\n"
        "terminal), JSON, or a page; and record it. More commands, each with its own --help:\n"
        + "".join(f"\n  edge-watch {name:<13} {text}" for name, (_, text) in COMMANDS.items()),
        "edge-watch --broker mqtt://192.0.2.10\n"
        "  edge-watch --broker mqtt://192.0.2.10 --record school.sqlite --web 127.0.0.1:8080",
    )
    p.add_argument("command", nargs="?", choices=COMMANDS, metavar="NAME", help="another command")
    broker_options(p)
    p.add_argument("--json", action="store_true", help="one JSON object a message")
    p.add_argument("--lines", action="store_true", help="a line a message, on a terminal too")
    p.add_argument(
        "--record",
        metavar="URL",
        help="store counts, health and status: FILE.sqlite, postgresql://user@host/database",
    )
    p.add_argument("--keep-days", type=float, metavar="N", help="delete older readings; or never")
    share_options(p)
    p.add_argument("--client-id", metavar="NAME", help="of a recorder; each needs its own")
    home_assistant_option(p)
    p.add_argument(
        "--web",
        metavar="[HOST:]PORT",
        help="serve a page of the rooms; on 127.0.0.1 alone where no HOST is given",
    )
    p.add_argument(
        "--web-password-file",
        type=Path,
        metavar="FILE",
        help=f"its first line is the password of the user 'school': {STRENGTH}",
    )
    p.add_argument(
        "--web-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which a proxy or browser asks for the page (Host); may be repeated",
    )
    p.add_argument("--web-certificate", type=Path, metavar="FILE", help="PEM, for https")
    p.add_argument("--web-key", type=Path, metavar="FILE", help="of --web-certificate, PEM")
    p.add_argument(
        "--control-password-file",
        type=Path,
        metavar="FILE",
        help="the page gets buttons that command nodes, for who knows its first line too: as strong as "
        "the page's password, and another one",
    )
    metrics_option(p)
    p.add_argument(
        "--zone",
        metavar="NAME",
        help="in which lines and the page write moments, such as Europe/Berlin; or this machine's own",
    )
    p.add_argument("--max-seconds", type=float, metavar="S", help="stop after so long")
    return p


class MessageRouter:
    """Hands every message to the rooms, the terminal and the recorder."""

    def __init__(self, lines: str, zone: tzinfo = timezone.utc) -> None:
        """lines: "" for none, "text" or "json"; zone: in which text has moments."""
        self.rooms = Rooms()
        self.shown = True  # whether anybody looks at the rooms; a sixth of what a reading costs
        self.recorder: Recorder | None = None
        self.discovery: Discovery | None = None
        self.share = Share()
        self.leases: Leases | None = None
        self.stop = threading.Event()
        self._lines, self._zone = lines, zone

    def take(self, topic: str, raw: bytes, token: Token) -> None:
        """Read one message and hand it on, or count why it is refused."""
        stored = self.share.stores(topic, self.held)
        if self.recorder is not None and not stored:
            self.recorder.pass_over(token)
            if not (self.shown or self._lines):
                return
        message = None
        try:
            message = read(topic, raw)
        except Refused as refusal:
            self.rooms.refuse(str(refusal))
            count = self.rooms.refused[str(refusal)]
            if count in WARN_AT:
                where = printable(topic)[:80]
                log.warning(
                    "refused %s, %d so far: %d bytes on %s", refusal, count, len(raw), where
                )
        if message is not None:
            if self.shown:
                self.rooms.hear(message, utc_now(), token.retained)
            if self._lines:
                self.show(topic, message)
        if self.discovery is not None and stored:
            self.discovery.hear(topic, raw, message)
        if self.recorder is not None and stored:
            self.recorder.take(message, token)

    def lost(self) -> None:
        """Take note that the connection is gone, and with it what comes until the next."""
        self.rooms.doubt(utc_now())
        if self.recorder is not None:
            self.recorder.discard()

    def held(self) -> frozenset[int]:
        """Return the parts whose nodes are stored here now."""
        return frozenset([self.share.part]) if self.leases is None else self.leases.held

    def show(self, topic: str, message: Message) -> None:
        """Print it as a line on stdout. Raises EdgeError where that takes none."""
        try:
            print(
                json_line(topic, message) if self._lines == "json" else line(message, self._zone),
                flush=True,
            )
        except BrokenPipeError:
            self.stop.set()
        except OSError as error:
            raise EdgeError(
                f"stdout takes no line ({error.strerror}); make room there, or send it elsewhere"
            ) from error

    def note(self) -> str:
        """Describe the recorder, for a footer."""
        r = self.recorder
        if r is None:
            return ""
        return r.fault or f"{r.new} readings stored, {r.known} already known{self.twice()}"

    def twice(self) -> str:
        """Say how many readings had a number of another one; "" for none."""
        n = self.recorder.conflicts if self.recorder else 0
        return f", {n} stored apart: their numbers were given twice" if n else ""


def run(argv: Sequence[str] | None = None) -> None:
    command, words = cli.split_command(argv, COMMANDS)
    if command in ask.TEXTS:
        ask.run(command, words)
        return
    if command is not None:
        importlib.import_module(COMMANDS[command][0]).run(words)
        return
    args = build_parser().parse_args(words)
    if args.command is not None:
        raise UsageError(f"{args.command} comes first: edge-watch {args.command} ...")
    settings = broker_settings(args)
    own = args.group or args.client_id or args.name or args.keep_days is not None
    if own and not args.record:
        raise UsageError("--group, --name, --client-id and --keep-days go with --record")
    read_share(args)
    check_home_assistant(args)
    if args.control_password_file and not args.web:
        raise UsageError("--control-password-file goes with --web")
    if args.group and args.web:
        raise UsageError("--group hears a part of the messages: run a page without it")
    quiet = bool(args.record or args.web)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end what shows it.
        sys.stdout.reconfigure(errors="backslashreplace")
    table = sys.stdout.isatty() and not (args.json or args.lines or args.group)
    lines = "json" if args.json else "text" if args.lines or not (table or quiet) else ""
    cli.start_log()
    router = MessageRouter(lines, parse_zone(args.zone)[1])
    on_signal(router.stop.set)
    if args.max_seconds is not None:
        timer = threading.Timer(args.max_seconds, router.stop.set)
        timer.daemon = True
        timer.start()
    watch(args, settings, router, table)


def watch(
    args: argparse.Namespace,
    settings: Broker,
    router: MessageRouter,
    table: bool,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run until router.stop. ready: called after each subscription. Raises what the receiver, the page
    or the recorder could not mend."""
    router.share = read_share(args)
    router.shown = table or bool(args.web or args.metrics)
    keep, store = open_store(args) if args.record else (None, None)
    patient, memory = bool(args.record or args.web), default_state() / MEMORY_FILE
    receiver = Receiver(settings, router.take, keep, patient, memory, router.share.sites)
    if store is not None:
        from edge.watch.housekeeping import Housekeeper
        from edge.watch.lease import Leases
        from edge.watch.record import Recorder

        router.discovery = open_discovery(args.home_assistant, receiver.publish, store)
        router.leases = Leases(store, router.share) if router.share.parts > 1 else None
        name = recorder_name(args, store)
        log.info("answers nodes as recorder %s", name)
        router.recorder = Recorder(
            store, receiver.done, receiver.publish, args.keep_days,
            discovery=router.discovery, leases=router.leases, name=name,
        )  # fmt: skip
        # Else it looks through all libraries' objects again and again: a quarter of a reading's cost.
        gc.freeze()
        gc.set_threshold(20_000)
        Housekeeper(args.record, router.rooms, router.stop).start()
    server = open_page(args, router, receiver, store) if args.web else None
    metrics = None
    if args.metrics:
        from edge.watch.metrics import serve_metrics

        metrics = serve_metrics(args.metrics, receiver, router.rooms, router.recorder)
    if server is None and not table:
        print(f"watching {settings.shown}; Ctrl-C ends", file=sys.stderr, flush=True)
    thread = ReceiverThread(receiver, router, ready)
    thread.start()
    if table or args.web:
        from edge.watch.status_requests import StatusRequests

        StatusRequests(settings, memory, router.rooms, router.stop).start()
    try:
        if table:
            from edge.watch.terminal import show_table

            show_table(router.rooms, lambda: str(receiver.state), router.note, router.stop)
        else:
            while not router.stop.wait(0.2):
                pass
    finally:
        router.stop.set()
        thread.join()
        for opened in (server, metrics):
            if opened is not None:
                opened.close()
        if store is not None:
            store.close()
    if router.recorder is not None:
        stored, known = router.recorder.new, router.recorder.known
        log.info("stored %d readings, %d were known%s", stored, known, router.twice())
    if thread.failure is not None:
        raise thread.failure


class ReceiverThread(threading.Thread):
    """Runs the receiver until router.stop, and sets it where the receiver ends by itself."""

    def __init__(
        self, receiver: Receiver, router: MessageRouter, ready: Callable[[], None]
    ) -> None:
        super().__init__(name="receiver")
        self._receiver, self._router, self._ready = receiver, router, ready
        self.failure: EdgeError | None = EdgeError("the receiver stopped; its error stands above")

    def run(self) -> None:
        stop, recorder = self._router.stop, self._router.recorder
        try:
            if recorder is None:
                self._receiver.run(stop, subscribed=self._ready, lost=self._router.lost)
            else:
                self._receiver.run(
                    stop, recorder.flush_due, self._ready, self._router.lost, recorder.flush
                )
            self.failure = None
        except EdgeError as error:
            self.failure = error
        finally:
            # Also after a fault of ours: a process that hears nothing must not look alive.
            stop.set()


def open_page(
    args: argparse.Namespace, router: MessageRouter, receiver: Receiver, store: Store | None
) -> Server:
    """Serve the page, with what the store holds. Raises UsageError or EdgeError."""
    from edge.watch.control import open_control
    from edge.watch.history import History
    from edge.watch.web import Server, parse_address

    password = read_password(args.web_password_file, "--web-password-file")
    address = parse_address(args.web, password, args.web_certificate, args.web_key, args.web_host)
    tls = address.certificate is not None
    control = open_control(args, router.rooms, address.password, tls, address.names)
    history = History(args.record) if store is not None else None
    server = Server(
        router.rooms,
        lambda: f"{receiver.state}{router.twice()}",
        address,
        control=control,
        zone=parse_zone(args.zone)[0],
        history=history,
    )
    server.start()
    if store is not None:
        remember(router, store)
    print(f"the page is at {address.url}; Ctrl-C ends", file=sys.stderr, flush=True)
    return server


def remember(router: MessageRouter, store: Store) -> threading.Thread | None:
    """Show the last hours too, recorded before this start, in a thread beside what comes: hours of many
    rooms take longer than a start should. A database that is away is the recorder's to report."""
    from edge.watch.database import StoreError

    def read_back() -> None:
        now, step = utc_now(), timedelta(minutes=1)
        end = now + AHEAD
        try:
            # Minute by minute: who reads for long keeps what is deleted meanwhile in the journal.
            while end > now - timedelta(minutes=KEEP_MINUTES) and not router.stop.is_set():
                for row in store.recent(end - step, end):
                    router.rooms.remember(row, now)
                end -= step
        except StoreError as error:
            log.warning("%s; the page shows not all that was recorded", error)

    try:
        store.migrate()
    except StoreError as error:
        log.warning("%s; the page starts without what was recorded", error)
        return None
    thread = threading.Thread(target=read_back, name="memory", daemon=True)
    thread.start()
    return thread


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-watch", run, argv)


if __name__ == "__main__":
    sys.exit(main())

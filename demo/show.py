"""What `make demo` shows: a broker, the node on the clip, a recorder, a page, and what arrives.

BROKER=mqtt://host   use this broker instead of the embedded one
DEMO_SECONDS=60      end after so long (elsewhere than on a terminal: after the clip)
DEMO_PAGE=8080       port of the page; default: a free one
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edge.base.errors import BrokerError, EdgeError, UsageError
from edge.base.signals import on_signal
from edge.delivery.messages import Counts, as_dict, dumps
from edge.run import NOTICE
from edge.watch.lines import line
from edge.watch.messages import Message
from edge.watch.options import broker_settings
from edge.watch.run import MessageRouter, build_parser, watch

CLIP = Path(__file__).with_name("classroom.mp4")
WINDOW_SECONDS = "5"
START_SECONDS = 20.0
OVER = threading.Event()  # Ctrl-C


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(port: int) -> None:
    """Start an embedded broker in a thread of its own; it speaks MQTT 3.1.1."""
    import logging

    from amqtt.broker import Broker as Embedded

    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    # A client that leaves because MQTT 5 is not spoken here is a traceback to it.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def serve() -> None:
        broker = Embedded(settings)
        await broker.start()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not OVER.is_set():
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    if OVER.is_set():
        return
    raise BrokerError("the embedded broker did not start; set BROKER=mqtt://host to use another")


class DemoRouter(MessageRouter):
    """A line a message, cut to the terminal, and the last counts whole."""

    def __init__(self) -> None:
        super().__init__("text")
        self.ready = threading.Event()
        self.counts = ""

    def show(self, topic: str, message: Message) -> None:
        m = message.payload
        # A small group's message has no counts to show.
        if isinstance(m, Counts) and (m.counts is not None or not self.counts):
            self.counts = dumps(as_dict(m))
        columns, text = shutil.get_terminal_size((80, 24)).columns, line(message)
        print(text if len(text) <= columns else text[: columns - 3] + "...", flush=True)


def seconds_given() -> float:
    try:
        return float(os.environ.get("DEMO_SECONDS") or 0)
    except ValueError:
        raise UsageError("DEMO_SECONDS must be a number of seconds") from None


def play(url: str, state: str, seconds: float) -> None:
    """Run the node on the clip, again and again on a terminal, until OVER. Raises EdgeError where it
    fails."""
    stay = sys.stdout.isatty() or seconds > 0
    deadline = time.monotonic() + seconds if seconds else float("inf")
    command = [sys.executable, "-m", "edge.run", "--camera", str(CLIP), "--broker", url]
    command += ["--window", WINDOW_SECONDS]
    print(f"$ edge-run --camera demo/{CLIP.name} --broker {url} --window {WINDOW_SECONDS}\n")
    env = {**os.environ, "XDG_STATE_HOME": state}
    node = start_node(command, env, None)
    while True:
        while node.poll() is None and time.monotonic() < deadline and not OVER.wait(0.1):
            pass
        if node.poll() is None:
            node.terminate()
            node.wait(timeout=60)
        elif node.returncode and not OVER.is_set():
            raise EdgeError(
                f"the node ended with exit code {node.returncode}; its last line says why"
            )
        if not stay or OVER.is_set() or time.monotonic() >= deadline:
            return
        print("\nthe clip is over; again in 3 s (Ctrl-C ends)\n", flush=True)
        if OVER.wait(max(min(3.0, deadline - time.monotonic()), 0)) or time.monotonic() >= deadline:
            return
        node = start_node(command, env, subprocess.PIPE)
        threading.Thread(target=repeat_stderr, args=(node.stderr,), daemon=True).start()


def start_node(
    command: list[str], env: dict[str, str], stderr: int | None
) -> subprocess.Popen[str]:
    """Start one in a session of its own: Ctrl-C is the demo's, which ends it by SIGTERM, quiet at any
    moment. Its lines for people are left out: the subscriber's stand here."""
    return subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def repeat_stderr(lines: IO[str] | None) -> None:
    """Say what a node says, but for the law's notice, which was read when the first one began."""
    for text in lines or ():
        if text.rstrip("\n") != NOTICE:
            print(text, end="", file=sys.stderr, flush=True)


def demo() -> None:
    url = os.environ.get("BROKER", "")
    seconds = seconds_given()
    if not url:
        port = free_port()
        start_broker(port)
        url = f"mqtt://127.0.0.1:{port}"
        print(f"embedded broker at {url}", flush=True)
    page = os.environ.get("DEMO_PAGE") or str(free_port())
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as state:
        record = str(Path(state) / "demo.sqlite")
        args = build_parser().parse_args(
            ["--broker", url, "--record", record, "--web", f"127.0.0.1:{page}"]
        )
        router, failed = DemoRouter(), []

        def school() -> None:
            try:
                watch(args, broker_settings(args), router, table=False, ready=router.ready.set)
            except EdgeError as error:
                failed.append(error)
                router.ready.set()

        server = threading.Thread(target=school)
        server.start()
        try:
            deadline = time.monotonic() + START_SECONDS
            while not router.ready.wait(0.1) and time.monotonic() < deadline:
                if OVER.is_set():
                    return
            if not router.ready.is_set() or failed:
                raise failed[0] if failed else BrokerError(f"no answer from {url}")
            if not OVER.is_set():
                play(url, state, seconds)
                time.sleep(0.5)
        finally:
            router.stop.set()
            server.join()
        if failed:
            raise failed[0]
        note = router.note()
    if OVER.is_set() and not router.counts:
        return
    if not router.counts:
        raise EdgeError("no counts arrived; run it again, and report it if that repeats")
    print(f"\nrecorder: {note}\na message on .../counts, whole:\n{router.counts}")


def main(stop: Sequence[signal.Signals]) -> int:
    """Show the demo; return its exit code. stop: signals that end it in order."""
    on_signal(OVER.set, stop)
    try:
        demo()
        sys.stdout.flush()
    except EdgeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    return 0

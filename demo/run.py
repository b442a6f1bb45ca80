"""`make demo`: a broker, the node on the demo clip, and what a subscriber receives.

BROKER=mqtt://host   use this broker instead of the embedded one
DEMO_SECONDS=60      end after so long (elsewhere than on a terminal: after the clip)
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from edge.errors import BrokerError, EdgeError, UsageError
from edge.settings import Broker, Settings
from edge.strict import validate
from edge.watch.terminal import line, watch

CLIP = Path(__file__).with_name("classroom.mp4")
WINDOW_SECONDS = "5"
START_SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(port: int) -> None:
    """An embedded broker in a thread of its own; it speaks MQTT 3.1.1."""
    import logging

    from amqtt.broker import Broker as Embedded

    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
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
    while time.monotonic() < deadline:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise BrokerError("the embedded broker did not start; set BROKER=mqtt://host to use another")


def show(topic: str, raw: bytes) -> None:
    text = line(topic, raw, as_json=False)
    if text is not None:
        columns = shutil.get_terminal_size((80, 24)).columns
        print(text if len(text) <= columns else text[: columns - 3] + "...", flush=True)


def keep_counts(topic: str, raw: bytes, kept: list[str]) -> None:
    """Remember the last message that has counts: one of a small group has none to show."""
    if topic.endswith("/counts") and (not kept or json.loads(raw)["counts"] is not None):
        kept[:] = [raw.decode()]


def demo() -> None:
    url = os.environ.get("BROKER", "")
    if not url:
        port = free_port()
        start_broker(port)
        url = f"mqtt://127.0.0.1:{port}"
        print(f"embedded broker at {url}", flush=True)
    settings: Broker = validate(Settings, {"broker": {"url": url}}, "BROKER").broker
    stop, ready = threading.Event(), threading.Event()
    kept: list[str] = []

    def both(topic: str, raw: bytes) -> None:
        keep_counts(topic, raw, kept)
        show(topic, raw)

    failed: list[EdgeError] = []

    def subscribe() -> None:
        try:
            watch(settings, both, stop, lambda _: ready.set())
        except EdgeError as error:
            failed.append(error)
            ready.set()

    watcher = threading.Thread(target=subscribe, daemon=True)
    watcher.start()
    if not ready.wait(START_SECONDS) or failed:
        raise failed[0] if failed else BrokerError(f"no answer from {url}")
    try:
        seconds = float(os.environ.get("DEMO_SECONDS") or 0)
    except ValueError:
        raise UsageError("DEMO_SECONDS must be a number of seconds") from None
    stay = sys.stdout.isatty() or seconds > 0
    deadline = time.monotonic() + seconds if seconds else float("inf")
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as state:
        command = [sys.executable, "-m", "edge.run", "--camera", str(CLIP), "--broker", url]
        command += ["--window", WINDOW_SECONDS]
        print(f"$ edge-run --camera demo/{CLIP.name} --broker {url} --window {WINDOW_SECONDS}\n")
        while True:
            node = subprocess.Popen(command, env={**os.environ, "XDG_STATE_HOME": state})
            try:
                code = node.wait(timeout=max(deadline - time.monotonic(), 0.1) if seconds else None)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
                node.terminate()
                node.wait(timeout=60)
                if isinstance(reason, KeyboardInterrupt):
                    break
                code = 0
            if code:
                raise EdgeError(f"the node ended with exit code {code}; its last line says why")
            if not stay or time.monotonic() >= deadline:
                break
            print("\nthe clip is over; again in 3 s (Ctrl-C ends)\n", flush=True)
            try:
                time.sleep(min(3.0, max(deadline - time.monotonic(), 0)))
            except KeyboardInterrupt:
                break
            if time.monotonic() >= deadline:
                break
        time.sleep(0.5)
    stop.set()
    watcher.join(timeout=3)
    if not kept:
        raise EdgeError("no counts arrived; run it again, and report it if that repeats")
    print(f"\na message on .../counts, whole:\n{kept[0]}")


if __name__ == "__main__":
    try:
        demo()
    except EdgeError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(0)

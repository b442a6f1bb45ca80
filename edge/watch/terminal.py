"""`edge-watch`: what the nodes say, a line a message."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from edge import cli
from edge.broker import Address, mqtt_library, new_client, read_password, secure, tls_context
from edge.errors import BrokerError, UsageError
from edge.payload import PREFIX
from edge.settings import Broker, Settings
from edge.strict import validate

LARGEST_PAYLOAD = 64 * 1024


def printable(text: object) -> str:
    """Text of a message without control, format and surrogate characters: a node must not steer a
    terminal, nor turn its writing around."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(text))


def describe(kind: str, payload: dict[str, Any]) -> str:
    """One message in words."""
    if kind == "counts":
        faces, counts = payload.get("faces"), payload.get("counts")
        if faces is None:
            return f"nothing seen ({payload.get('quality', {}).get('camera')})"
        if counts is None:
            return f"{faces} people: too few to count"
        shown = "  ".join(f"{label} {n}" for label, n in counts.items() if n)
        return f"{faces.get('mean'):g} people  {shown or 'nobody'}"
    if kind == "status":
        return f"{payload.get('state')} {payload.get('reason') or ''}".strip()
    if kind == "info":
        model = payload.get("model", {})
        return (
            f"{model.get('backend')} {model.get('precision')}, window "
            f"{payload.get('window_seconds'):g} s, groups of {payload['privacy']['min_group']} or more"
        )
    if kind == "health":
        detect = payload.get("stages", {}).get("detect", {}).get("p50_ms")
        return (
            f"{payload.get('frames_per_second')} frames/s, detector {detect} ms, "
            f"{payload.get('temperature_celsius')} C, {payload.get('outbox_pending')} waiting"
        )
    return ""


def line(topic: str, raw: bytes, as_json: bool) -> str | None:
    """A message as one line, or None where it is not one of ours."""
    match = re.fullmatch(rf"{PREFIX}/([a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+)/(\w+)", topic)
    if match is None or len(raw) > LARGEST_PAYLOAD:
        return None
    node, kind = match.groups()
    try:
        payload = json.loads(raw)
        if payload.get("node") != node or not str(payload.get("schema")).startswith(
            f"edge.{kind}/"
        ):
            return None
        if as_json:
            return json.dumps({"topic": topic, "payload": payload}, separators=(",", ":"))
        moment = payload.get("end") if kind == "counts" else payload.get("time")
        when = str(moment or "")[11:19] or "--:--:--"
        return printable(f"{when} {node} {kind:<6} {describe(kind, payload)}")
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return None


def watch(
    settings: Broker,
    show: Callable[[str, bytes], None],
    stop: threading.Event,
    connected: Callable[[str], None] = lambda words: None,
) -> None:
    """Subscribe to every node and hand each message to `show` until `stop`.

    MQTT 5, then 3.1.1. Goes on after a loss; raises BrokerError where the first connection fails.
    """
    mqtt = mqtt_library()
    address = Address(settings.url)
    context = tls_context(settings.tls) if address.secure else None
    password = read_password(settings.password_file)
    was_up = False
    reason = "no answer"
    versions = [mqtt.MQTTv5, mqtt.MQTTv311]
    while not stop.is_set():
        client = new_client(mqtt, settings, "", versions[0])
        secure(client, settings, password, context)
        heard: list[Any] = []

        def on_connect(c: Any, u: Any, f: Any, code: Any, p: Any, heard: list[Any] = heard) -> None:
            heard.append(code)
            if not code.is_failure:
                c.subscribe(f"{PREFIX}/#", qos=1)
                connected(settings.url)

        client.on_connect = on_connect
        client.on_message = lambda c, u, message: show(message.topic, message.payload)
        try:
            client.connect(address.host, address.port, keepalive=settings.keepalive_seconds)
            while not stop.is_set() and client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
                if heard and heard[0].is_failure:
                    break
            client.disconnect()
        except OSError as error:
            reason, heard = f"{error.strerror or error}", []
        if heard and not heard[0].is_failure:
            was_up = True
        elif heard:
            reason = str(heard[0])
        if not was_up:
            versions.pop(0)
            version_refused = not heard or "protocol version" in reason.lower()
            if not versions or not version_refused:
                raise BrokerError(f"broker {settings.url}: {reason}; check address and user")
        else:
            stop.wait(1.0)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-watch",
        "Show what every node of a broker publishes: counts, status, info, health.",
        "edge-watch --broker mqtt://192.0.2.10",
    )
    p.add_argument("--broker", default="mqtt://127.0.0.1", metavar="URL")
    p.add_argument("--json", action="store_true", help="one JSON object a message")
    p.add_argument("--username")
    p.add_argument("--password-file", metavar="FILE")
    p.add_argument("--ca", metavar="FILE", help="the site's authority, PEM")
    p.add_argument("--certificate", metavar="FILE")
    p.add_argument("--key", metavar="FILE")
    p.add_argument("--max-seconds", type=float, metavar="S", help="stop after so long")
    args = p.parse_args(argv)
    broker = {"url": args.broker, "username": args.username, "password_file": args.password_file}
    tls = {"ca": args.ca, "certificate": args.certificate, "key": args.key}
    settings = validate(Settings, {"broker": {**broker, "tls": tls}}, "options").broker
    if settings.url == "-":
        raise UsageError("--broker must be an address, mqtt://host[:port] or mqtts://host[:port]")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if args.max_seconds is not None:
        timer = threading.Timer(args.max_seconds, stop.set)
        timer.daemon = True
        timer.start()

    def show(topic: str, raw: bytes) -> None:
        text = line(topic, raw, args.json)
        if text is None:
            print(f"passed over {len(raw)} bytes on {printable(topic)[:80]}", file=sys.stderr)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            stop.set()

    watch(settings, show, stop, lambda url: print(f"watching {url}; Ctrl-C ends", file=sys.stderr))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-watch", run, argv)


if __name__ == "__main__":
    sys.exit(main())

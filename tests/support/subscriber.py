"""What a school's server would hear from nodes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt

from support.patience import PATIENCE, wait_for


class Subscriber:
    """A subscriber of its own, on MQTT 5."""

    def __init__(self, port: int, **login: str) -> None:
        self.messages: list[tuple[str, dict[str, Any], bool]] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        ready = threading.Event()
        self._client.on_connect = lambda c, u, f, reason, p: c.subscribe("edge/#", qos=1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._on_message
        if login:
            self._client.username_pw_set(**login)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert ready.wait(PATIENCE)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        with contextlib.suppress(ValueError):  # what others write into `ack`, on purpose
            self.messages.append((message.topic, json.loads(message.payload), message.retain))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [payload for topic, payload, _ in self.messages if topic.endswith(f"/{kind}")]

    def wait_for(self, condition: Callable[[], object]) -> None:
        wait_for(condition, lambda: [topic for topic, _, _ in self.messages])

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

"""When a message leaves tells nothing of what a picture took."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge.base.clock import rfc3339
from edge.delivery.messages import Outgoing
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.settings import Broker


def test_messages_and_commands_move_at_instants_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the node's loop did in between: an answer's delay would tell what a picture took."""
    box = Outbox(tmp_path / "box.sqlite")
    will = Outgoing("status", {"node": "a/b/c"}, retain=True)
    publisher = MqttPublisher(Broker(url="mqtt://127.0.0.1:1"), "c", will, box)
    sent: list[str] = []
    monkeypatch.setattr(
        publisher, "_publish", lambda client, message, *a: sent.append(message.kind)
    )
    client: Any = None

    def at(moment: float) -> list[str]:
        monkeypatch.setattr("edge.delivery.publisher.time.time", lambda: moment)
        publisher._offer(client)
        said = list(sent)
        sent.clear()
        return said

    publisher._listen_until = 0.0
    at(100.0)
    message = SimpleNamespace(topic="edge/v1/a/b/c/cmd/report", payload=b"{}", retain=False)
    publisher._on_message(client, None, cast(Any, message))
    publisher.send(Outgoing("health", {"node": "a/b/c"}, retain=False))
    box.append({"node": "a/b/c", "end": rfc3339(100.0), "time_base": "utc", "window_seconds": 1.0})
    assert [at(moment) for moment in (100.01, 100.2, 100.499)] == [[], [], []]
    assert not publisher.commands
    assert at(100.5) == ["health", "counts"]
    assert list(publisher.commands) == [("report", b"{}", False)]
    publisher.send(Outgoing("health", {"node": "a/b/c"}, retain=False))
    assert at(100.9) == []
    publisher._stop.set()
    assert at(100.91) == ["health"], "an end does not wait"
    box.close()

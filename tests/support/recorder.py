"""A recorder that is given thousands of messages with absurd fields."""

from __future__ import annotations

import gc
import tracemalloc

from edge.delivery.messages import Counts
from edge.watch.lines import json_line, line
from edge.watch.messages import Message
from edge.watch.receive import Token
from edge.watch.record import BATCH, BATCH_SECONDS, Recorder
from edge.watch.run import MessageRouter
from edge.watch.store import Store
from support.clock import Clock
from support.mutated import mutated

MOST_GROWTH = 4 * 2**20  # bytes, while the last quarter of the messages comes
WATCHED = ["counts", "status", "info", "health"]


def survives_mutated_messages(database: str, number: int, seed: int) -> None:
    """Acknowledge every message, store every valid reading (nine of ten at least: some differ in what
    no column holds), raise nothing, and hold no more memory for more of them."""
    store, clock = Store(database), Clock()
    done: list[int] = []
    valid: set[int] = set()

    class Router(MessageRouter):
        def show(self, topic: str, message: Message) -> None:
            assert "\n" not in line(message)
            assert json_line(topic, message)
            if isinstance(message.payload, Counts):
                valid.add(hash(message.payload.model_dump_json(exclude={"historical", "min_cell"})))

    router = Router("text")
    router.recorder = recorder = Recorder(
        store, lambda token: done.append(token.mid), lambda topic, text: None, 30.0, clock
    )
    for mid, (topic, raw) in enumerate(mutated(number, seed, WATCHED)):
        router.take(topic, raw, Token(None, mid, 1, retained=mid % 7 == 0))
        if mid % BATCH == 0 or mid == number - 1:
            clock.now += BATCH_SECONDS
            recorder.flush_due()
            assert not recorder.fault, recorder.fault
        if mid == 3 * number // 4:  # tracing makes all else three times as slow
            gc.collect()
            tracemalloc.start()
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done == list(range(number))
    assert recorder.refused == 0
    assert 0.9 * len(valid) <= recorder.new <= len(valid), "each once"
    assert len(valid) > number / 40
    assert grown < MOST_GROWTH
    store.close()

"""Thousands of messages with fields as no node would send them, through what hears nodes."""

from __future__ import annotations

from collections import Counter

import pytest

from edge.delivery.messages import MESSAGES
from edge.watch.messages import Refused, read
from support.mutated import bases, fields, mutated
from support.recorder import survives_mutated_messages


def test_every_field_of_every_schema_has_its_turn() -> None:
    by_schema = {base["schema"].split("/")[0]: kind for kind, (base, *_) in bases().items()}
    for model in MESSAGES:
        kind = by_schema[model.model_fields["schema_"].default.split("/")[0]]
        names = {field.alias or name for name, field in model.model_fields.items()}
        changed = {way[0] for way in fields(kind)}
        assert names <= changed, f"{kind}: support/heard.py lacks {names - changed}"


@pytest.mark.parametrize("kind", ["counts", "status", "info", "health"])
def test_many_mutated_messages_are_valid_and_many_are_refused(kind: str) -> None:
    found: Counter[bool] = Counter()
    for topic, raw in mutated(1000, only=[kind]):
        try:
            found[read(topic, raw) is not None] += 1
        except Refused:
            found[False] += 1
    assert min(found[True], found[False]) > 100, found


@pytest.mark.slow
def test_a_recorder_survives_thousands_of_mutated_messages(database: str) -> None:
    survives_mutated_messages(database, 3000, seed=1)

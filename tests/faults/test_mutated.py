"""Twenty thousand messages with fields as no node would send them, through a recorder."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recorder import survives_mutated_messages

pytestmark = pytest.mark.faults


def test_a_recorder_survives_twenty_thousand_mutated_messages(tmp_path: Path) -> None:
    survives_mutated_messages(str(tmp_path / "x.sqlite"), 20_000, seed=0)

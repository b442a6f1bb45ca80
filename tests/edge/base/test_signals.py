"""Signals that come while the one before is still being answered."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.patience import PATIENCE

# A flood of two signals into a process that waits, as a node does, and an order that a person gave.
FLOOD = """
import os, signal, subprocess, threading
from edge.base.signals import on_signal
stop, force = threading.Event(), threading.Event()
on_signal(lambda: (force if stop.is_set() else stop).set())
kill = f"kill -INT {os.getpid()}; kill -TERM {os.getpid()}"
flood = subprocess.Popen(["sh", "-c", f"i=0; while [ $i -lt 20000 ]; do {kill}; i=$((i+1)); done"])
while flood.poll() is None:
    stop.wait(0.01)
    stop.is_set()
    force.wait(0.01)
flood.wait()
print(stop.is_set(), force.is_set())
"""


@pytest.mark.process
def test_signals_within_signals_are_answered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True True\n", "", 0)


def test_no_handler_takes_a_lock() -> None:
    """signal.signal with code of ours stands where it is known to be safe, and nowhere else."""
    allowed = {"edge/base/signals.py", "demo/run.py"}
    found = set()
    for folder in ("edge", "distill", "export", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            if re.search(r"signal\.signal\((?!number, signal\.SIG_)", path.read_text()):
                found.add(str(path.relative_to(ROOT)))
    assert found == allowed

"""The whole pipe on the demo clip as JSON lines, without ids, times and measured latencies.

python tests/support/golden.py     # writes golden/classroom.jsonl again, after a wanted change
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "classroom.jsonl"
OPTIONS = ["--camera", "demo/classroom.mp4", "--broker", "-", "--window", "2", "--min-group", "1"]
# What changes from run to run, or with the versions on the machine.
VARIES = {"session", "log", "time", "start", "end", "clock_synced", "versions", "node", "fallback"}
MEASURED = {"stages", "uptime_seconds", "temperature_celsius", "memory_mib", "throttled"}
# Changes with every export of the bundle, and says nothing about the pipe.
VARIES |= {"bundle_sha256"}


def normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: normal(v) for k, v in value.items() if k not in VARIES | MEASURED}
    return [normal(v) for v in value] if isinstance(value, list) else value


def lines(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        message = json.loads(line)
        message["topic"] = message["topic"].rsplit("/", 1)[1]
        found.append(normal(message))
    return found


def run(state: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edge.run", *OPTIONS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "XDG_STATE_HOME": state},
    )
    return done.stdout


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("".join(json.dumps(m) + "\n" for m in lines(run("/tmp/golden-state"))))

"""`make demo` as its reader ends it: by Ctrl-C, at any moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from support.command import run_script
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

# From the interpreter's start over the imports and the node's model to the clip; seconds.
MOMENTS = (0.0, 0.02, 0.05, 0.2, 1.0, 3.0, 6.0)


def recipe() -> str:
    """The shell's line of `make demo`, with the Python of the tests."""
    found = re.search(r"^demo:.*\n\t@(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert found is not None
    return found[1].replace("$$", "$").replace(".venv-node/bin/python", sys.executable)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_the_demo_quietly_at_any_moment(
    moment: float, tmp_path: Path, detector_file: Path
) -> None:
    with tempfile.TemporaryFile("w+") as said:
        demo = subprocess.Popen(
            ["sh", "-c", recipe()],
            stdout=said,
            stderr=said,
            cwd=ROOT,
            env={**os.environ, "DEMO_SECONDS": "600", "TMPDIR": str(tmp_path)},
            start_new_session=True,
            # Who runs in the background of a script has Ctrl-C ignored, and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        # The shell has read its line, and minds the signal, once it has started what it waits for.
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children")
        wait_for(children.read_text, "the demo itself", every=0.001)
        time.sleep(moment)
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(timeout=PATIENCE) == 0
        said.seek(0)
        text = said.read()
    assert not re.search("Traceback|[Ee]rror|Terminated|Interrupt", text), text
    assert not list(tmp_path.glob("edge-demo-*"))


@pytest.mark.process
def test_without_its_extra_the_demo_names_it(tmp_path: Path) -> None:
    (tmp_path / "amqtt.py").write_text("raise ModuleNotFoundError('not here', name='amqtt')\n")
    done = run_script("demo/run.py", {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    line = "demo: amqtt is not installed; install the 'demo' extra: pip install '.[demo]'\n"
    assert (done.code, done.err) == (1, line)

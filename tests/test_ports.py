"""A port that a test is given is nobody else's."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from support.paths import ROOT
from support.ports import KERNELS, free_port, reserve

OTHER = """
import sys
sys.path.insert(0, "tests")
from support.ports import reserve
print(reserve(int(sys.argv[1])))
"""


def test_the_kernel_gives_it_to_nobody_and_each_is_given_once() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    with ExitStack() as stack:
        for _ in range(200):
            made = stack.enter_context(socket.socket())
            made.bind(("127.0.0.1", 0))
            assert made.getsockname()[1] >= KERNELS > max(ports)


@pytest.mark.process
def test_another_process_is_not_given_it_while_this_one_lives() -> None:
    port = free_port()
    assert not reserve(port)
    command = [sys.executable, "-c", OTHER, str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr

"""A command of the kit, called in this process or started as a user would, and what it left behind."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType

import cv2
import pytest

from support.paths import ROOT
from support.patience import PATIENCE

LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The one line that a user reads."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def call(module: str, *args: object, env: Mapping[str, str], timeout: float = 3 * PATIENCE) -> Done:
    """Call `main(ARGS)` of a command's module in this process.

    Every start of a process costs seconds of imports. What a process would keep to itself is put
    back afterwards: environment, folder, both outputs, signal and log handlers. An error that no
    `except` of the command's caught fails the test by itself.

    Args:
        timeout: seconds; the test fails after them.
    """

    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{module} did not end within {timeout} s")

    words = list(map(str, args))
    main = importlib.import_module(module).main
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _put_back(), _into(out.fileno(), err.fileno()):
            os.environ.update(env)
            os.chdir(ROOT)
            sys.argv = [module, *words]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, timeout)
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return _checked(Done(code, *texts))


def start(
    module: str, *args: object, env: Mapping[str, str], timeout: float = 3 * PATIENCE
) -> Done:
    """Run `python -m MODULE ARGS` as a user would and wait for its end."""
    return _process("-m", module, *args, env=env, timeout=timeout)


def run_script(path: str, env: Mapping[str, str], timeout: float = PATIENCE) -> Done:
    """Start one of the repository's scripts, by its path from the root."""
    return _process(path, env=env, timeout=timeout)


def _process(*words: object, env: Mapping[str, str], timeout: float) -> Done:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, **env},
    )
    return _checked(Done(done.returncode, done.stdout, done.stderr))


def _checked(done: Done) -> Done:
    assert "Traceback" not in done.err, done.err
    return done


@contextlib.contextmanager
def _into(out: int, err: int) -> Iterator[None]:
    """Lead both outputs into files, of Python and of the libraries in C, as a pipe would."""
    kept, streams = [os.dup(1), os.dup(2)], (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """Restore what a process has one of."""
    root, environment, folder, argv = logging.getLogger(), dict(os.environ), os.getcwd(), sys.argv
    handlers, level, names = root.handlers, root.level, [logging.getLevelName(n) for n in LEVELS]
    signals = {number: signal.getsignal(number) for number in SIGNALS}
    threads, hook = cv2.getNumThreads(), threading.excepthook
    # A process has none until the command adds its own, and tells of a thread that died.
    root.handlers, threading.excepthook = [], threading.__excepthook__
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in signals.items():
            signal.signal(number, handler)
        cv2.setNumThreads(threads)
        root.handlers, threading.excepthook, sys.argv = handlers, hook, argv
        root.setLevel(level)
        for number, name in zip(LEVELS, names, strict=True):
            logging.addLevelName(number, name)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)

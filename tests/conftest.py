"""Fixtures of all packages' tests: the detector's weights, a real broker, a command, tiny data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import edge  # noqa: F401  (sets what OpenCV reads when it is loaded)

# Before the libraries read it: tiny networks on a busy machine, where a second thread only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import hypothesis
import numpy as np
import pytest

from edge.base.errors import WeightsError
from edge.inference.weights import resolve
from support import layers
from support.brokers import Mosquitto
from support.command import Done, call, start
from support.once import once
from support.patience import PATIENCE
from support.postgres import Postgres

# No limit on one example's time: the machine may do other things.
hypothesis.settings.register_profile("full", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
hypothesis.settings.load_profile("full")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layers.mark(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    layers.guard(item)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    layers.guard(None)  # a session's fixture may end within any test
    return (yield)


@pytest.fixture(scope="session")
def detector_file() -> Path:
    """The detector's weights, fetched once into the user's cache."""
    try:
        return resolve("yunet")
    except WeightsError as error:
        pytest.skip(f"needs the detector's weights: {error}")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Done]:
    """Call a command's `main(ARGS)` in this process, with a state folder of its own."""

    def run(module: str, *args: object, timeout: float = 3 * PATIENCE, **env: str) -> Done:
        state = str(tmp_path / "state")
        return call(module, *args, timeout=timeout, env={"XDG_STATE_HOME": state, **env})

    return run


@pytest.fixture
def process_command(tmp_path: Path) -> Callable[..., Done]:
    """Run `python -m MODULE ARGS` as a user would, with a state folder of its own."""

    def run(module: str, *args: object, timeout: float = 3 * PATIENCE, **env: str) -> Done:
        state = str(tmp_path / "state")
        return start(module, *args, timeout=timeout, env={"XDG_STATE_HOME": state, **env})

    return run


@pytest.fixture(scope="session")
def clip_run(detector_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Run `edge-run` on the demo clip as a user would, once for all who ask the same."""

    def run(*options: object) -> Done:
        words = ["--camera", "demo/classroom.mp4", "--broker", "-", *map(str, options)]

        def make(folder: Path) -> None:
            done = start("edge.run", *words, env={"XDG_STATE_HOME": str(folder)})
            assert not list(folder.rglob("*.sqlite*")), "a delivered file leaves no outbox"
            (folder / "done.json").write_text(json.dumps(asdict(done)))

        name = re.sub(r"[^a-z0-9]+", "-", "clip " + " ".join(words[4:]))
        return Done(**json.loads((once(tmp_path_factory, name, make) / "done.json").read_text()))

    return run


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """A 48x48 grey blob: bright above or below the middle, by class."""
    y = np.arange(48)[:, None] * np.ones((1, 48))
    slope = (y - 24) * (3 if label else -3)
    return (128 + slope + rng.normal(0, 25, (48, 48))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_ferplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in FER+'s layout, of two classes that a network can tell apart."""
    root = tmp_path_factory.mktemp("tiny") / "ferplus"
    rng = np.random.default_rng(0)
    for split, size in (("Train", 640), ("Valid", 60), ("Test", 60)):
        folder = root / f"FER2013{split}"
        folder.mkdir(parents=True)
        rows = []
        for i in range(size):
            label = i % 2
            name = f"{split.lower()}{i:05d}.png"
            cv2.imwrite(str(folder / name), draw(label, rng))
            votes = [8, 1] if label == 0 else [1, 8]
            rows.append(f'{name},"(0, 0, 48, 48)",{",".join(map(str, votes + [0] * 7 + [1]))}\n')
        (folder / "label.csv").write_text("".join(rows))
    return root


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    made = Postgres()
    yield made
    made.remove()

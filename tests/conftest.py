"""Fixtures of all packages' tests: the detector's weights, a real broker, a command, tiny data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.base.errors import WeightsError
from edge.inference.weights import resolve
from support.brokers import Mosquitto
from support.command import Done
from support.paths import ROOT
from support.postgres import Postgres


@pytest.fixture(scope="session")
def detector_file() -> Path:
    """The detector's weights, fetched once into the user's cache."""
    try:
        return resolve("yunet")
    except WeightsError as error:
        pytest.skip(f"needs the detector's weights: {error}")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Done]:
    """Run `python -m MODULE ARGS` as a user would, with a state folder of its own."""

    def run(module: str, *args: object, timeout: float = 120, **env: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), **env},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

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

"""Sheets for plots: drawn without a screen, names as they stand, letters that a phone can show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
LONGEST_NAME = 16  # characters of a class's name
LOOK: dict[Any, Any] = {
    # A class may be called "$5", and a folder "a_$b$": text is text, never a formula.
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.alpha": 0.3,
}


@contextmanager
def sheet(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Give a matplotlib Figure of width x height inches to draw on, and write it as PNG. Raises OSError
    where `path` cannot be written."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(LOOK):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path)


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Cut a name that would take the room of the plot."""
    return name if len(name) <= longest else f"{name[: longest - 2].rstrip()}.."


def name_classes(axis: Any, labels: list[str], places: list[int] | None = None) -> None:
    """Write classes along a horizontal axis, each ending below its place."""
    axis.set_ticks(range(len(labels)) if places is None else places, list(map(shortened, labels)))
    for text in axis.get_ticklabels():
        text.set(rotation=40, ha="right", rotation_mode="anchor")

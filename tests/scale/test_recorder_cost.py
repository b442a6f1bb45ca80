"""What a reading costs the recorder and the database, as seconds of CPU, and that memory stays flat.

A thousand nodes' readings wait at the broker; `edge-watch --record` takes them as fast as it can.
Prints its figures: on a busy machine they take longer, and cost the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.evaluation.canvas import sheet
from edge.watch.store import Store
from support.paths import ROOT
from support.postgres import Postgres
from support.recorder_cost import Cost, measure, stored

pytestmark = pytest.mark.scale

NODES = int(os.environ.get("SCALE_NODES", "1000"))
ROUNDS = int(os.environ.get("COST_ROUNDS", "60"))  # readings a node
FLEETS = (500, 1000, 2000, 5000, 10000)
READINGS = int(os.environ.get("COST_READINGS", "60000"))  # of each fleet
WINDOW_SECONDS = 10
PLOT = os.environ.get("COST_PLOT", "")  # a PNG, written where it is named
GROWTH_MIB = 16


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_a_reading_costs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: Postgres | None = None
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
    c = measure(tmp_path, NODES, ROUNDS, server)
    print(
        f"\n{kind}: {c.made} readings of {NODES} nodes in {c.wall:.1f} s; the recorder took "
        f"{c.recorder:.1f} s of CPU, {1e6 * c.recorder / c.made:.0f} µs a reading, "
        f"{c.made / c.recorder:.0f} a second of one core; "
        f"the database {1e6 * c.database / c.made:.0f} µs a reading; "
        f"memory {c.mebibytes[0]:.0f} MiB after a third, {c.mebibytes[-1]:.0f} MiB at the end"
    )
    assert c.mebibytes[-1] < c.mebibytes[0] + GROWTH_MIB


def test_what_a_fleet_costs(tmp_path: Path, postgres: Postgres) -> None:
    """Each fleet sends as many readings as the others, so that what a node costs by itself, its logs
    and its place in memory, shows. PostgreSQL keeps what the fleets before sent."""
    found: dict[int, Cost] = {}
    for nodes in FLEETS:
        (folder := tmp_path / str(nodes)).mkdir()
        c = found[nodes] = measure(folder, nodes, max(1, READINGS // nodes), postgres)
        print(
            f"\n{nodes} nodes, {c.made} readings: recorder {1e6 * c.recorder / c.made:.0f} µs a "
            f"reading, database {1e6 * c.database / c.made:.0f} µs; at windows of {WINDOW_SECONDS} s "
            f"{100 * shares(nodes, c)[0]:.1f} % and {100 * shares(nodes, c)[1]:.1f} % of a core; "
            f"memory {c.mebibytes[-1]:.0f} MiB"
        )
    costs = [(c.recorder + c.database) / c.made for c in found.values()]
    mean = sum(costs) / len(costs)
    print(f"furthest from its mean: {100 * max(abs(cost / mean - 1) for cost in costs):.0f} %")
    if PLOT:
        draw(ROOT / PLOT, found)
    store = Store(postgres.url)
    assert stored(store) == sum(c.made for c in found.values()), "each once"
    store.close()


def shares(nodes: int, cost: Cost) -> tuple[float, float]:
    """What recorder and database take of one core."""
    rate = nodes / WINDOW_SECONDS / cost.made
    return cost.recorder * rate, cost.database * rate


def draw(path: Path, found: dict[int, Cost]) -> None:
    with sheet(path, 6.4, 4.0) as figure:
        axis = figure.subplots()
        nodes = list(found)
        of = [shares(n, c) for n, c in found.items()]
        both = [100 * (a + b) for a, b in of]
        mean = sum(b / n for b, n in zip(both, nodes, strict=True)) / len(nodes)
        ends = [0, nodes[-1]]
        axis.fill_between(
            *(ends, [0.8 * mean * n for n in ends], [1.2 * mean * n for n in ends]),
            color="0.9", label="mean cost of a reading, within 20 %",
        )  # fmt: skip
        axis.plot(nodes, both, "o-", color="#1f4e79", label="recorder and PostgreSQL")
        recorder = [100 * a for a, _ in of]
        axis.plot(nodes, recorder, "s--", color="#b35900", label="recorder alone")
        axis.set(
            xlabel="nodes", ylabel="% of one core", xlim=(0, None), ylim=(0, None),
            title=f"What a fleet costs at windows of {WINDOW_SECONDS} s",
        )  # fmt: skip
        axis.grid(visible=True)
        axis.legend(loc="upper left")

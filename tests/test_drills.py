"""The table of drills in docs/brokers.md is what `make test-district` wrote, and has every drill."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.watch.broker_trials import Trait
from support.drill import KINDS
from support.drill_table import BEGIN, END, HEAD, Row, render, rewrite
from support.paths import ROOT
from support.rabbitmq import SETTINGS

PAGE = ROOT / "docs" / "brokers.md"
ROW = Row("one mosquitto", 3, 50, 5, 2, made=400, stored=399, twice=1, whole_after=29.6)


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the page's table of drills."""
    table = text.split(BEGIN)[1].split(END)[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == HEAD
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_says_what_was_lost_and_what_stands_twice() -> None:
    written = str(ROW)
    assert written.endswith("| 2 broker, 2 recorder, 2 PostgreSQL | 400 | 399 | 1 | 1 | 30 s |")
    assert written.count("|") == HEAD.count("|")


def test_a_drill_that_never_became_whole_says_so() -> None:
    never = Row("one mosquitto", 1, 50, 5, 2, made=4, stored=3, twice=0, whole_after=None)
    assert str(never).endswith("| 4 | 3 | not known | 0 | never |")


def test_the_writer_changes_the_table_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    before, after = page.read_text().split(BEGIN)[0], page.read_text().split(END)[1]
    for conditions in ("with mosquitto 1.2.3, " + "on a machine " * 20, "with another"):
        table = render([ROW], conditions, ["NATS, needs nats-server"])
        rewrite(page, table)
        text = page.read_text()
        assert text == f"{before}{table}{after}"
        assert rows(text) == [[cell.strip() for cell in str(ROW).strip("|").split("|")]]
        assert conditions.split()[-1] in text
        assert "Not run: NATS, needs nats-server." in text
        assert max(len(line) for line in table.splitlines()) <= 120


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_marks_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="once each, in this order"):
        rewrite(page, "new")
    assert page.read_text() == text


def test_the_page_has_every_kind_of_brokers_with_one_recorder_and_with_three_parts() -> None:
    found = rows(PAGE.read_text())
    for kind in KINDS:
        counts = {row[1] for row in found if re.fullmatch(kind.in_table, row[0])}
        assert counts == {"1", "3"}, kind
    for row in found:
        made, stored, lost, twice, whole = row[5:]
        assert twice == "0", row
        if whole == "never":  # which is told below the table
            assert lost == "not known", row
        else:
            assert (int(made) - int(stored), lost) == (0, "0"), row


def test_the_page_has_all_that_is_tried_at_a_broker() -> None:
    lines = PAGE.read_text().replace("`", "").splitlines()
    tried = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    begin = tried.index("what is tried") + 1
    assert tried[begin : begin + len(Trait)] == [trait.value for trait in Trait]


def test_the_settings_of_rabbitmq_are_those_that_the_drills_run_with() -> None:
    assert SETTINGS in PAGE.read_text()

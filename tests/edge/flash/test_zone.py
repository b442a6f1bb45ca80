"""Which zone a laptop stands in, as far as it can be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.base.errors import UsageError
from edge.flash.zone import own_zone


@pytest.mark.parametrize(
    "said", ["Europe/Berlin", ":Europe/Berlin", "/usr/share/zoneinfo/Europe/Berlin"]
)
def test_the_environment_comes_first(said: str, tmp_path: Path) -> None:
    assert own_zone({"TZ": said}, tmp_path) == "Europe/Berlin"


@pytest.mark.parametrize("link", ["/usr/share/zoneinfo", "../usr/share/zoneinfo"])
def test_then_what_the_clock_goes_by(link: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/timezone").write_text("Europe/Paris\n")
    assert own_zone({}, tmp_path) == "Europe/Paris"
    (tmp_path / "etc/localtime").symlink_to(f"{link}/America/Port_of_Spain")
    assert own_zone({}, tmp_path) == "America/Port_of_Spain"


@pytest.mark.parametrize("said", ["CET-1CEST", "nonsense", "../etc/passwd", ""])
def test_a_zone_without_a_name_is_asked_for(said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--zone"):
        own_zone({"TZ": said}, tmp_path)

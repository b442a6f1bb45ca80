"""The page's texts: complete in each language, chosen by the browser; and colours that differ."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from edge.base.clock import utc_now
from edge.base.errors import UsageError
from edge.delivery.connection_status import ConnectionState
from edge.watch.languages import LANGUAGES, choose, dress, words
from edge.watch.lines import line
from edge.watch.rooms import Rooms
from edge.watch.web import PAGE, SCRIPTS, PageAddress, Server
from edge.watch.zones import parse_zone, system_zone
from support.brokers import free_port
from support.heard import NODE, counts, heard, raw
from support.patience import PATIENCE, wait_for

FACTS = {"language", "facts"}
# Put together from data by the script, so that no call names them.
STATES = {"online", "degraded", "starting", "lost", "silent", "stopped", "unknown"}
BROKER = {f"broker {state.value}" for state in ConnectionState}


def used() -> set[str]:
    """Texts that the page asks for."""
    scripts = "".join((PAGE / name).read_text() for name in (*SCRIPTS, "control.js"))
    found = {a or b for a, b in re.findall(r'\bt\("([^"]+)"|\bcount\("([^"]+)"', scripts)}
    # Chosen among by a condition, or named in a table at the top.
    found |= set(re.findall(r'\? "(\{node\}[^"]+)" : "', scripts))
    found |= set(re.findall(r' : "(\{node\}[^"]+)"', scripts))
    for table in re.findall(r"const (?:SPANS|SUMMARIES) = \{(.+?)\};", scripts, re.DOTALL):
        found |= set(re.findall(r': "([^"]+)"', table))
    marked = set(re.findall(r"\{\{(.+?)\}\}", (PAGE / "index.html").read_text()))
    return found | marked - FACTS | STATES | BROKER


def holes(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there_in_each_language_and_none_too_many(language: str) -> None:
    known = words(PAGE, language)
    assert {key for key in known if not key.startswith("label ")} == used()
    assert set(known) == set(words(PAGE, "en"))
    for key, text in known.items():
        for form in text.values() if isinstance(text, dict) else [text]:
            assert form.strip() == form != ""
            assert holes(form) <= holes(key), f"{key}: {form}"
            if not isinstance(text, dict):
                assert holes(form) == holes(key)
        if isinstance(text, dict):
            assert {"one", "other"} <= set(text)
            assert holes(text["other"]) == holes(key)


@pytest.mark.parametrize("language", ["de", "fr", "es"])
def test_a_translation_translates(language: str) -> None:
    english, known = words(PAGE, "en"), words(PAGE, language)
    same = {key for key in known if known[key] == english[key]}
    assert len(same) < 8, same


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de"), ("fr", "fr"), ("es-419, en;q=0.5", "es"), ("", "en"),
        ("it,fr;q=0.4,de;q=0.6", "de"), ("en-US,en;q=0.9,de;q=0.8", "en"), ("*", "en"),
        ("de;q=0", "en"), ("de;q=0, fr;q=0.1", "fr"), ("DE", "de"), ("de;q=zwei", "de"),
        (";;;,,,=", "en"), ("x" * 5000, "en"), (",".join(["it"] * 5000), "en"), ("ja,zh", "en"),
    ],
)  # fmt: skip
def test_the_browser_chooses_the_language(header: str, language: str) -> None:
    assert choose(header) == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_whole_and_its_facts_end_no_element(language: str) -> None:
    text = dress(PAGE, language, {"zone": "</script><script>alert(1)"})
    assert f'<html lang="{language}">' in text
    assert "{{" not in text
    (facts,) = re.findall(r'<script type="application/json" id="facts">(.+?)</script>', text)
    assert json.loads(facts)["zone"] == "</script><script>alert(1)"
    assert text.count("<script") == (PAGE / "index.html").read_text().count("<script")


def test_a_german_browser_reads_german(browser: Any, german: str) -> None:
    page = browser.new_page(locale="de-DE")
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(german)
    page.wait_for_selector("article")
    assert page.inner_text("#summary") == "1 von 1 Raum online · 6 Personen im Bild"
    assert page.inner_text("h1") == "Klassenräume"
    assert "6 Personen: 4 calm, 2 glad" in page.inner_text("article")
    assert "Europe/Berlin" in page.inner_text("#zone")


@pytest.fixture
def german() -> Any:
    rooms, where = Rooms(), PageAddress("127.0.0.1", free_port())
    rooms.hear(heard(counts(1, NODE, utc_now())), utc_now())
    rooms.hear(heard(raw("status")), utc_now())
    server = Server(rooms, lambda: "connected", where, zone="Europe/Berlin")
    server.start()
    yield where.url
    server.close()


@pytest.mark.parametrize(
    ("language", "one", "more"),
    [
        ("en", "recorder north lacks 1 reading", "recorder district lacks 12,345 readings"),
        (
            "de",
            "dem Recorder north fehlt 1 Messung",
            "dem Recorder district fehlen 12.345 Messungen",
        ),
        ("fr", "il manque 1 mesure à l'enregistreur north", "mesures à l'enregistreur district"),
        ("es", "al registrador north le falta 1 medición", "le faltan 12.345 mediciones"),
    ],
)
def test_a_card_tells_which_recorder_lacks_how_much_until_none_does(
    browser: Any, language: str, one: str, more: str
) -> None:
    rooms, where = Rooms(), PageAddress("127.0.0.1", free_port())
    rooms.hear(heard(raw("status")), utc_now())
    lacks = {"north": 1, "district": 12_345}
    rooms.hear(heard(raw("health", recorders_behind=lacks)), utc_now())
    server = Server(rooms, lambda: "connected", where)
    server.start()
    page = browser.new_page(locale=language)
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(where.url)
    page.wait_for_selector("article")
    card = page.inner_text("article")
    assert one in card
    assert more in card
    rooms.hear(heard(raw("health", recorders_behind={})), utc_now())
    wait_for(lambda: "north" not in page.inner_text("article"), page.content)
    assert "district" not in page.inner_text("article")
    page.close()
    server.close()


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def is_grey(colour: str) -> bool:
    return len({colour[1:3], colour[3:5], colour[5:7]}) == 1


def test_greys_can_be_told_apart_from_each_other_and_from_the_ground() -> None:
    script, style = (PAGE / "colours.js").read_text(), (PAGE / "page.css").read_text()
    greys = [c for c in re.findall(r"#[0-9a-f]{6}", script) if is_grey(c)]
    assert len(greys) == 4
    grounds = re.findall(r"--ground: (#[0-9a-f]{6})", style)
    assert len(grounds) == 2
    for one, other in combinations(greys, 2):
        assert contrast(one, other) >= 1.6, (one, other)
    for grey in greys:
        for ground in grounds:
            assert contrast(grey, ground) >= 1.4, (grey, ground)
    for hidden, ground in zip(re.findall(r"--hidden: (#[0-9a-f]{6})", style), grounds, strict=True):
        assert contrast(hidden, ground) >= 3.0, "WCAG 2.2, 1.4.11"


def test_lines_have_the_schools_zone_by_name() -> None:
    name, zone = parse_zone("Europe/Berlin")
    assert name == "Europe/Berlin"
    assert line(heard(counts(1)), zone).startswith(f"13:00:10 CET {NODE}")
    assert line(heard(counts(1)), parse_zone("UTC")[1]).startswith("12:00:10Z ")
    with pytest.raises(UsageError, match="--zone"):
        parse_zone("Europe/Atlantis")


def test_the_zone_is_the_machines_own_where_none_is_given(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TZ", raising=False)
    link, text = tmp_path / "localtime", tmp_path / "timezone"
    assert system_zone(link, text) == "UTC"
    text.write_text("Etc/UTC\n")
    assert system_zone(link, text) == "UTC", "as people call it"
    text.write_text("Europe/Madrid\n")
    assert system_zone(link, text) == "Europe/Madrid"
    link.symlink_to("/usr/share/zoneinfo/Europe/Paris")
    assert system_zone(link, text) == "Europe/Paris"
    monkeypatch.setenv("TZ", "America/Lima")
    assert system_zone(link, text) == "America/Lima"
    monkeypatch.setenv("TZ", "nonsense/../../etc")
    assert system_zone(link, text) == "Europe/Paris"


def test_whole_people_on_a_line() -> None:
    assert "7 people" in line(heard(counts(1, faces={"mean": 6.6, "max": 8})))
    one = counts(1, faces={"mean": 1.2, "max": 2}, counts={"calm": 1}, person_seconds={"calm": 12})
    assert "1 person " in line(heard(one))

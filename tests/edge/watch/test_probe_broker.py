"""`edge-watch probe-broker` against stubs that lack one thing each, and a real mosquitto."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edge.base.errors import BrokerError, UsageError
from edge.settings import Broker
from edge.watch.broker_trials import Bench, Finding, Trait
from edge.watch.probe_broker import HARMLESS, MISSING, Incomplete, consequences, run
from fakes.broker import REFUSED, Habits, StubBroker
from support.brokers import Mosquitto, school_broker
from support.patience import PATIENCE

pytestmark = pytest.mark.slow  # each trial waits for what does not come

ALL = set(Trait)
SHORT_SECONDS = 1.0  # for what does not come; what does may need a while on a busy machine
LONGER = (SHORT_SECONDS, 5 * SHORT_SECONDS, 20 * SHORT_SECONDS)  # then it is tried again


def tried(
    habits: Habits, members: int = 2, patience: float = SHORT_SECONDS
) -> dict[Trait, Finding]:
    with StubBroker(habits, members) as broker:
        found = Bench([Broker(url=url) for url in broker.urls], patience).run()
        assert not broker._retained, "what was retained is deleted"
    assert [finding.trait for finding in found] == list(Trait)
    return {finding.trait: finding for finding in found}


@pytest.fixture(autouse=True)
def no_long_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.watch.broker_trials.QUIET_SECONDS", 0.1)


def test_a_cluster_that_does_all_lacks_nothing() -> None:
    found = tried(Habits(), patience=PATIENCE)
    assert {trait for trait, finding in found.items() if finding.works} == ALL
    assert found[Trait.SHARED].detail == "yes, 20 and 20 of 40"
    assert consequences(list(found.values())) == []


@pytest.mark.parametrize(
    ("habits", "lacking", "detail"),
    [
        (Habits(versions=(4,)), {Trait.MQTT5}, "3.1.1 only"),
        (Habits(retained="none"), {Trait.RETAINED, Trait.RETAINED_WILDCARD}, "no"),
        (Habits(retained="member"), {Trait.RETAINED, Trait.RETAINED_WILDCARD}, "no"),
        (Habits(retained_wildcard=False), {Trait.RETAINED_WILDCARD}, "no"),
        (Habits(sessions="none"), {Trait.SESSION, Trait.REDELIVERED}, "none of 20"),
        (Habits(sessions="member"), {Trait.SESSION, Trait.REDELIVERED}, "none of 20"),
        (Habits(in_flight=10), {Trait.IN_FLIGHT}, "10 at a time"),
        (Habits(share="deaf"), {Trait.SHARED}, "granted, delivers nothing"),
        (Habits(share="close"), {Trait.SHARED}, "refused, connection closed"),
        (
            Habits(suback=lambda topic, times: REFUSED if topic.startswith("$share") else 1),
            {Trait.SHARED},
            "refused (Unspecified error)",
        ),
        (Habits(wills=("cut",)), {Trait.WILL_TAKEOVER}, "no"),
        (Habits(wills=("takeover",)), {Trait.WILL_CUT}, "no"),
    ],
)
def test_what_a_broker_lacks_is_found_and_nothing_else(
    habits: Habits, lacking: set[Trait], detail: str
) -> None:
    for patience in LONGER:
        found = tried(habits, patience=patience)
        missed = {trait for trait, finding in found.items() if finding.works is False}
        if missed == lacking:
            break
    assert missed == lacking
    assert {found[trait].detail for trait in lacking} == {detail}
    told = consequences(list(found.values()))
    assert told
    assert all(any(MISSING[trait] in line for trait in lacking) for line in told)


def test_a_session_whose_unacknowledged_messages_are_gone_is_told() -> None:
    found = tried(Habits(resends=False))
    assert not found[Trait.REDELIVERED].works
    assert found[Trait.REDELIVERED].detail == "none of 20"


def test_a_session_that_comes_back_late_is_told_with_the_seconds() -> None:
    """As where it lies with a member that must come back first."""
    found = tried(Habits(resumes_after=3.5), patience=PATIENCE)
    assert found[Trait.SESSION].works
    assert re.fullmatch(r"yes, after \d+ s", found[Trait.SESSION].detail)


def test_where_nothing_arrives_nothing_else_is_tried() -> None:
    found = tried(Habits(delivers=False))
    assert found[Trait.ARRIVES].works is False
    rest = [found[trait] for trait in list(Trait)[2:]]
    assert all(finding.works is None for finding in rest)


def test_a_broker_of_one_address_is_tried_with_two_connections(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with StubBroker() as broker:
        run([broker.url])
        said = capsys.readouterr().out
        assert "all of the kit works there" in said
        assert "another connection" in said
        run([broker.url, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["versions"] == ["5"]
    assert {row["works"] for row in answer["findings"].values()} == {True}
    assert set(answer["findings"]) == {trait.name.lower() for trait in Trait}


def test_what_the_kit_cannot_do_there_is_exit_code_3_and_what_is_harmless_is_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def said(url: str, wanted: str) -> str:
        """What is said not to work there, "" for nothing."""
        found = ""
        for patience in LONGER:
            init = "edge.watch.broker_trials._Bench.__init__.__defaults__"
            monkeypatch.setattr(init, (patience,))
            found = ""
            try:
                run([url])
            except Incomplete as error:
                found = str(error)
            if found == wanted or (wanted and wanted in found):
                break
        return found

    with StubBroker(Habits(share="deaf")) as broker:
        assert "will not work there: $share" in said(broker.url, "will not work there: $share")
    assert Incomplete.exit_code == 3
    assert "run one recorder" in capsys.readouterr().out
    assert Trait.MQTT5 in HARMLESS
    assert Trait.IN_FLIGHT in HARMLESS
    with StubBroker(Habits(versions=(4,), wills=("cut",), in_flight=10)) as broker:
        assert said(broker.url, "") == ""
    assert "max_inflight_messages" in capsys.readouterr().out


def test_no_connection_and_no_address_are_one_line_each() -> None:
    with pytest.raises(BrokerError, match="nothing listens there"):
        run(["mqtt://127.0.0.1:1"])
    with pytest.raises(UsageError, match="URL must be an address"):
        run(["-"])


@pytest.mark.parametrize(("share", "works"), [("halves", True), ("deaf", False), ("close", False)])
def test_sharing_is_proven_before_it_is_trusted(share: str, works: bool) -> None:
    patience = PATIENCE if works else SHORT_SECONDS
    assert tried(Habits(share=share), 1, patience)[Trait.SHARED].works is works


@pytest.mark.broker
def test_mosquitto_does_all(mosquitto: Mosquitto) -> None:
    found = Bench([Broker(url=mosquitto.url)], 5.0).run()
    assert {finding.trait for finding in found if finding.works} == ALL


@pytest.mark.broker
def test_mosquitto_sends_few_messages_at_a_time_to_a_client_that_cannot_say_how_many(
    mosquitto: Mosquitto,
) -> None:
    found = Bench([Broker(url=mosquitto.url, protocol="3.1.1")], 5.0).run()
    lacking = {finding.trait: finding.detail for finding in found if not finding.works}
    assert lacking == {Trait.MQTT5: "3.1.1 only", Trait.IN_FLIGHT: "20 at a time"}


@pytest.mark.broker
def test_the_schools_own_access_list_lets_the_server_probe(tmp_path: Path) -> None:
    broker = school_broker(tmp_path, ["server"])
    own = ["--ca", "ca.pem", "--certificate", "server.pem", "--key", "server.key"]
    words = [str(tmp_path / word) if not word.startswith("--") else word for word in own]
    run([broker.url, *words])
    broker.stop()

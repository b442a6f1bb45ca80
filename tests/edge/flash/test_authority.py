"""The school's authority: by its files, by openssl, and by a real mosquitto that trusts it."""

from __future__ import annotations

import json
import resource
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.base.errors import BrokerError, EdgeError, UsageError
from edge.base.tls import client_context
from edge.delivery.connection import probe
from edge.flash.authority import Authority, Issued, create
from edge.flash.ca import lines, run, warnings
from edge.settings import Broker, Tls
from edge.watch.broker import files
from support.brokers import Mosquitto
from support.command import Done
from support.patience import PATIENCE

OWN, OTHER = "school/room-1/node-1", "school/room-2/node-1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "authority", "School")


def keep(folder: Path, issued: Issued) -> Tls:
    """The files as a client has them."""
    folder.mkdir(exist_ok=True)
    serial = issued.entry.serial
    paths = [folder / f"{serial}.pem", folder / f"{serial}.key", folder / "ca.pem"]
    for path, data in zip(paths, (issued.certificate, issued.key, issued.authority), strict=True):
        path.write_bytes(data)
    return Tls(ca=str(paths[2]), certificate=str(paths[0]), key=str(paths[1]))


def verified(folder: Path, issued: Issued, purpose: str) -> str:
    """What openssl says of it: "" where nothing is wrong."""
    (folder / "one.pem").write_bytes(issued.certificate)
    trusted = ["-CAfile", "authority/ca.pem", "-crl_check", "-CRLfile", "authority/revoked.pem"]
    strict = ["-x509_strict", "-purpose", purpose]
    done = subprocess.run(
        ["openssl", "verify", *trusted, *strict, "one.pem"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- with mosquitto -------------------------------------------------------------------------------


class School:
    """A broker as `edge-watch broker` and `edge-flash ca` set it up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, create(folder / "authority", "School")
        self.place = folder / "mosquitto"
        self.install("127.0.0.1")
        for name, text in files(str(self.place), 8883, "server").items():
            (self.place / name).write_text(text)
        text = (self.place / "edge.conf").read_text()
        self.broker = Mosquitto(self.place, "log_dest stderr\n", text, listener="listener 8883")

    def install(self, *hosts: str) -> None:
        out = ["--out", str(self.place), "--renew"]
        run(["broker", str(self.authority.folder), *hosts, *out])

    def restart(self) -> None:
        self.broker.stop()
        self.broker.start()

    def enrol(self, name: str, **options: Any) -> Tls:
        return keep(self.folder / "clients", self.authority.issue(name, **options))

    def answer(self, tls: Tls, host: str = "127.0.0.1") -> str:
        """What our own probe says: "MQTT 5", or why not."""
        try:
            return probe(Broker(url=f"mqtts://{host}:{self.broker.port}", tls=tls))
        except BrokerError as error:
            return str(error)

    def takes(self, tls: Tls, *topics: str) -> list[bool]:
        """Whether the broker takes a message on each."""
        answers: list[bool] = []
        context = client_context("broker.tls", tls.ca)
        context.load_cert_chain(str(tls.certificate), str(tls.key))
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.tls_set_context(context)
        client.on_publish = lambda c, u, mid, reason, p: answers.append(not reason.is_failure)
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        for count, topic in enumerate(topics, 1):
            client.publish(topic, b"{}", qos=1)
            deadline = time.monotonic() + PATIENCE
            while len(answers) < count and time.monotonic() < deadline:
                time.sleep(0.005)
        client.disconnect()
        client.loop_stop()
        return answers


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    made = School(tmp_path_factory.mktemp("school"))
    yield made
    made.broker.stop()


@pytest.mark.broker
def test_a_node_writes_its_own_counts_and_nothing_else(school: School) -> None:
    node = school.enrol(OWN)
    topics = [f"edge/v1/{OWN}/counts", f"edge/v1/{OTHER}/counts", f"edge/v1/{OWN}/ack", "any"]
    assert school.takes(node, *topics) == [True, False, False, False]
    server = keep(school.folder / "clients", school.authority.issue_server())
    assert school.takes(server, f"edge/v1/{OWN}/ack", f"edge/v1/{OWN}/counts") == [True, False]


@pytest.mark.broker
def test_a_renewed_node_works_beside_its_old_certificate_and_a_revoked_one_not(
    school: School,
) -> None:
    name, stays = "school/room-3/node-1", school.enrol("school/room-3/node-2")
    old = school.enrol(name)
    new = school.enrol(name, renew=True)
    topic = f"edge/v1/{name}/counts"
    assert school.takes(old, topic) == school.takes(new, topic) == [True]
    school.authority.revoke(school.authority.listed()[-2][0].serial)
    shutil.copy(school.authority.folder / "revoked.pem", school.place)
    school.restart()
    assert "MQTT 5" not in school.answer(old)
    assert school.answer(new) == school.answer(stays) == "MQTT 5"
    school.authority.revoke(name)
    shutil.copy(school.authority.folder / "revoked.pem", school.place)
    school.restart()
    assert "MQTT 5" not in school.answer(new)
    assert school.answer(stays) == "MQTT 5"


@pytest.mark.broker
def test_a_broker_is_trusted_by_its_names_and_addresses_alone(school: School) -> None:
    node = school.enrol("school/room-4/node-1")
    assert school.answer(node) == "MQTT 5"
    assert "not for 'localhost'" in school.answer(node, "localhost")
    school.install("localhost")
    school.restart()
    assert school.answer(node, "localhost") == "MQTT 5"
    assert "not for '127.0.0.1'" in school.answer(node)
    school.install("localhost", "127.0.0.1")
    school.restart()
    assert school.answer(node) == school.answer(node, "localhost") == "MQTT 5"


@pytest.mark.broker
def test_the_brokers_own_certificate_lets_nobody_in(school: School) -> None:
    certificate, key = school.place / "broker.pem", school.place / "broker.key"
    ca = school.place / "ca.pem"
    stolen = Tls(ca=str(ca), certificate=str(certificate), key=str(key))
    assert "MQTT 5" not in school.answer(stolen)


# --- by its files ---------------------------------------------------------------------------------


def test_keys_are_the_owners_alone(command: Callable[..., Done], tmp_path: Path) -> None:
    def ca(*words: object) -> Done:
        return command("edge.flash.run", "ca", *words)

    folder, out = tmp_path / "authority", tmp_path / "out"
    assert ca("init", folder, "--school", "School").code == 0
    assert mode(folder) == 0o700
    assert mode(folder / "key.pem") == mode(folder / "index.json") == 0o600
    done = ca("issue", folder, OWN, "--out", out)
    assert done.out.splitlines()[:3] == [str(out / n) for n in ("node.key", "node.pem", "ca.pem")]
    assert (mode(out / "node.key"), mode(out / "node.pem")) == (0o600, 0o644)
    refused = ca("issue", folder, OWN, "--out", out)
    assert (refused.code, "has a certificate that is valid until" in refused.last) == (1, True)
    assert "stays valid until" in ca("issue", folder, OWN, "--out", out, "--renew").out
    again = ca("issue", folder, OTHER, "--out", out)
    assert (again.code, again.last.split(": ", 1)[1]) == (
        1,
        f"{out / 'node.pem'} is {OWN}'s; give another --out",
    )
    done = ca("init", folder, "--school", "School")
    assert (done.code, "already holds an authority" in done.last) == (1, True)


@pytest.mark.process
def test_openssl_finds_nothing_to_blame(authority: Authority, tmp_path: Path) -> None:
    node, server = authority.issue(OWN), authority.issue_server()
    broker = authority.issue_broker(["mqtt.school.example", "192.0.2.10", "2001:db8::10"])
    for client in (node, server):
        assert verified(tmp_path, client, "sslclient") == ""
        assert "certificate purpose" in verified(tmp_path, client, "sslserver")
    assert verified(tmp_path, broker, "sslserver") == ""
    assert "certificate purpose" in verified(tmp_path, broker, "sslclient")
    authority.revoke(OWN)
    assert "certificate revoked" in verified(tmp_path, node, "sslclient")
    assert verified(tmp_path, server, "sslclient") == ""


@pytest.mark.process
def test_a_clock_that_is_a_day_behind_still_trusts(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue(OWN)
    (tmp_path / "one.pem").write_bytes(issued.certificate)
    for hours, trusted in ((-23, True), (-25, False)):
        then = str(int(time.time() + hours * 3600))
        words = ["openssl", "verify", "-attime", then, "-CAfile", "authority/ca.pem", "one.pem"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True)
        assert (done.returncode == 0) == trusted


@pytest.mark.process
def test_the_list_of_revoked_lasts_as_long_as_the_authority(
    authority: Authority, tmp_path: Path
) -> None:
    """mosquitto refuses everybody by a list that has ended."""
    show = ["openssl", "crl", "-in", str(authority.folder / "revoked.pem"), "-noout"]
    told = subprocess.run([*show, "-nextupdate"], capture_output=True, text=True).stdout
    ends = datetime.strptime(told.strip(), "nextUpdate=%b %d %H:%M:%S %Y GMT")
    assert ends.replace(tzinfo=timezone.utc) == authority.ends


@pytest.mark.process
def test_an_authority_restored_from_a_plain_copy_goes_on(
    authority: Authority, tmp_path: Path
) -> None:
    before = authority.issue(OWN)
    subprocess.run(["cp", "-a", authority.folder, tmp_path / "backup"], check=True)
    lost = authority.issue("school/room-9/lost")
    shutil.rmtree(authority.folder)
    subprocess.run(["cp", "-a", tmp_path / "backup", authority.folder], check=True)
    restored = Authority.open(authority.folder)
    assert verified(tmp_path, restored.issue(OTHER), "sslclient") == ""
    restored.revoke(OWN)
    assert "certificate revoked" in verified(tmp_path, before, "sslclient")
    # What was signed after the backup is not listed; its file brings it back, to be revoked.
    with pytest.raises(EdgeError, match="no certificate has the name"):
        restored.revoke(lost.entry.name)
    (tmp_path / "node.pem").write_bytes(lost.certificate)
    run(["revoke", str(authority.folder), str(tmp_path / "node.pem")])
    assert "certificate revoked" in verified(tmp_path, lost, "sslclient")
    stranger = create(tmp_path / "other", "School").issue(OWN)
    with pytest.raises(EdgeError, match="not a certificate of this authority"):
        restored.adopt(stranger.certificate)


def test_commands_at_once_lose_no_entry(authority: Authority) -> None:
    issued: list[Issued] = []

    def work(room: int) -> None:
        own = Authority.open(authority.folder)
        issued.extend(own.issue(f"school/room-{room}/node-{n}") for n in range(5))

    threads = [threading.Thread(target=work, args=(room,)) for room in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = {entry.serial for entry, _ in authority.listed()}
    assert len(issued) == 30
    assert {one.entry.serial for one in issued} == listed


def test_a_certificate_that_cannot_be_listed_is_not_handed_out(
    authority: Authority, tmp_path: Path
) -> None:
    for n in range(6):
        authority.issue(f"school/room/node-{n}")
    before = (authority.folder / "index.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A disk that is full for the index, while a certificate would still fit.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        with pytest.raises(EdgeError, match=r"index\.json cannot be written"):
            run(["issue", str(authority.folder), OWN, "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (authority.folder / "index.json").read_bytes() == before
    assert list((tmp_path / "out").iterdir()) == []
    assert len(list(authority.folder.iterdir())) == 4


def test_a_valid_certificate_is_not_doubled_by_accident(authority: Authority) -> None:
    first = authority.issue(OWN, days=100)
    with pytest.raises(EdgeError, match="has a certificate that is valid until"):
        authority.issue(OWN)
    second = authority.issue(OWN, renew=True)
    assert [state for _, state in authority.listed()] == ["superseded", "valid"]
    authority.revoke(second.entry.serial.upper())
    assert [state for _, state in authority.listed()] == ["valid", "revoked"]
    assert [e.serial for e in authority.revoke(OWN)] == [first.entry.serial, second.entry.serial]
    authority.issue(OWN)


def test_what_ends_within_60_days_is_told(authority: Authority) -> None:
    long = "school/" + "long-" * 8 + "room/node-1"
    for name, days in ((OWN, 61), (OTHER, 59), (long, 10), ("school/room-3/gone", 10)):
        authority.issue(name, days)
    authority.issue(long, 200, renew=True)
    authority.revoke("school/room-3/gone")
    now = datetime.now(timezone.utc)
    told = warnings(authority, now + timedelta(minutes=1))
    assert told[0] == f"warning: {OTHER} ends in 58 days"
    assert [line.split()[0] for line in told] == ["warning:", "renew:"]
    table = lines(authority, now)
    assert all(len(part) <= 80 for line in table for part in line.splitlines())
    assert [line.split()[-1] for line in table[2:]] == [
        "superseded", "valid", "valid", "valid", "revoked",
    ]  # fmt: skip
    later = Authority.open(authority.folder, lambda: now + timedelta(days=70))
    told = warnings(later, now + timedelta(days=70))
    assert [line for line in told if "ended" in line] == [
        f"warning: {name} ended on {now + timedelta(days=days):%Y-%m-%d}"
        for name, days in ((OWN, 61), (OTHER, 59))
    ]
    last = Authority.open(authority.folder, lambda: now + timedelta(days=3000))
    assert "the authority itself has 6" in warnings(last, now + timedelta(days=3000))[-1]


def test_nothing_outlives_the_authority(authority: Authority) -> None:
    late = Authority.open(authority.folder, lambda: authority.ends - timedelta(days=30, hours=1))
    with pytest.raises(EdgeError, match="give --days 30 or less"):
        late.issue(OWN)
    assert late.issue(OWN, days=30).entry.ends < authority.ends
    for there in (authority.ends, authority.ends - timedelta(days=3653)):
        off = Authority.open(authority.folder, lambda there=there: there)
        with pytest.raises(EdgeError, match="set the clock, or make a new authority"):
            off.issue(OTHER)


@pytest.mark.parametrize(
    "name",
    ["", "node-1", "a/b", "a/b/c/d", "A/b/c", "a/b/", "a/+/c", "a/b/c\n", "server", "ä/b/c",
     f"{'a' * 61}/b/c"],
)  # fmt: skip
def test_a_bad_name_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(UsageError):
        authority.issue(name)
    assert authority.listed() == []


@pytest.mark.parametrize(
    "host",
    ["", "192.0.2.300", "*.school.example", "mqtts://broker", "broker:8883", "a_b", "-a", "a..b",
     "fe80::1%eth0", "school.example.", "a" * 64],
)  # fmt: skip
def test_a_bad_host_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(UsageError):
        authority.issue_broker([host])
    assert authority.listed() == []


def test_what_is_wrong_with_the_folder_is_one_line(
    authority: Authority, command: Callable[..., Done], tmp_path: Path
) -> None:
    authority.issue(OWN)
    other = create(tmp_path / "other", "Other").folder
    (tmp_path / "new").mkdir()

    def said(break_it: Callable[[Path], object]) -> str:
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(authority.folder, tmp_path / "broken")
        break_it(tmp_path / "broken")
        with pytest.raises(EdgeError) as caught:
            Authority.open(tmp_path / "broken")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def damaged(text: bytes) -> str:
        return said(lambda folder: (folder / "index.json").write_bytes(text))

    index = json.loads((authority.folder / "index.json").read_text())
    index["certificates"][0]["serial"] = "1"
    for text in (b"", b"{", b"\xff", b"[]", b'{"version": 2}', json.dumps(index).encode()):
        assert "index.json is damaged" in damaged(text)
    assert "another authority's" in damaged((other / "index.json").read_bytes())
    for name in ("key.pem", "ca.pem", "index.json"):
        assert f"not an authority ({name} is missing)" in said(lambda f, n=name: (f / n).unlink())
    for name in ("key.pem", "ca.pem"):
        assert "is damaged" in said(lambda f, n=name: (f / n).write_text("-----BEGIN"))
    assert "not ca.pem's key" in said(lambda f: shutil.copy(other / "key.pem", f))
    assert "chmod 600" in said(lambda f: (f / "key.pem").chmod(0o640))
    assert "chmod 700" in said(lambda f: f.chmod(0o755))
    done = command("edge.flash.run", "ca", "list", tmp_path / "new")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    (tmp_path / "new" / "letter.txt").write_text("mine")
    done = command("edge.flash.run", "ca", "init", tmp_path / "new", "--school", "School")
    assert (done.code, "give a new or empty folder" in done.last) == (1, True)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["letter.txt"]
    assert not list(tmp_path.glob(".authority.*"))


def test_a_program_of_the_server_gets_a_certificate_by_its_own_name(tmp_path: Path) -> None:
    authority = create(tmp_path / "authority", "School", 365)
    assert authority.issue_server(30).entry.name == "server"
    assert authority.issue_server(30, name="home-assistant").entry.name == "home-assistant"
    for wrong in ("broker", "", "../x", "a/b/c", "A", "a\n"):
        with pytest.raises(UsageError, match="--name must be"):
            authority.issue_server(30, name=wrong)

"""Signed updates: a real HTTPS server and openssl; dpkg and systemctl are shell scripts on PATH."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.base.errors import EdgeError, SettingsError
from edge.base.strict_yaml import read_yaml, validate
from edge.inference.bundle import SHIPPED, load_bundle
from edge.settings import Settings
from edge.update import rollout, run
from edge.update.release import MANIFEST, SIGNATURE, Refused, Release, unpack
from edge.update.rollout import Machine
from support.brokers import certificates
from support.command import Done
from support.paths import ROOT
from support.patience import PATIENCE

pytest.importorskip("cryptography", reason="needs the extra flash: cryptography signs releases")
from edge.flash import release as flash

pytestmark = [
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

OLD, NEW = "0.1.0", "0.2.0"

DPKG = """\
#!/bin/sh
echo "dpkg $*" >> "$FAKE/log"
[ "$1" != --force-confold ] || shift
case "$1" in
--status)
    echo "Package: edge-node"; echo "Status: $(cat "$FAKE/want") ok $(cat "$FAKE/state")"
    echo "Version: $(cat "$FAKE/version")" ;;
--field) shift; exec dpkg-deb --field "$@" ;;
--configure) echo installed > "$FAKE/state" ;;
--install)
    version=$(dpkg-deb --field "$2" Version) || exit 2
    if [ -e "$FAKE/locked" ]; then
        rm "$FAKE/locked"; echo "dpkg: error: dpkg frontend lock was locked" >&2; exit 2
    fi
    echo half-configured > "$FAKE/state"; echo "$version" > "$FAKE/version"
    if [ -e "$FAKE/cut" ]; then rm "$FAKE/cut"; kill -9 $PPID; exit 1; fi
    if [ -e "$FAKE/broken" ] && [ "$version" != 0.1.0 ]; then
        echo "dpkg: error processing package edge-node" >&2; exit 1
    fi
    echo installed > "$FAKE/state" ;;
esac
"""

# What `show` says after the first restart stands in $FAKE/trial, a line a call, the last one for ever;
# before it, and after the second, in $FAKE/now.
SYSTEMCTL = """\
#!/bin/sh
echo "systemctl $*" >> "$FAKE/log"
case "$1 $2" in
"show "*)
    line=$(cat "$FAKE/now")
    if [ -e "$FAKE/restarted" ] && [ -s "$FAKE/trial" ]; then
        line=$(head -n 1 "$FAKE/trial")
        [ "$(wc -l < "$FAKE/trial")" -eq 1 ] || sed -i 1d "$FAKE/trial"
    fi
    echo "ActiveState=${line%%|*}"; echo "NRestarts=${line##*|}"
    line=${line#*|}; echo "StatusText=${line%|*}" ;;
"restart edge-run.service")
    [ ! -e "$FAKE/deaf" ] || exit 1
    [ ! -e "$FAKE/restarted" ] || rm -f "$FAKE/trial"
    touch "$FAKE/restarted" ;;
esac
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """A folder with ranges, which can send on, or hang up in the middle of a body."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.server.folder / self.path.lstrip("/")
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.server.asked.append((path.name, start))
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.end_headers()
            return
        data = path.read_bytes() if path.is_file() else None
        if data is None or start >= len(data):
            self.send_error(404 if data is None else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.server.cut if path.suffix != ".json" and path.suffix != ".sig" else None
        self.wfile.write(data[start : cut or len(data)])


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    folder: Path
    redirect: str | None = None
    cut: int | None = None
    asked: list[tuple[str, int]]

    def handle_error(self, *_: Any) -> None:
        pass  # a client that hangs up is what some of these tests are about


def small_bundle(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The shipped student without TensorRT's files, changed."""
    shutil.copytree(SHIPPED, folder)
    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    content["files"] = {"int8-cpu": content["files"]["int8-cpu"]}
    change(content)
    path.write_text(json.dumps(content))
    return folder


def package(folder: Path, version: str) -> Path:
    (folder / version / "DEBIAN").mkdir(parents=True)
    (folder / version / "DEBIAN/control").write_text(
        f"Package: edge-node\nVersion: {version}\nArchitecture: arm64\n"
        "Maintainer: A <a@b.c>\nDescription: x\n"
    )
    path = folder / f"edge-node_{version}_arm64.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", folder / version, path],
        check=True,
        capture_output=True,
    )
    return path


class School:
    """Authority, release key, bundles, packages, and the folder that is served."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tls").mkdir()
        tls = certificates(folder / "tls", ["server"])
        self.ca = folder / "tls" / "ca.pem"
        flash.make_key(folder / "keys")
        self.key, self.public = folder / "keys/release.key", folder / "keys/release.pub"
        self.old = small_bundle(folder / "old", lambda c: None)
        self.new = small_bundle(folder / "new", lambda c: c["provenance"].update(trained="again"))

        def off(content: dict[str, Any]) -> None:
            for row in content["known_answers"]["logits"]["int8-cpu"]:
                row[0] += 5

        self.wrong = small_bundle(folder / "wrong", off)
        self.packages = {v: package(folder, v) for v in (OLD, NEW)}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls["server.pem"], folder / "tls" / "server.key")
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.asked = []
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def serve(
        self,
        serial: int = 7,
        bundle: Path | None = None,
        package: str | None = None,
        key: Path | None = None,
    ) -> Release:
        shutil.rmtree(self.folder / "www", ignore_errors=True)
        self.server.folder, self.server.redirect, self.server.cut = self.folder / "www", None, None
        self.server.asked.clear()
        deb = self.packages[package] if package else None
        return flash.make(flash.read_key(key or self.key), self.server.folder, bundle, deb, serial)

    def sign(self, data: bytes) -> None:
        """Any release.json, by the school's key."""
        self.server.folder.joinpath(MANIFEST).write_bytes(data)
        signature = flash.read_key(self.key).sign(data)
        self.server.folder.joinpath(SIGNATURE).write_bytes(signature)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    made = School(tmp_path_factory.mktemp("school"))
    yield made
    made.server.shutdown()
    made.server.server_close()


class Node:
    """A node's files in a folder, and an hour that passes in no time."""

    def __init__(self, root: Path, school: School) -> None:
        self.root, self.now = root, 0.0
        self.meanwhile: Callable[[], object] = lambda: None  # whatever else happens while it sleeps
        self.machine = Machine(root, lambda: self.now, self._sleep)
        self.home, self.fake = self.machine.home, root / "fake"
        (self.home / "packages").mkdir(parents=True)
        shutil.copy(school.packages[OLD], self.home / "packages")
        self.machine.shipped.parent.mkdir(parents=True)
        self.machine.shipped.symlink_to(school.old)
        self.machine.link.symlink_to(self.machine.shipped)
        self.fake.mkdir()
        for name, text in (("dpkg", DPKG), ("systemctl", SYSTEMCTL)):
            (self.fake / name).write_text(text)
            (self.fake / name).chmod(0o755)
        self.say(version=OLD, want="install", state="installed", now="active|online|0", log="")
        config = root / "etc/edge-node/node.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(
            f"update: {{url: '{school.url}', ca: {school.ca}, key: {school.public}}}\n"
            f"runtime: {{bundle: {self.machine.link}}}\n"
        )
        self.settings = validate(Settings, read_yaml(config), "node.yaml")

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def say(self, **files: str) -> None:
        for name, text in files.items():
            (self.fake / name).write_text(f"{text}\n")

    def update(self, check: bool = False) -> None:
        run.update(self.machine, self.settings, check)

    @property
    def log(self) -> str:
        return (self.fake / "log").read_text()

    @property
    def state(self) -> tuple[str, str]:
        """Version of the package; of the bundle that the link leads to."""
        assert load_bundle(self.machine.link)
        return rollout.installed(), run.in_use(self.machine)[1]

    @property
    def last(self) -> dict[str, Any]:
        content = json.loads((self.home / "last.json").read_text())
        assert content["schema"] == "edge.update/1"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content["time"])
        return dict(content)

    def outcome(self) -> tuple[int | None, str]:
        return self.last["serial"], self.last["outcome"]


def version(bundle: Path) -> str:
    return load_bundle(bundle).sha256[:12]


@pytest.fixture
def make_node(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Node]:
    path = os.environ["PATH"]

    def make(name: str) -> Node:
        node = Node(tmp_path / name, school)
        monkeypatch.setenv("FAKE", str(node.fake))
        monkeypatch.setenv("PATH", f"{node.fake}:{path}")
        return node

    return make


@pytest.fixture
def node(make_node: Callable[[str], Node]) -> Node:
    return make_node("node")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where known answers are not what a test is about."""
    monkeypatch.setattr(run, "prove_aside", load_bundle)


def test_a_good_bundle_is_kept_after_a_minute(
    node: Node, school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    school.serve(bundle=school.new)
    node.update(check=True)
    assert f"release 7: bundle {version(school.new)}" in capsys.readouterr().out
    assert not (node.home / "last.json").exists()
    assert node.state == (OLD, version(school.old))
    node.update()
    assert node.state == (OLD, version(school.new))
    assert os.readlink(node.machine.link) == f"bundles/{version(school.new)}"
    assert node.outcome() == (7, "committed")
    assert 60 <= node.now < 70
    assert not list(node.home.glob("trial*"))
    assert not (node.home / "staging").exists()
    order = [line.split(" ", 1)[1] for line in node.log.splitlines() if " restart " in line]
    assert order == ["restart edge-engine.service", "restart edge-run.service"]
    school.server.asked.clear()
    node.update()
    assert "release 7 is in use" in capsys.readouterr().out
    assert {name for name, _ in school.server.asked} == {MANIFEST, SIGNATURE}


@pytest.mark.usefixtures("quick")
def test_a_good_package_is_kept_and_only_the_previous_one_beside_it(
    node: Node, school: School
) -> None:
    (node.home / "packages/edge-node_0.0.9_arm64.deb").touch()
    (node.home / "bundles/000000000000").mkdir(parents=True)
    node.say(
        locked="", want="hold"
    )  # apt is at work, and ends; `apt-mark hold` is said to apt alone
    school.serve(bundle=school.new, package=NEW)
    node.update()
    assert node.state == (NEW, version(school.new))
    names = sorted(path.name for path in (node.home / "packages").iterdir())
    assert names == [f"edge-node_{v}_arm64.deb" for v in (OLD, NEW)]
    assert [path.name for path in (node.home / "bundles").iterdir()] == [version(school.new)]
    assert "systemctl daemon-reload" in node.log


@pytest.mark.parametrize(
    "spoil", ["signature", "key", "manifest", "swapped", "oversize", "unsigned"]
)
def test_what_is_not_signed_is_refused_unread(node: Node, school: School, spoil: str) -> None:
    key = None
    if spoil == "key":
        flash.make_key(node.root / "other")
        key = node.root / "other/release.key"
    school.serve(bundle=school.new, key=key)
    www = school.server.folder
    if spoil == "signature":
        (www / SIGNATURE).write_bytes(bytes(64))
    elif spoil == "manifest":
        (www / MANIFEST).write_bytes((www / MANIFEST).read_bytes().replace(b": 7", b": 8"))
    elif spoil == "swapped":
        before = (www / SIGNATURE).read_bytes()
        school.serve(serial=8, bundle=school.new)
        (www / SIGNATURE).write_bytes(before)
    elif spoil == "oversize":
        school.sign(b" " * (64 * 1024 + 1))
    elif spoil == "unsigned":
        (www / SIGNATURE).unlink()
        with pytest.raises(EdgeError, match=r"release.json.sig cannot be fetched"):
            node.update()
        assert not (node.home / "last.json").exists()
        return
    with pytest.raises(Refused, match=r"is not signed by the key|is larger than"):
        node.update()
    assert node.outcome() == (None, "refused")
    assert [name for name, _ in school.server.asked if name.endswith(".tar")] == []


def test_a_replayed_release_is_refused(
    node: Node, school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    school.serve(serial=7, bundle=school.new)
    (node.home / "serial").write_text("8\n")
    with pytest.raises(Refused, match="release 7 is older than 8"):
        node.update()
    assert node.outcome() == (None, "refused")
    (node.home / "serial").write_text("7\n")
    node.update(check=True)
    assert node.outcome() == (None, "refused")
    node.update()
    assert "release 7 is in use" in capsys.readouterr().out
    assert node.outcome() == (7, "committed")  # what was refused has passed
    first = (node.home / "last.json").stat().st_ino
    node.update()
    assert (node.home / "last.json").stat().st_ino == first
    assert "restart" not in node.log


@pytest.mark.usefixtures("quick")
def test_a_signature_that_comes_a_moment_later_is_waited_for(node: Node, school: School) -> None:
    school.serve(serial=6, bundle=school.new)
    before = (school.server.folder / SIGNATURE).read_bytes()
    school.serve(serial=7, bundle=school.new)
    after = (school.server.folder / SIGNATURE).read_bytes()
    (school.server.folder / SIGNATURE).write_bytes(before)
    node.meanwhile = lambda: (school.server.folder / SIGNATURE).write_bytes(after)
    node.update()
    assert node.outcome() == (7, "committed")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"schema": "edge.release/2", "serial": 9}', "has schema 'edge.release/2'"),
        (b'{"schema": "edge.release/1", "serial": 9}', "'made' field required"),
        (b"[" * 9000, "is not valid JSON"),
    ],
)
def test_a_signed_release_of_another_schema_is_refused(
    node: Node, school: School, data: bytes, said: str
) -> None:
    school.serve(bundle=school.new)
    school.sign(data)
    with pytest.raises(Refused, match=said):
        node.update()


@pytest.mark.parametrize("name", ["../x.tar", "a/b", ".x", "", "x" * 200, "a\nb"])
def test_a_file_of_a_release_has_a_plain_name(node: Node, school: School, name: str) -> None:
    school.serve(bundle=school.new)
    content = json.loads((school.server.folder / MANIFEST).read_bytes())
    content["files"][0]["name"] = name
    school.sign(json.dumps(content).encode())
    with pytest.raises(Refused, match=r"files\.0\.name"):
        node.update()


@pytest.mark.usefixtures("quick")
def test_a_download_that_broke_off_is_gone_on_with(node: Node, school: School) -> None:
    school.serve(bundle=school.new)
    school.server.cut = 100_000
    with pytest.raises(EdgeError, match=r"100000 of \d+ bytes|cannot be fetched"):
        node.update()
    assert node.outcome() == (7, "failed")
    school.server.cut = None
    node.update()
    assert [start for name, start in school.server.asked if name.endswith(".tar")] == [0, 100_000]
    assert node.outcome() == (7, "committed")


def test_truncated_longer_and_changed_files_are_not_installed(node: Node, school: School) -> None:
    release = school.serve(bundle=school.new)
    path = school.server.folder / release.files[0].name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(EdgeError, match="ends after"):
        node.update()
    with pytest.raises(EdgeError, match="cannot be fetched"):
        node.update()  # the rest is not there: it begins anew
    path.write_bytes(whole + b"x")
    with pytest.raises(Refused, match="longer than the signed"):
        node.update()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(Refused, match="not the signed"):
        node.update()
    assert node.outcome() == (7, "refused")
    assert node.state == (OLD, version(school.old))
    assert "restart" not in node.log


def archive(*members: tuple[str, bytes], content: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content) if member.size else None)
    return out.getvalue()


def extended(count: int, **sparse: str) -> bytes:
    """Small members whose extended headers say otherwise."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for n in range(count):
            member = tarfile.TarInfo(f"x{n}")
            content = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
            member.size = len(content)
            member.pax_headers = {f"GNU.sparse.{name}": text for name, text in sparse.items()}
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (archive(("../x", tarfile.REGTYPE)), "no plain file name"),
        (archive(("/x", tarfile.REGTYPE)), "no plain file name"),
        (archive(("a/x", tarfile.REGTYPE)), "no plain file name"),
        (archive(("x", tarfile.SYMTYPE)), "no regular file"),
        (archive(("x", tarfile.LNKTYPE)), "no regular file"),
        (archive(("x", tarfile.FIFOTYPE)), "no regular file"),
        (archive(("x", tarfile.DIRTYPE)), "no regular file"),
        (archive(("x", tarfile.GNUTYPE_SPARSE)), "no regular file"),
        (archive(("x", tarfile.REGTYPE), ("x", tarfile.REGTYPE)), "a name appears twice"),
        (archive(*((f"x{i}", tarfile.REGTYPE) for i in range(40))), "more than 32 files"),
        (archive(("x", tarfile.REGTYPE), content=bytes(4096))[:1024], "is no bundle"),
        (extended(1, **{"major": "1", "minor": "0", "realsize": "400"}), "no regular file"),
        (extended(1, **{"size": "4096", "map": "0,1"}), "no regular file"),
        (extended(1, realsize=str(2**30)), "larger than itself"),
        (extended(30, realsize="4096"), "larger than itself"),
        (b"no tar at all" * 100, "is no bundle"),
    ],
)
def test_an_archive_holds_flat_regular_files_alone(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    path.write_bytes(data)
    with pytest.raises(Refused, match=said):
        unpack(path, tmp_path / "in" / "bundle")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "in" / "x").exists()


def test_no_redirect_to_http_and_no_other_authority(node: Node, school: School) -> None:
    school.serve(bundle=school.new)
    school.server.redirect = "http://127.0.0.1:9/release.json"
    with pytest.raises(Refused, match="which is not https"):
        node.update()
    school.server.redirect = None
    (node.root / "tls").mkdir()
    certificates(node.root / "tls", [])
    other = node.settings.update.model_copy(update={"ca": node.root / "tls/ca.pem"})
    node.settings = node.settings.model_copy(update={"update": other})
    with pytest.raises(EdgeError, match="CERTIFICATE_VERIFY_FAILED"):
        node.update()


@pytest.mark.parametrize(
    "where", ["https://[::1/x", "https://a..b/x", "https://" + "a" * 70 + ".de/"]
)
def test_a_redirect_to_what_is_no_host_is_one_line(node: Node, school: School, where: str) -> None:
    school.serve(bundle=school.new)
    school.server.redirect = where
    with pytest.raises(EdgeError, match=r"cannot be fetched .* check update\.url"):
        node.update()


def test_a_bundle_that_answers_wrongly_is_refused(node: Node, school: School) -> None:
    school.serve(bundle=school.wrong)
    with pytest.raises(Refused, match=r"not fit to serve: onnxruntime answers .* wrongly"):
        node.update()
    assert node.outcome() == (7, "refused")
    assert "restart" not in node.log


@pytest.mark.parametrize(
    "state",
    [
        "failed||0",
        "active|starting|0",
        "active|degraded camera: away|0",
        "active|online closed: outside of privacy.hours|0",
        "active|online ; broker connecting|0",
        "activating||3",
    ],
)
def test_nothing_is_begun_at_a_node_that_is_not_healthy(
    node: Node, school: School, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    school.serve(bundle=school.new)
    node.say(now=state)
    node.update()
    assert "nothing is begun, next time again" in capsys.readouterr().out
    assert not (node.home / "staging").exists()
    assert not (node.home / "last.json").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["active|online|0"] * 5 + ["active|degraded outbox: 9 readings|0"], "outbox: 9"),
        (["active|degraded refused: bad name; broker refused: bad name|0"], "refused: bad name"),
        (["active|starting ; broker connecting|0"], "says 'starting"),
        (["active|starting|0"], "says 'starting'"),
        (["failed||9"], "edge-run is failed"),
        ([f"active|online|{i}" for i in range(99)], "was restarted"),
    ],
)
def test_a_node_that_does_not_stay_healthy_goes_back_and_remembers(
    node: Node,
    school: School,
    lines: Sequence[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout, "LOOK_SECONDS", 10.0)
    school.serve(bundle=school.new, package=NEW)
    node.say(trial="\n".join(lines))
    with pytest.raises(EdgeError, match=f"release 7 was rolled back: .*{said}"):
        node.update()
    assert node.now <= 610
    assert node.state == (OLD, version(school.old))
    assert node.outcome() == (7, "rolled-back")
    assert said in node.last["reason"]
    calls = node.log.splitlines()
    assert [line for line in calls if " restart " in line][-1].endswith(" edge-run.service")
    back = calls.index(
        f"dpkg --force-confold --install {node.home}/packages/edge-node_{OLD}_arm64.deb"
    )
    assert "dpkg --configure -a" in calls[:back]
    assert [p.name for p in (node.home / "packages").iterdir()] == [f"edge-node_{OLD}_arm64.deb"]
    capsys.readouterr()
    node.update()
    assert "waiting for a higher serial" in capsys.readouterr().out
    assert node.outcome() == (7, "rolled-back")
    assert said in node.last["reason"]
    assert "waiting for a higher serial" in node.last["reason"]
    school.serve(serial=6, bundle=school.new)
    with pytest.raises(Refused, match="older than 7"):
        node.update()
    school.serve(serial=8, bundle=school.new, package=NEW)
    node.update()
    assert node.outcome() == (8, "committed")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "state",
    [
        "active|online closed: outside of privacy.hours|0",
        "active|online ; broker connecting|0",
        "active|degraded camera: away|0",
        "active|degraded paused by command|0",
    ],
)
def test_a_release_is_not_given_up_because_a_lesson_ended_or_a_cable_was_pulled(
    node: Node,
    school: School,
    state: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout, "LOOK_SECONDS", 30.0)
    school.serve(bundle=school.new)

    def interrupted() -> str:
        (node.fake / "restarted").unlink(missing_ok=True)
        node.say(trial=f"active|online|0\n{state}")
        with pytest.raises(EdgeError, match="release 7 was rolled back") as caught:
            node.update()
        assert node.state == (OLD, version(school.old))
        assert node.outcome() == (7, "rolled-back")
        return str(caught.value)

    assert interrupted().endswith("is tried again")
    assert interrupted().endswith("is tried again")
    shutil.copytree(node.home, node.root / "aside", symlinks=True)
    node.update()
    assert node.outcome() == (7, "committed")
    shutil.rmtree(node.home)
    (node.root / "aside").rename(node.home)
    assert interrupted().endswith("make one with a higher serial")
    capsys.readouterr()
    node.update()
    assert "waiting for a higher serial" in capsys.readouterr().out
    assert node.outcome() == (7, "rolled-back")


@pytest.mark.usefixtures("quick")
def test_a_short_fault_only_makes_the_minute_begin_anew(node: Node, school: School) -> None:
    school.serve(bundle=school.new)
    node.say(trial="\n".join([*["active|online|0"] * 8, "activating||0", "active|online|1"]))
    node.update()
    assert 100 <= node.now < 110
    assert node.outcome() == (7, "committed")


@pytest.mark.usefixtures("quick")
def test_a_program_that_was_not_restarted_is_not_kept(node: Node, school: School) -> None:
    """Else the old one would be healthy for a minute in the new one's name."""
    release = school.serve(bundle=school.new)
    node.say(deaf="")
    with pytest.raises(EdgeError, match=r"systemd did not restart edge-run; .* is tried again"):
        node.update()
    assert node.outcome() == (7, "rolled-back")
    assert node.state[1] != release.files[0].version
    (node.fake / "deaf").unlink()
    node.update()
    assert node.outcome() == (7, "committed")


def test_a_package_that_does_not_install_goes_back(node: Node, school: School) -> None:
    school.serve(package=NEW)
    node.say(broken="")
    with pytest.raises(EdgeError, match=r"does not install .dpkg: error processing"):
        node.update()
    assert node.state[0] == OLD
    assert node.now == 0


@pytest.mark.usefixtures("quick")
def test_without_a_way_back_or_room_nothing_is_begun(
    node: Node, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    school.serve(package=NEW)
    usage = shutil.disk_usage(node.home)
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1024**2))
        with pytest.raises(EdgeError, match="1 MiB free"):
            node.update()
    way_back = node.home / "packages" / f"edge-node_{OLD}_arm64.deb"
    os.truncate(way_back, way_back.stat().st_size - 60)
    with pytest.raises(EdgeError, match=r"no way back: .* is damaged; put it there again"):
        node.update()
    way_back.unlink()
    with pytest.raises(EdgeError, match=f"no way back: put edge-node_{OLD}_arm64.deb"):
        node.update()
    assert node.outcome() == (7, "failed")
    assert "--install" not in node.log


def test_two_do_not_work_at_once_and_the_command_speaks_in_one_line(
    node: Node, process_command: Callable[..., Done], capsys: pytest.CaptureFixture[str]
) -> None:
    with run.alone(node.machine):
        done = process_command("edge.update.run", "--root", node.root)
    assert done.code == 1
    assert done.last == "edge-update: another edge-update is at work; wait for it"
    (node.root / "etc/edge-node/node.yaml").write_text("update: {url: 'http://x', key: k}\n")
    assert run.main(["--root", str(node.root)]) == 2
    assert "url must be https" in capsys.readouterr().err
    (node.root / "etc/edge-node/node.yaml").write_text("")
    assert run.main(["--root", str(node.root)]) == 0
    assert capsys.readouterr().out == "updates are off (update.url in node.yaml)\n"


STEPS = ("os.rename", "os.symlink", "os.mkdir", "os.remove", "shutil.rmtree", "subprocess.Popen")


def killed(node: Node, at: int) -> bool:
    """An update whose process is killed before its `at`-th step that others can see; whether it was."""
    # A thread that is within OpenSSL or the allocator would leave their locks taken in the child.
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(PATIENCE)
    child = os.fork()
    if child == 0:
        seen, shown = 0, False

        def step(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen, shown
            if event not in STEPS:
                return
            if event == "subprocess.Popen":
                words = list(args[1])
                looks = words[:2] == ["systemctl", "show"] and node.machine.trial.exists()
                asks = words[1] in ("--status", "--field") or words[:2] == ["systemctl", "show"]
                if words[0] == "openssl" or (asks and (not looks or shown)):
                    return
                shown = shown or looks
            elif not str(args[0]).startswith(str(node.home)):
                return
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        try:
            node.update()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def shell(node: Node) -> None:
    """What the installed shell does at boot, where the new package may not run."""
    text = (ROOT / "systemd" / "bootstrap").read_text()
    found = re.search(r"^go_back\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    script = (
        f"set -u; UPDATES={node.home}; say() {{ :; }}; fail() {{ exit 1; }}\n{found[0]}\n"
        f"go_back && [ ! -e /proc/$$/fd/9 ]"  # what comes after it must not keep the lock
    )
    assert subprocess.run(["sh", "-c", script]).returncode == 0


@pytest.mark.usefixtures("quick")
def test_the_shell_leaves_alone_what_a_living_updater_has_on_trial(
    node: Node, school: School
) -> None:
    school.serve(bundle=school.new, package=NEW)
    looked = []

    def boot() -> None:
        looked.append(node.machine.trial.is_dir())
        shell(node)

    node.meanwhile = boot
    with run.alone(node.machine):
        node.update()
    assert any(looked)
    assert node.state == (NEW, version(school.new))
    assert node.outcome() == (7, "committed")
    rollout.begin(node.machine, rollout.Transition(8))
    shell(node)
    assert not node.machine.trial.exists()
    with run.alone(node.machine):
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("lines", ["active|online|0", "failed||0"])
def test_what_somebody_else_took_back_is_not_told_as_kept(
    node: Node, school: School, lines: str
) -> None:
    """As by a bootstrap from before the lock: it is not held here."""
    school.serve(bundle=school.new, package=NEW)
    node.say(trial=f"activating||0\n{lines}")
    node.meanwhile = lambda: shell(node)
    with pytest.raises(EdgeError, match="somebody else went back during its trial"):
        node.update()
    assert node.state == (OLD, version(school.old))
    assert node.outcome() == (7, "rolled-back")
    assert [p.name for p in (node.home / "packages").iterdir()] == [f"edge-node_{OLD}_arm64.deb"]
    node.meanwhile = lambda: None
    node.update()  # it was not the release's doing
    assert node.outcome() == (7, "committed")


@pytest.mark.process
def test_what_fails_after_a_trial_s_end_takes_nothing_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    rollout.begin(node.machine, rollout.Transition(8))
    with monkeypatch.context() as broken:
        broken.setattr(rollout, "sync_folder", full)
        rollout.end(node.machine)
    assert not node.machine.trial.exists()
    with pytest.raises(FileNotFoundError):
        rollout.end(node.machine)


def python(node: Node) -> None:
    run.run(["--root", str(node.root), "--recover"])


@pytest.mark.usefixtures("quick")
def test_power_may_be_cut_before_every_step(
    make_node: Callable[[str], Node], school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "LOOK_SECONDS", 30.0)
    old, new = (OLD, version(school.old)), (NEW, version(school.new))
    school.serve(bundle=school.new, package=NEW)
    at, trials = 0, 0
    while True:
        at += 1
        node = make_node(f"node-{at}")
        if not killed(node, at):
            break
        on_trial = node.machine.trial.is_dir()
        trials += on_trial
        assert on_trial or node.state in (old, new)
        (shell if at % 2 else python)(node)
        if on_trial:
            assert node.state == old
            assert not node.machine.trial.exists()
        (python if at % 2 else shell)(node)  # nothing is left to do, but to tell
        if on_trial:
            assert node.outcome() == (7, "rolled-back")
        assert node.state in (old, new)
        if at % 3:
            continue
        node.update()
        assert node.state == new
        assert (node.home / "serial").read_text() == "7\n"
        assert sorted(p.name for p in (node.home / "packages").iterdir()) == [
            f"edge-node_{v}_arm64.deb" for v in (OLD, NEW)
        ]
    assert node.state == new
    assert trials >= 8
    assert at >= 25


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("recover", [shell, python])
def test_power_may_be_cut_within_dpkg_and_going_back_may_be_cut_too(
    node: Node, school: School, recover: Callable[[Node], None]
) -> None:
    school.serve(bundle=school.new, package=NEW)
    node.say(cut="")
    assert killed(node, 10_000)
    assert node.state == ("", version(school.old))  # half configured
    node.machine.trial.joinpath("package").rename(node.root / "aside")
    node.machine.trial.joinpath("package").write_text(str(node.root / "absent.deb"))
    if recover is python:
        with pytest.raises(EdgeError, match=r"absent\.deb does not install"):
            recover(node)
    assert node.machine.trial.is_dir()
    (node.root / "aside").rename(node.machine.trial / "package")
    recover(node)
    assert node.state == (OLD, version(school.old))
    python(node)  # the hourly update, where it was the shell that went back
    assert node.outcome() == (7, "rolled-back")
    assert "power was cut" in node.last["reason"]
    assert not node.machine.went_back.exists()
    first = (node.home / "last.json").stat().st_ino
    python(node)
    assert (node.home / "last.json").stat().st_ino == first


@pytest.mark.usefixtures("quick")
def test_a_release_under_which_power_is_cut_three_times_is_left(
    node: Node, school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    school.serve(package=NEW)
    for _ in range(3):
        node.say(cut="")
        assert killed(node, 10_000)
        shell(node)
    capsys.readouterr()
    node.update(check=True)
    assert not (node.home / "last.json").exists()
    node.update()
    assert "waiting for a higher serial" in capsys.readouterr().out
    assert node.outcome() == (7, "rolled-back")
    assert "waiting for a higher serial" in node.last["reason"]


def test_a_bundle_is_packed_the_same_each_time_and_signed_last(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, name = flash.pack_bundle(school.new)
    copy = shutil.copytree(school.new, tmp_path / "copy", copy_function=shutil.copyfile)
    assert flash.pack_bundle(copy) == (first, name)
    written: list[str] = []
    write = flash.write_atomically

    def noted(path: Path, data: bytes) -> None:
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(flash, "write_atomically", noted)
    school.serve(bundle=school.new, package=NEW)
    assert written[-2:] == [MANIFEST, SIGNATURE]
    assert sorted(written[:-2]) == [f"bundle-{name}.tar", f"edge-node_{NEW}_arm64.deb"]


def test_the_command_makes_keys_and_releases(
    command: Callable[..., Done],
    school: School,
    tmp_path: Path,
) -> None:
    keys, out = tmp_path / "keys", tmp_path / "www"

    def run(*words: object) -> Done:
        return command("edge.flash.run", "release", *words)

    assert run("key", keys).code == 0
    assert (keys / "release.key").stat().st_mode & 0o777 == 0o600
    assert "release.key is there" in run("key", keys).last
    words = ["make", "--key", keys / "release.key", "--out", out, "--serial"]
    assert run(*words, 3).last == "edge-flash: give --bundle, --package or both"
    done = run(*words, 3, "--bundle", school.new)
    assert done.code == 0, done.err
    assert "release 3 is signed" in done.out
    done = run(*words, 3, "--bundle", school.new)
    assert (done.code, "must be above 3" in done.last) == (2, True)
    (out / "x.deb").write_bytes(b"!<arch>\n")
    assert (
        "is not an edge-node package for arm64" in run(*words, 4, "--package", out / "x.deb").last
    )
    damaged = shutil.copytree(school.new, tmp_path / "damaged")
    (damaged / "known-inputs.npy").write_bytes(b"")
    assert "known-inputs.npy has sha256" in run(*words, 4, "--bundle", damaged).last
    (keys / "release.key").chmod(0o644)
    assert "chmod 600" in run(*words, 4, "--bundle", school.new).last


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{url: 'http://x/edge', key: k}", "https"),
        ("{url: 'https://u:s3cret@x', key: k}", "password"),
        ("{url: 'https://x'}", "needs key"),
        ("{url: 'https://x/?a', key: k}", "nor"),
        ("{url: 'https://x/a b', key: k}", "ASCII"),
    ],
)
def test_the_address_of_releases_is_https_without_secrets(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(f"update: {text}\n")
    with pytest.raises(SettingsError, match=said) as caught:
        validate(Settings, read_yaml(path), "node.yaml")
    assert "cret" not in str(caught.value)

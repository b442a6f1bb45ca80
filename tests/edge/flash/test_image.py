"""edge-flash image, rootfs and fleet on a generated card image: offline, as an ordinary user may."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.base.errors import UsageError
from edge.flash.authority import create
from edge.flash.ext4 import Ext4, root_partition
from edge.flash.network import read_wifi
from edge.flash.run import main
from edge.flash.tree import RootFolder
from support import bases
from support.command import Done

pytestmark = [bases.needs_tools, pytest.mark.process]

NODE = """\
node: {site: north, room: room-12, name: cam-1}
camera: {source: /dev/edge-camera}
privacy: {legal_basis: "medical: a named study"}
broker: {url: "mqtts://broker.example:8883"}
clock: {servers: [time.example]}
"""
SSHD = "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base image, package, keys and authority, made once."""
    folder = tmp_path_factory.mktemp("flash")
    root = bases.root(folder / "root")
    (root / "etc/ssh/sshd_config").write_text(SSHD)
    (root / "etc/ssh/sshd_config.d/50-cloud-init.conf").write_text("PasswordAuthentication yes\n")
    bases.image(folder / "base.img", root)
    bases.package(folder)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True
    )
    create(folder / "ca", "North School")
    (folder / "node.yaml").write_text(NODE)
    return folder


@pytest.fixture
def bench(made: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with all of it; the base is shared, and only read."""
    for name in ("node.yaml", "key", "key.pub", "edge-node_0.1.0_arm64.deb"):
        shutil.copy(made / name, tmp_path / name)
    shutil.copytree(made / "ca", tmp_path / "ca")
    (tmp_path / "base.img").symlink_to(made / "base.img")
    return tmp_path


Flash = Callable[..., Done]


@pytest.fixture
def flash(bench: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Flash:
    monkeypatch.chdir(bench)
    monkeypatch.setenv("TZ", "Europe/Berlin")  # the laptop's

    def call(*words: str, site: bool = True) -> Done:
        common = ["--node", "node.yaml", "--package", "edge-node_0.1.0_arm64.deb"]
        common += ["--ssh-key", "key.pub", "--ca", "ca"]
        code = main([*words, *(common if site else [])])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


def opened(path: Path) -> Ext4:
    return Ext4(path, root_partition(path))


def test_an_image_holds_all_that_a_node_needs(bench: Path, flash: Flash) -> None:
    before = (bench / "base.img").read_bytes()
    done = flash("image", "base.img", "--out", "node.img")
    assert done.code == 0, done.err
    assert "north/room-12/cam-1" in done.out
    assert "ssh technician@room-12-cam-1" in done.out
    assert (bench / "base.img").read_bytes() == before, "the base is only read"
    assert stat.S_IMODE((bench / "node.img").stat().st_mode) == 0o600, "it holds a key"
    tree = opened(bench / "node.img")
    settings = yaml.safe_load(tree.read("/etc/edge-node/node.yaml") or b"")
    assert settings["broker"]["tls"]["key"] == "$CREDENTIALS_DIRECTORY/node.key"
    assert settings["runtime"]["bundle"] == "/var/lib/edge-update/bundle"
    assert tree.read("/etc/hostname") == b"room-12-cam-1\n"
    assert tree.read("/etc/hosts") == b"127.0.0.1 localhost\n127.0.1.1 room-12-cam-1\n"
    deb = bench / "edge-node_0.1.0_arm64.deb"
    assert tree.read(f"/var/lib/edge-update/packages/{deb.name}") == deb.read_bytes()
    assert b"NTP=time.example" in (tree.read("/etc/systemd/timesyncd.conf.d/edge-node.conf") or b"")
    subject = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-nameopt", "multiline"],
        input=tree.read("/etc/edge-node/node.pem"),
        capture_output=True,
    ).stdout
    assert b"north/room-12/cam-1" in subject
    assert tree._stat("/etc/edge-node/node.key")["mode"] == "0600"
    assert tree._stat("/etc/edge-node/node.yaml")["mode"] == "0600", "a camera's password"
    assert tree._stat("/usr/lib/edge-node/bootstrap")["mode"] == "0755"


def test_nobody_is_asked_anything_and_no_two_nodes_are_the_same(bench: Path, flash: Flash) -> None:
    assert flash("image", "base.img", "--out", "node.img").code == 0
    tree = opened(bench / "node.img")
    units = "/etc/systemd/system"
    assert tree._stat(f"{units}/default.target")["target"].endswith("multi-user.target")
    assert tree._stat(f"{units}/nv-oem-config.service")["target"] == "/dev/null"
    wanted = tree._stat(f"{units}/multi-user.target.wants/edge-provision.service")
    assert wanted["target"] == "/usr/lib/systemd/system/edge-provision.service"
    assert tree.read("/etc/machine-id") == b""
    assert tree.kind("/var/lib/dbus/machine-id") is None
    assert tree.names("/etc/ssh") == ["sshd_config", "sshd_config.d"], "host keys are its own"
    assert not {"random-seed", "credential.secret"} & set(tree.names("/var/lib/systemd"))
    assert tree.names("/var/lib/NetworkManager") == []


def test_two_cards_of_one_base_share_no_name_and_no_secret(bench: Path, flash: Flash) -> None:
    (bench / "nodes.csv").write_text("site,room,name\nnorth,a,cam\nnorth,b,cam\n")
    (bench / "wifi").write_text("School\na passphrase\n")
    words = ("--base", "base.img", "--out", "images", "--wifi", "wifi")
    assert flash("fleet", "nodes.csv", *words).code == 0
    cards = [opened(bench / f"images/north-{room}-cam.img") for room in "ab"]
    for path in (
        "/etc/hostname",
        "/etc/hosts",
        "/etc/edge-node/node.yaml",
        "/etc/edge-node/node.pem",
        "/etc/edge-node/node.key",
        "/etc/NetworkManager/system-connections/edge-node.nmconnection",
    ):
        contents = {card.read(path) for card in cards}
        assert len(contents - {None, b""}) == 2, path
    # The client id that the broker sees is the node's name.
    names = [yaml.safe_load(card.read("/etc/edge-node/node.yaml") or b"")["node"] for card in cards]
    assert [name["room"] for name in names] == ["a", "b"]


def test_the_technician_has_a_key_and_no_password(bench: Path, flash: Flash) -> None:
    done = flash("image", "base.img", "--out", "node.img")
    assert (done.code, "warning" in done.err) == (0, False)
    tree = opened(bench / "node.img")
    assert b"technician:*:" in (tree.read("/etc/shadow") or b"")
    assert tree._stat("/etc/shadow") | {"mode": "0640", "gid": "42"} == tree._stat("/etc/shadow")
    assert b"sudo:x:27:technician\n" in (tree.read("/etc/group") or b"")
    keys = "/home/technician/.ssh/authorized_keys"
    assert tree.read(keys) == (bench / "key.pub").read_bytes()
    assert tree._stat(keys)["mode"] == "0600"
    assert tree._stat(keys)["uid"] == "1000"
    assert tree._stat("/etc/sudoers.d/edge-node")["mode"] == "0440"
    rules = "/etc/ssh/sshd_config.d/00-edge-node.conf"
    assert b"PasswordAuthentication no\n" in (tree.read(rules) or b"")
    assert tree.read("/etc/ssh/sshd_config") == f"Include {rules}\n{SSHD}".encode()


def test_what_lets_passwords_in_all_the_same_is_said(bench: Path, flash: Flash) -> None:
    root = bases.root(bench / "rootfs")
    (root / "etc/default").mkdir()
    (root / "etc/default/ssh").write_text("SSHD_OPTS=-oPasswordAuthentication=yes\n")
    done = flash("rootfs", "rootfs")
    assert done.code == 0
    assert done.last.startswith("warning: SSH may take passwords: /etc/default/ssh gives sshd")


def zones(tree: Ext4) -> tuple[str, str, str]:
    """Of node.yaml's hours, and of the card's system."""
    settings = yaml.safe_load(tree.read("/etc/edge-node/node.yaml") or b"")
    link = tree._stat("/etc/localtime")["target"].removeprefix("/usr/share/zoneinfo/")
    return settings["privacy"]["zone"], link, (tree.read("/etc/timezone") or b"").decode().strip()


def test_a_node_keeps_the_hours_of_its_school(bench: Path, flash: Flash) -> None:
    done = flash("image", "base.img", "--out", "node.img")
    assert zones(opened(bench / "node.img")) == ("Europe/Berlin",) * 3, "the laptop's"
    assert "time zone Europe/Berlin" in done.out
    port = "America/Port_of_Spain"
    done = flash("image", "base.img", "--out", "two.img", "--renew", "--zone", port)
    assert zones(opened(bench / "two.img")) == (port,) * 3
    assert f"time zone {port}" in done.out
    (bench / "node.yaml").write_text(NODE.replace("privacy: {", f"privacy: {{zone: {port}, "))
    assert flash("image", "base.img", "--out", "three.img", "--renew").code == 0
    assert zones(opened(bench / "three.img")) == (port,) * 3, "node.yaml's own"
    one = ["--renew", "--zone", "Europe/Berlin"]
    assert flash("image", "base.img", "--out", "four.img", *one).code == 0
    assert zones(opened(bench / "four.img")) == ("Europe/Berlin",) * 3, "the option's"


def test_a_zone_that_cannot_be_is_refused(bench: Path, flash: Flash) -> None:
    done = flash("image", "base.img", "--out", "node.img", "--zone", "Europe/Berlim")
    assert (done.code, "did you mean 'Europe/Berlin'" in done.last) == (2, True)
    done = flash("image", "base.img", "--out", "node.img", "--zone", "Asia/Tokyo")
    assert (done.code, "tzdata into the base image" in done.last) == (1, True)
    assert not list(bench.glob("node.img*"))


def test_a_fixed_address_and_wifi_for_network_manager(bench: Path, flash: Flash) -> None:
    (bench / "wifi").write_text("School; net\np4ss;\\phrase\n", encoding="utf-8-sig")
    done = flash(
        *("image", "base.img", "--out", "node.img", "--wifi", "wifi", "--address", "192.0.2.20/24"),
        *("--gateway", "192.0.2.1", "--dns", "192.0.2.53"),
    )
    assert done.code == 0, done.err
    tree = opened(bench / "node.img")
    path = "/etc/NetworkManager/system-connections/edge-node.nmconnection"
    assert tree._stat(path)["mode"] == "0600"
    text = (tree.read(path) or b"").decode()
    # As GLib reads them: the name as a list of bytes, whose separator is escaped in it, the
    # passphrase as a string.
    assert "\nssid=School\\\\;\\snet\n" in text
    assert "\npsk=p4ss;\\\\phrase\n" in text
    assert "address1=192.0.2.20/24,192.0.2.1" in text
    assert "p4ss" not in done.out + done.err


@pytest.mark.parametrize(
    "text",
    ["School\n", "School\nshort\n", f"School\n{'ü' * 40}\n", "School\nlong\tenough\n", "a\nb\nc\n"],
)
def test_a_wifi_that_no_card_could_join_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "wifi").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="two lines: the Wi-Fi's name") as caught:
        read_wifi(tmp_path / "wifi")
    assert "enough" not in str(caught.value)
    (tmp_path / "wifi").write_text("Schule für alle\nein Schlüssel\n", encoding="utf-8")
    assert read_wifi(tmp_path / "wifi") == ("Schule für alle", "ein Schlüssel")


@pytest.mark.parametrize(
    "words",
    [
        ("--address", "fe80::1%x\n[evil]\nkey=1;/64"),
        ("--address", "192.0.2.20/24", "--gateway", "fe80::2%\nDHCP=yes"),
        ("--address", "192.0.2.20/24", "--dns", "fe80::2%\n[evil]"),
    ],
)
def test_no_address_writes_lines_of_its_own(
    bench: Path, flash: Flash, words: tuple[str, ...]
) -> None:
    done = flash("image", "base.img", "--out", "node.img", *words)
    assert done.code == 2
    assert "without a zone" in done.last


def test_another_arm64_board_gets_systemd_networkd(bench: Path, flash: Flash) -> None:
    root = bases.root(bench / "debian", jetson=False)
    (root / "usr/lib/systemd/system/systemd-networkd.service").write_text("[Service]\n")
    bases.image(bench / "debian.img", root)
    done = flash("image", "debian.img", "--out", "node.img")
    assert done.code == 1
    assert "--cpu" in done.last
    done = flash("image", "debian.img", "--out", "node.img", "--cpu")
    assert done.code == 0, done.err
    text = opened(bench / "node.img").read("/etc/systemd/network/10-edge-node.network") or b""
    assert b"DHCP=yes" in text


@pytest.mark.parametrize(
    ("change", "words", "code", "says"),
    [
        ("empty", [], 2, "'privacy.legal_basis' is empty"),
        ("blank", [], 2, "'privacy.legal_basis' gives no reason ('medical: tbd')"),
        ("", ["--out", "base.img"], 2, "is there already"),
        ("", ["--partition", "ROOT"], 1, "it has: APP, esp"),
        ("", ["--address", "192.0.2.20"], 2, "192.0.2.20/24"),
        ("", ["--address", "192.0.2.20/24", "--gateway", "198.51.100.1"], 2, "does not lie in"),
        ("", ["--address", "192.0.2.0/24"], 2, "is no host's"),
        ("", ["--address", "192.0.2.255/24"], 2, "is no host's"),
        ("", ["--address", "127.0.0.1/8"], 2, "is no host's"),
        ("", ["--address", "192.0.2.1/24", "--gateway", "192.0.2.1"], 2, "is the node's own"),
        ("", ["--ssh-key", "key"], 2, "private key"),
        ("", ["--user", "root"], 2, "already"),
        ("", ["--package", "node.yaml"], 1, "make deb"),
        ("", ["--ca", "nowhere"], 1, "nowhere"),
        ("plain", [], 2, "not mqtts://"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_image(
    bench: Path, flash: Flash, change: str, words: list[str], code: int, says: str
) -> None:
    changes = {
        "empty": ("medical: a named study", ""),
        "blank": ("a named study", "tbd"),
        "plain": ("mqtts", "mqtt"),
        "": ("", ""),
    }
    (bench / "node.yaml").write_text(NODE.replace(*changes[change]))
    common = ["--node", "node.yaml", "--package", "edge-node_0.1.0_arm64.deb", "--ca", "ca"]
    common += ["--ssh-key", "key.pub", "--out", "node.img"]
    done = flash("image", "base.img", *common, *words, site=False)
    assert done.code == code
    assert says in done.last, done.err
    assert len(done.err.strip().splitlines()) - done.err.count("copying") == 1
    assert not list(bench.glob("node.img*"))


def test_somebody_elses_package_and_table_in_another_encoding_are_one_line(
    bench: Path, flash: Flash
) -> None:
    control = bench / "other/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_bytes(
        b"Package: other\nVersion: 1\nArchitecture: all\nMaintainer: J\xfcrgen <j@example.org>\n"
        b"Description: x\n"
    )
    subprocess.run(
        ["dpkg-deb", "--build", bench / "other", bench / "other.deb"],
        check=True,
        capture_output=True,
    )
    words = ["--node", "node.yaml", "--package", "other.deb", "--ssh-key", "key.pub"]
    done = flash("image", "base.img", "--out", "node.img", *words, site=False)
    assert "other.deb is not an edge-node package" in done.last, done.err
    path = bases.image(bench / "wrong.img", bases.root(bench / "root"))
    bases.rename_second_partition(path, b"\x00\xd8A\x00")  # half of a sign
    done = flash("image", "wrong.img", "--out", "node.img", "--partition", "ROOT")
    assert done.code == 1
    assert "has no partition named ROOT (it has: APP, " in done.last, done.err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("cut", "is cut or damaged"),
        ("no-table", "not a disk image with a GPT"),
        ("dirty", "not unmounted cleanly"),
        ("amd64", "for amd64"),
        ("old", "older boards"),
        ("no-tensorrt", "--nvidia"),
        ("python", "Python 3.13"),
        ("depends", "openssl or libressl"),
        ("full", "MiB free"),
    ],
)
def test_an_image_that_cannot_become_a_node_is_refused(
    bench: Path, flash: Flash, wrong: str, says: str
) -> None:
    root = bases.root(bench / "root", "amd64" if wrong == "amd64" else "arm64")
    status = root / "var/lib/dpkg/status"
    if wrong == "old":
        (root / "etc/nv_tegra_release").write_text("# R32 (release), REVISION: 7.1, BOARD: t210\n")
    if wrong == "no-tensorrt":
        status.write_text(status.read_text().replace("python3-libnvinfer", "something"))
    if wrong == "python":
        status.write_text(status.read_text().replace("3.10.6", "3.13.5"))
    if wrong == "depends":
        status.write_text(status.read_text().replace("Package: openssl", "Package: other"))
    if wrong == "full":
        (root / "filler").write_bytes(os.urandom(15 * 2**20))
    path = bases.image(bench / "wrong.img", root)
    if wrong == "cut":
        os.truncate(path, 10 * 2**20)
    if wrong == "no-table":
        path.write_bytes(bytes(4 * 2**20))
    if wrong == "dirty":
        subprocess.run(
            ["debugfs", "-w", "-R", "feature needs_recovery", f"{path}?offset={4096 * 512}"],
            check=True,
            capture_output=True,
        )
    if wrong == "full":
        # As if the package were the real one's size.
        with (bench / "edge-node_0.1.0_arm64.deb").open("ab") as out:
            out.truncate(40 * 2**20)
    done = flash("image", "wrong.img", "--out", "node.img")
    assert done.code == 1
    assert says in done.last, done.err
    assert not list(bench.glob("node.img*"))


def test_a_base_by_the_name_of_an_unfinished_image_is_not_overwritten(
    bench: Path, flash: Flash
) -> None:
    base = bench / "node.img.part"  # as a browser calls what it has not all of
    base.write_bytes((bench / "base.img").read_bytes())
    done = flash("image", base.name, "--out", "node.img")
    assert (done.code, "give another --out" in done.last) == (2, True), done.err
    assert base.read_bytes() == (bench / "base.img").read_bytes()


def test_what_a_run_before_left_makes_no_image_that_others_read(bench: Path, flash: Flash) -> None:
    (bench / "elsewhere").write_text("mine")
    (bench / "node.img.part").symlink_to(bench / "elsewhere")
    assert flash("image", "base.img", "--out", "node.img").code == 0
    assert (bench / "elsewhere").read_text() == "mine"
    assert stat.S_IMODE((bench / "node.img").lstat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["-", "a" * 64, "end-"])
def test_a_node_is_called_what_a_host_may_be_called(bench: Path, flash: Flash, name: str) -> None:
    (bench / "node.yaml").write_text(NODE.replace("cam-1", name))
    done = flash("image", "base.img", "--out", "node.img")
    assert done.code == 2
    assert "host name" in done.last


def test_a_package_under_any_name_is_found_at_first_boot(bench: Path, flash: Flash) -> None:
    (bench / "edge-node_0.1.0_arm64.deb").rename(bench / "node.deb")
    common = ["--node", "node.yaml", "--package", "node.deb", "--ca", "ca", "--ssh-key", "key.pub"]
    done = flash("image", "base.img", "--out", "node.img", *common, site=False)
    assert done.code == 0, done.err
    names = opened(bench / "node.img").names("/var/lib/edge-update/packages")
    assert names == ["edge-node_0.1.0_arm64.deb"]


def test_an_image_is_flashed_once(bench: Path, flash: Flash) -> None:
    assert flash("image", "base.img", "--out", "node.img").code == 0
    done = flash("image", "node.img", "--out", "again.img", "--renew")
    assert done.code == 1
    assert "flashed already" in done.last


def test_a_name_gets_a_second_certificate_only_when_asked(bench: Path, flash: Flash) -> None:
    assert flash("image", "base.img", "--out", "one.img").code == 0
    done = flash("image", "base.img", "--out", "two.img")
    assert done.code == 1
    assert "--renew" in done.last
    assert flash("image", "base.img", "--out", "two.img", "--renew").code == 0


def test_nvidias_packages_go_in_where_tensorrt_is_missing(bench: Path, flash: Flash) -> None:
    root = bases.root(bench / "root")
    status = root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("python3-libnvinfer", "something"))
    bases.image(bench / "bare.img", root)
    (bench / "nvidia").mkdir()
    done = flash("image", "bare.img", "--out", "node.img", "--nvidia", "nvidia")
    assert done.code == 2
    assert "holds no .deb" in done.last
    (bench / "nvidia/libnvinfer10_10.3.0.30-1+cuda12.5_arm64.deb").write_bytes(b"a package")
    assert flash("image", "bare.img", "--out", "node.img", "--nvidia", "nvidia").code == 0
    assert opened(bench / "node.img").names("/var/lib/edge-update/nvidia") == [
        "libnvinfer10_10.3.0.30-1+cuda12.5_arm64.deb"
    ]


def test_a_node_that_updates_itself_gets_the_key_that_signs(bench: Path, flash: Flash) -> None:
    (bench / "node.yaml").write_text(NODE + "update: {url: 'https://school.example/edge'}\n")
    done = flash("image", "base.img", "--out", "node.img")
    assert done.code == 2
    assert "key" in done.last
    (bench / "release.pub").write_text(
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    )
    done = flash("image", "base.img", "--out", "node.img", "--release-key", "release.pub")
    assert done.code == 0, done.err
    tree = opened(bench / "node.img")
    assert tree.read("/etc/edge-node/release.pub") == (bench / "release.pub").read_bytes()
    settings = yaml.safe_load(tree.read("/etc/edge-node/node.yaml") or b"")
    assert settings["update"]["key"] == "/etc/edge-node/release.pub"


def test_rootfs_writes_the_same_into_a_folder(bench: Path, flash: Flash) -> None:
    root = bases.root(bench / "rootfs")
    done = flash("rootfs", "rootfs")
    assert done.code == 0, done.err
    tree = RootFolder(root)
    assert tree.read("/etc/hostname") == b"room-12-cam-1\n"
    assert stat.S_IMODE((root / "etc/edge-node/node.key").stat().st_mode) == 0o600
    assert os.readlink(root / "etc/systemd/system/nv-oem-config.service") == "/dev/null"
    if os.getuid() == 0:
        assert (root / "home/technician/.ssh").stat().st_uid == 1000
    done = flash("rootfs", "rootfs", "--renew")
    assert "flashed already" in done.last
    done = flash("rootfs", "ca", "--renew")
    assert "holds no root file system" in done.last


def test_rootfs_follows_no_link_out_of_the_folder(bench: Path, flash: Flash) -> None:
    root = bases.root(bench / "rootfs")
    (root / "home").symlink_to(bench / "elsewhere")
    (bench / "elsewhere").mkdir()
    done = flash("rootfs", "rootfs")
    assert done.code == 1
    assert "is a link" in done.last
    assert not list((bench / "elsewhere").iterdir())


def test_a_fleet_is_made_from_a_table(bench: Path, flash: Flash) -> None:
    (bench / "nodes.csv").write_text(
        "site,room,name,address,gateway,dns,camera\n"
        "north,room-12,cam-1,192.0.2.21/24,192.0.2.1,192.0.2.53,\n"
        "north,room-13,cam-1,,,,csi:0\n"
    )
    words = ("fleet", "nodes.csv", "--base", "base.img", "--out", "images")
    done = flash(*words)
    assert done.code == 0, done.err
    second = opened(bench / "images/north-room-13-cam-1.img")
    settings = yaml.safe_load(second.read("/etc/edge-node/node.yaml") or b"")
    assert settings["node"] == {"site": "north", "room": "room-13", "name": "cam-1"}
    assert settings["camera"]["source"] == "csi:0"


def test_a_fleet_with_a_node_that_was_made_before_is_refused_before_the_first_image(
    bench: Path, flash: Flash
) -> None:
    assert flash("image", "base.img", "--out", "room-12.img").code == 0
    (bench / "nodes.csv").write_text("site,room,name\nnorth,a,cam\nnorth,room-12,cam-1\n")
    done = flash("fleet", "nodes.csv", "--base", "base.img", "--out", "images")
    assert done.code == 2
    assert "line 3: north/room-12/cam-1 has a valid certificate; say --renew" in done.last
    assert not (bench / "images").exists()


def test_a_fleet_that_was_stopped_goes_on(
    bench: Path, flash: Flash, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench / "nodes.csv").write_text("site,room,name\nnorth,a,cam\nnorth,b,cam\n")
    words = ("fleet", "nodes.csv", "--base", "base.img", "--out", "images")
    verify = Ext4._verify

    def stopped(tree: Ext4, entries: Any) -> None:
        if (bench / "images/north-a-cam.img").exists():
            raise KeyboardInterrupt
        verify(tree, entries)

    monkeypatch.setattr(Ext4, "_verify", stopped)
    assert flash(*words).code == 130
    assert [p.name for p in (bench / "images").iterdir()] == ["north-a-cam.img"]
    monkeypatch.setattr(Ext4, "_verify", verify)
    done = flash(*words)
    assert done.code == 0, done.err
    assert "1/2 images/north-a-cam.img: is there, kept" in done.out
    listed = flash("ca", "list", "ca", site=False).out
    assert listed.count("revoked") == 1, "of the key that is nowhere"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("site,room\nnorth,a\n", "columns"),
        ("site,room,name,colour\n", "columns"),
        ("site,room,name\n", "names no node"),
        ("site,room,name\nnorth,a,b\nnorth,a,b\n", "line 3: the same node as line 2"),
        ("site,room,name\nnorth,A,b\n", "line 2"),
        ("site,room,name\nnorth,a\n", "line 2"),
        ("site,room,name,address\nn,a,b,192.0.2.1\n", "line 2: address"),
        ("site,room,name,address\nn,a,b,192.0.2.1/24\nn,a,c,192.0.2.1/24\n", "same address"),
        ("site,room,name,broker\nn,a,b,http://x\n", "line 2"),
        ("site,room,name\na-b,c,d\na,b-c,d\n", "line 3: the same file a-b-c-d.img as line 2"),
        ("site,room,name\n/tmp/x,b,c\n", "line 2"),
        (
            "site,room,name,address\nn,a,b,192.0.2.9/24\nn,a,c,192.0.2.9/25\n",
            "line 3: the same addr",
        ),
        ("site,room,name\nn\0,b,c\n", "line 2"),
        ('site,room,name\nn,"b,c\n', "line 2 is not CSV"),
        ('site,room,name,gateway,address\nn,a,b,"fe80::1%\n[evil]",fe80::3/64\n', "line 3"),
    ],
)
def test_a_wrong_table_is_refused_before_the_first_image(
    bench: Path, flash: Flash, table: str, says: str
) -> None:
    (bench / "nodes.csv").write_text(table)
    done = flash("fleet", "nodes.csv", "--base", "base.img", "--out", "images")
    assert done.code == 2
    assert says in done.last, done.err
    assert not (bench / "images").exists()

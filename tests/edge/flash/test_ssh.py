"""SSH takes keys alone, on any base image; where that cannot be shown it is said."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.flash import ssh
from edge.flash.board import inspect
from edge.flash.tree import RootFolder
from support import bases, sshd

UBUNTU = "Include /etc/ssh/sshd_config.d/*.conf\nKbdInteractiveAuthentication no\nUsePAM yes\n"
CLOUD = "PasswordAuthentication yes\n"
WANTED = {
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "permitemptypasswords": "no",
    "permitrootlogin": "no",
    "pubkeyauthentication": "yes",
}
BASES: list[tuple[str, dict[str, str]]] = [
    ("Ubuntu's own", {"sshd_config": UBUNTU}),
    ("cloud-init's", {"sshd_config": UBUNTU, "sshd_config.d/50-cloud-init.conf": CLOUD}),
    (
        "several, some before ours by name",
        {
            "sshd_config": UBUNTU,
            "sshd_config.d/00-aaa.conf": CLOUD,
            "sshd_config.d/!first.conf": "ChallengeResponseAuthentication yes\n",
            "sshd_config.d/60-cloudimg-settings.conf": "PasswordAuthentication=yes\n",
            "sshd_config.d/99-vendor.conf": "permitrootlogin yes\n",
        },
    ),
    ("without Include", {"sshd_config": f"{CLOUD}PermitRootLogin yes\nPermitEmptyPasswords yes\n"}),
    ("Include at the end", {"sshd_config": f"{CLOUD}Include /etc/ssh/sshd_config.d/*.conf\n"}),
    (
        "Include in a block",
        {
            "sshd_config": "Match User root\nInclude sshd_config.d/*.conf\n",
            "sshd_config.d/50-x.conf": "PasswordAuthentication yes\n",
        },
    ),
    (
        "blocks",
        {
            "sshd_config": UBUNTU + "Match User technician\n  PasswordAuthentication yes\n",
            "sshd_config.d/00-a.conf": "Match all\nPasswordAuthentication yes\nPermitRootLogin yes\n",
            "sshd_config.d/10-net.conf": "Match Address 10.0.0.0/8\nKbdInteractiveAuthentication yes\n",
        },
    ),
    (
        "another folder",
        {
            "sshd_config": "Include vendor/*.conf\n" + UBUNTU,
            "vendor/a.conf": "PasswordAuthentication yes\nPubkeyAuthentication no\n",
        },
    ),
]


def base(folder: Path, files: Mapping[str, str]) -> Path:
    """A root file system whose /etc/ssh has these files."""
    root = bases.root(folder)
    for name, text in files.items():
        path = root / "etc/ssh" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def flashed(root: Path) -> Path:
    tree = RootFolder(root)
    tree.apply(ssh.entries(tree))
    return root


def assert_keys_alone(root: Path) -> None:
    """For connections to which no block applies, each by itself, and all."""
    blocks = sshd.blocks(root)
    for applies in ([], *([block] for block in blocks), blocks):
        taken = sshd.effective(root, applies)
        assert {key: taken[key] for key in WANTED} == WANTED, applies


@pytest.mark.parametrize(("name", "files"), BASES, ids=[name for name, _ in BASES])
def test_ssh_takes_no_password_whatever_the_base_says(
    tmp_path: Path, name: str, files: dict[str, str]
) -> None:
    root = base(tmp_path / "root", files)
    before = (root / "etc/ssh/sshd_config").read_text()
    assert_keys_alone(flashed(root))
    assert (root / "etc/ssh/sshd_config").read_text().endswith(before), "the rest stays the base's"


SETTING = st.tuples(
    st.sampled_from(
        [
            "PasswordAuthentication",
            "passwordauthentication",
            "KbdInteractiveAuthentication",
            "ChallengeResponseAuthentication",
            "PermitEmptyPasswords",
            "PermitRootLogin",
            "PubkeyAuthentication",
        ]
    ),
    st.sampled_from([" yes", " no", "=yes", ' "yes"', "\tyes # really"]),
).map("".join)
LINE = st.one_of(
    SETTING,
    st.sampled_from(["", "# PasswordAuthentication no", "X11Forwarding no"]),
    st.sampled_from(["Match all", "Match User root", "Match Address 10.0.0.0/8"]),
    st.sampled_from(["Include /etc/ssh/sshd_config.d/*.conf", "Include more/*.conf"]),
)
# No file of a folder includes its own folder: sshd goes 16 deep and gives up.
PLAIN = LINE.filter(lambda line: not line.startswith("Include"))
TEXT = st.lists(PLAIN, max_size=6).map("\n".join)
ANY_BASE = st.fixed_dictionaries(
    {"sshd_config": st.lists(LINE, max_size=8).map("\n".join)},
    optional={
        "sshd_config.d/!a.conf": TEXT,
        "sshd_config.d/00-a.conf": TEXT,
        "sshd_config.d/50-cloud-init.conf": TEXT,
        "more/b.conf": TEXT,
    },
)


@given(ANY_BASE)
def test_no_setting_anywhere_brings_passwords_back(files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_keys_alone(flashed(base(Path(folder), files)))


def test_the_model_of_sshd_sees_what_the_base_lets_in(tmp_path: Path) -> None:
    """Else the tests above would hold for anything."""
    root = base(tmp_path, dict(BASES)["blocks"])
    assert sshd.effective(root, [])["passwordauthentication"] == "yes"
    assert sshd.effective(root, [])["kbdinteractiveauthentication"] == "no"
    assert sshd.effective(root, ["Address 10.0.0.0/8"])["kbdinteractiveauthentication"] == "yes"


def doubts(root: Path) -> list[str]:
    tree = RootFolder(root)
    return ssh.doubts(tree, inspect(tree))


DEBIANS = "[Service]\nEnvironmentFile=-/etc/default/ssh\nExecStart=/usr/sbin/sshd -D $SSHD_OPTS\n"


def test_a_usual_base_leaves_no_doubt(tmp_path: Path) -> None:
    root = base(tmp_path, dict(BASES)["blocks"])
    (root / "etc/default").mkdir()
    (root / "etc/default/ssh").write_text("# Options to pass to sshd\nSSHD_OPTS=\n")
    (root / "usr/lib/systemd/system/ssh.service").write_text(DEBIANS)
    (root / "etc/systemd/system/sshd.service").symlink_to("/usr/lib/systemd/system/ssh.service")
    assert doubts(root) == []


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("etc/default/ssh", "SSHD_OPTS='-o PasswordAuthentication=yes'\n", "etc/default/ssh"),
        ("etc/default/ssh", "export SSHD_OPTS=-f/etc/other\n", "etc/default/ssh"),
        (
            "etc/systemd/system/ssh.service.d/x.conf",
            "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D \\\n  -oPasswordAuthentication=yes\n",
            "ssh.service.d/x.conf",
        ),
        (
            "etc/systemd/system/ssh@.service.d/x.conf",
            "[Service]\nEnvironment=SSHD_OPTS=-f/etc/other\n",
            "ssh@.service.d/x.conf",
        ),
        (
            "etc/systemd/system/sshd.service",
            DEBIANS.replace("-/etc/default/ssh", "/etc/sysconfig/sshd"),
            "/etc/sysconfig/sshd",
        ),
        ("var/lib/dpkg/status", "Package: dropbear\nStatus: install ok installed\n\n", "dropbear"),
        (
            "var/lib/dpkg/status",
            "Package: openssh-server\nStatus: install ok installed\n\n",
            "sshd_config is not a file",
        ),
    ],
)
def test_what_no_file_can_forbid_is_said(tmp_path: Path, file: str, text: str, says: str) -> None:
    root = bases.root(tmp_path)
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + text)
    [doubt] = doubts(root)
    assert says in doubt

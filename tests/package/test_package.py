"""The package itself, in an arm64 Debian 12: by `make test-package`, as root, in about 20 minutes.

The tests stand in the order of a node's life, and each goes on where the one before it ended. The
system is made once by debootstrap, under EDGE_TEST_CACHE or build/. What runs in it has no network.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import build_package
import edge
from build_package import PYTHONS, named
from edge.base.files import sha256_of
from support.paths import ROOT

pytestmark = pytest.mark.package

# Not python3-venv, python3-pip or python3-distutils: the package must do without.
INCLUDE = "python3,systemd,udev,openssl,passwd"
PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
OPT, SHARE, UPDATES = (
    Path("opt/edge-node"),
    Path("usr/share/edge-node"),
    Path("var/lib/edge-update"),
)
POSTINST = "/var/lib/dpkg/info/edge-node.postinst"
# /sys is left out: the processor that it describes is the host's, and onnxruntime believes it.
ENTER = (
    'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && '
    f'exec chroot "$0" env -i {PATH} DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"'
)


class Node:
    """An arm64 system in a folder. Each command has process ids, mounts and a network of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Before the first installation: every path, and the users.
        self.before = self.files()
        self.users = self.path("etc/passwd").read_text()

    def words(self, *words: object, before: str = "") -> list[str]:
        apart = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
        return [*apart, "sh", "-c", before + ENTER, str(self.root), *map(str, words)]

    def run(self, *words: object, before: str = "", fails: bool = False) -> tuple[str, str]:
        """stdout and stderr; before: shell commands outside, where $0 is the system's folder."""
        done = subprocess.run(
            self.words(*words, before=before), capture_output=True, text=True, timeout=1800
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout, done.stderr

    def install(self, package: Path) -> str:
        shutil.copy(package, self.root / "tmp")
        try:
            return self.run("dpkg", "--install", f"/tmp/{package.name}")[0]
        finally:
            (self.root / "tmp" / package.name).unlink()

    def path(self, *parts: str | Path) -> Path:
        return self.root.joinpath(*parts)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}

    @property
    def versions(self) -> set[str]:
        """Those that are whole; there must be no others."""
        folders = {p.name for p in self.path(OPT).iterdir() if p.is_dir() and not p.is_symlink()}
        assert all(self.path(OPT, name, "complete").is_file() for name in folders)
        return folders

    @property
    def current(self) -> str:
        return os.readlink(self.path(OPT, "current"))


def needs() -> str:
    if os.getuid() != 0:
        return "needs root, for debootstrap and chroot"
    for program in ("debootstrap", "dpkg-buildpackage", "dh", "unshare"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: apt-get install debootstrap dpkg-dev debhelper)"
    emulated = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
    if platform.machine() != "aarch64" and not emulated.exists():
        return "needs arm64 programs to run (Debian: apt-get install qemu-user-static)"
    return ""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    if reason := needs():
        pytest.skip(reason)
    cache = Path(os.environ.get("EDGE_TEST_CACHE") or ROOT / "build") / "bookworm-arm64"
    if not (cache / "etc/debian_version").exists() or (cache / "debootstrap").exists():
        shutil.rmtree(cache, ignore_errors=True)
        cache.parent.mkdir(parents=True, exist_ok=True)
        words = [
            "--arch=arm64",
            "--variant=minbase",
            f"--include={INCLUDE}",
            "bookworm",
            str(cache),
        ]
        done = subprocess.run(["debootstrap", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"debootstrap made no Debian: {done.stdout.strip().splitlines()[-1]}")
    root = tmp_path_factory.mktemp("node") / "root"
    subprocess.run(["cp", "-a", cache, root], check=True)
    root.parent.chmod(0o755)
    return Node(root)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The package as `make deb` makes it, and the next version for Debian 12's Python alone."""
    if reason := needs():
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("packages")
    first = build_package.build(edge.__version__, PYTHONS, False, out)
    yield first, build_package.build(edge.__version__ + "+next", ["3.11"], False, out)
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def unpacked(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", packages[0], folder], check=True)
    return folder


def test_two_builds_are_the_same_bytes(packages: tuple[Path, Path], tmp_path: Path) -> None:
    again = build_package.build(edge.__version__, PYTHONS, False, tmp_path)
    assert sha256_of(again) == sha256_of(packages[0])


def test_a_second_build_needs_no_network(packages: tuple[Path, Path], tmp_path: Path) -> None:
    script = ROOT / "systemd/build_package.py"
    words = [sys.executable, script, "--python", "3.11", "--out", tmp_path]
    done = subprocess.run(
        ["unshare", "--net", *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path, size, digest = done.stdout.splitlines()
    assert size == f"{Path(path).stat().st_size} bytes"
    assert digest == f"sha256 {sha256_of(Path(path))}"


def test_lintian_finds_nothing(packages: tuple[Path, Path]) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian")
    words = ["lintian", "--allow-root", "--fail-on", "error,warning", str(packages[0])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_manifest_names_every_input(unpacked: Path) -> None:
    folder = unpacked / SHARE
    lines = (folder / "MANIFEST").read_text().splitlines()
    named_here = {line.split()[1] for line in lines if not line.startswith("#")}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there == named_here | {"MANIFEST"}
    for line in lines:
        if not line.startswith("#"):
            digest, name = line.split()
            assert sha256_of(folder / name) == digest
    assert any(line.endswith("  systemd/debian/postinst") for line in lines)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_pythons_wheels_want_nothing_that_is_not_there(unpacked: Path, python: str) -> None:
    folder = unpacked / SHARE
    text = (folder / f"requirements-{python}.txt").read_text()
    text += (folder / f"opencv-{python}.txt").read_text()
    listed = dict(re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", text, re.M))
    assert "classroom-node" in listed
    env = {"python_version": python, "python_full_version": f"{python}.0", "extra": "",
           "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64",
           "implementation_name": "cpython", "platform_python_implementation": "CPython",
           "os_name": "posix"}  # fmt: skip
    seen = set()
    for path in (folder / "wheels").glob("*.whl"):
        name, version = named(path.name)
        if listed.get(name) != version or not build_package.fits(path.name, python):
            continue
        seen.add(name)
        with zipfile.ZipFile(path) as wheel:
            (meta,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
            headers = HeaderParser().parsestr(wheel.read(meta).decode())
        for line in headers.get_all("Requires-Dist", []):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate(env):
                assert wanted.specifier.contains(listed[canonicalize_name(wanted.name)]), line
    assert seen == set(listed)


def test_the_wheel_of_ours_holds_neither_tests_nor_the_laboratory(unpacked: Path) -> None:
    (path,) = (unpacked / SHARE / "wheels").glob("classroom_node-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info" not in name]
        (scripts,) = [n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt")]
        modules = re.findall(r" = ([a-z_.]+):main$", wheel.read(scripts).decode(), re.M)
    assert {name.split("/")[0] for name in names} == {"edge", "export"}
    ours = {name for name in names if name.startswith("export/")}
    assert {name for name in ours if not name.startswith("export/engine/")} == {
        "export/__init__.py"
    }
    assert {f"{module.replace('.', '/')}.py" for module in modules} <= set(names)


def test_power_is_cut_while_it_installs(node: Node, packages: tuple[Path, Path]) -> None:
    shutil.copy(packages[0], node.path("tmp/node.deb"))
    process = subprocess.Popen(
        node.words("dpkg", "--install", "/tmp/node.deb"), stdout=subprocess.DEVNULL
    )
    version = edge.__version__
    deadline = time.monotonic() + 600
    while not list(node.path(OPT).glob(f"{version}/lib/python3*/site-packages/numpy")):
        assert process.poll() is None, "it ended before it could be cut short"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not node.path(OPT, version, "complete").exists()
    assert not node.path(OPT, "current").is_symlink()
    out, _ = node.run("dpkg", "--configure", "--pending")
    node.path("tmp/node.deb").unlink()
    assert "1/3 making" in out, "made anew"
    assert "the system has no OpenCV" in out
    assert node.versions == {node.current} == {version}
    assert node.run("dpkg", "--audit")[0] == ""


def test_the_program_runs_as_the_services_user(node: Node) -> None:
    assert node.run("edge-run", "--version")[0].startswith("edge-run ")
    as_node = ["setpriv", "--reuid=edge-node", "--regid=edge-node", "--clear-groups", "env",
               "XDG_CACHE_HOME=/tmp/cache", "XDG_STATE_HOME=/tmp/state"]  # fmt: skip
    options = ["--camera", "test", "--max-seconds", "2", "--window", "1", "--min-group", "1"]
    settings = ["--config", "/etc/edge-node/node.yaml", "--backend", "ort", "--broker", "-"]
    out, _ = node.run(*as_node, "edge-run", *settings, *options)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line for line in lines if line["topic"].endswith("/counts")]
    shutil.rmtree(node.path("tmp/cache"))
    shutil.rmtree(node.path("tmp/state"))


def test_it_is_enabled_and_everything_is_where_it_belongs(node: Node) -> None:
    wanted = node.path("etc/systemd/system")
    assert (wanted / "multi-user.target.wants/edge-run.service").is_symlink()
    assert (wanted / "multi-user.target.wants/edge-provision.service").is_symlink()
    assert (wanted / "timers.target.wants/edge-update.timer").is_symlink()
    assert os.readlink(node.path(UPDATES, "bundle")) == "/usr/share/edge-node/bundle"
    assert node.path("etc/edge-node/node.key").stat().st_mode & 0o777 == 0o600
    assert node.path("usr/lib/systemd/system/edge-run.service").is_file()


def test_installed_twice_it_stays_as_it_is(node: Node, packages: tuple[Path, Path]) -> None:
    settings = node.path("etc/edge-node/node.yaml")
    settings.write_text(settings.read_text() + "# a technician's line\n")
    mark = node.path(OPT, node.current, "complete").stat().st_mtime_ns
    out = node.install(packages[0])
    assert "1/3 making" not in out
    assert node.path(OPT, node.current, "complete").stat().st_mtime_ns == mark
    assert settings.read_text().endswith("# a technician's line\n")


def test_faults_are_said_in_one_line(node: Node) -> None:
    mark = node.path(OPT, node.current, "complete")
    text = mark.read_text()
    mark.write_text("of another package\n")
    small = 'mount -t tmpfs -o size=64m none "$0/opt" && mkdir "$0/opt/edge-node" && '
    _, err = node.run(POSTINST, "configure", before=small, fails=True)
    assert re.fullmatch(
        r"edge-node: /opt/edge-node needs \d+ MiB and has 6\d; make room, .*\n", err
    )
    mark.write_text(text)
    wheels = node.path(SHARE, "requirements-3.11.txt")
    wheels.rename(wheels.with_suffix(".away"))
    _, err = node.run(POSTINST, "configure", fails=True)
    assert err == (
        "edge-node: no wheels for this system's Python 3.11; build the package with --python 3.11, "
        "or install Python 3.10 3.12\n"
    )
    wheels.with_suffix(".away").rename(wheels)


def test_a_full_disk_leaves_the_version_in_use(node: Node) -> None:
    """Full in the middle, although there seemed to be room."""
    requirements = node.path(SHARE, "requirements-3.11.txt")
    text = requirements.read_text()
    requirements.write_text(re.sub(r"installed-kib: \d+", "installed-kib: 1", text))
    small = 'mount -t tmpfs -o size=64m none "$0/opt" && mkdir -p "$0/opt/edge-node/old" && '
    small += 'touch "$0/opt/edge-node/old/complete" && ln -s old "$0/opt/edge-node/current" && '
    script = f"{POSTINST} configure; ls /opt/edge-node; readlink /opt/edge-node/current"
    out, err = node.run("sh", "-c", script, before=small)
    assert "could not be made" in err.splitlines()[-1]
    assert out.splitlines()[-3:] == ["current", "old", "old"]
    requirements.write_text(text)


def test_an_upgrade_keeps_the_version_of_before(node: Node, packages: tuple[Path, Path]) -> None:
    before = node.current
    # A system that has an OpenCV: nothing of pip's may hide it.
    system = node.path("usr/lib/python3/dist-packages/cv2.py")
    system.parent.mkdir(parents=True, exist_ok=True)
    system.write_text("def __getattr__(name):\n    return 0\n")
    out = node.install(packages[1])
    system.unlink()
    assert "OpenCV is the system's" in out
    assert not list(node.path(OPT, node.current).glob("lib/python3*/site-packages/cv2"))
    assert node.current == f"{before}+next"
    assert node.versions == {before, node.current}
    assert os.readlink(node.path(OPT, "previous")) == before


def test_a_downgrade_takes_the_version_that_is_there(
    node: Node, packages: tuple[Path, Path]
) -> None:
    after = node.current
    out = node.install(packages[0])
    assert "1/3 making" not in out
    assert node.versions == {node.current, after}
    assert node.current == edge.__version__
    assert os.readlink(node.path(OPT, "previous")) == after
    node.run("edge-run", "--version")


def test_a_check_runs_with_the_services_user_and_secrets(node: Node) -> None:
    """systemd does not run here: what would be asked of it is read."""
    stub = node.path("usr/local/bin")
    for name, text in (("systemd-run", 'printf "%s\\n" "$@"'), ("systemctl", "exit 3")):
        (stub / name).write_text(f"#!/bin/sh\n{text}\n")
        (stub / name).chmod(0o755)
    node.path("etc/edge-node/password").unlink()
    node.path("run/systemd/system").mkdir(parents=True)
    stubs = f"PATH=/usr/local/bin:{PATH.removeprefix('PATH=')}"
    asked, _ = node.run("env", stubs, "edge-check", "--camera", "test")
    _, err = node.run("setpriv", "--reuid=65534", "edge-check", fails=True)
    shutil.rmtree(node.path("run/systemd"))
    for name in ("systemd-run", "systemctl"):
        (stub / name).unlink()
    lines = asked.splitlines()
    program = lines.index("/opt/edge-node/current/bin/edge-run")
    assert lines[program + 1 :] == [
        "--config",
        "/etc/edge-node/node.yaml",
        "--check",
        "--camera",
        "test",
    ]
    assert "--property=LoadCredential=node.key:/etc/edge-node/node.key" in lines[:program]
    assert "password" not in asked
    unit = (ROOT / "systemd/edge-run.service").read_text()
    for line in lines[:program]:
        if line.startswith("--property=") and "LoadCredential" not in line:
            assert line.removeprefix("--property=") in unit.splitlines(), line
    (given,) = re.findall(r"^Environment=(.*)$", unit, re.M)
    assert {f"--setenv={word}" for word in given.split()} <= set(lines[:program])
    assert err == "edge-check: must read the node's key; run: sudo edge-check\n"


def leavings(node: Node) -> set[str]:
    """Paths that were not there before the first installation, but for dpkg's and the system's own."""
    own = ("proc/", "dev/", "var/lib/dpkg/", "var/log/dpkg.log", "var/cache/", "root/.cache",
           "usr/lib/python3/dist-packages", "usr/lib/python3.11/", "usr/lib/python3/",
           "usr/share/python3/", "etc/.pwd.lock")  # fmt: skip
    backups = re.compile(r"etc/(passwd|group|shadow|gshadow|subuid|subgid)-$")
    new = node.files() - node.before
    return {p for p in new if not p.startswith(own) and not backups.match(p)}


def test_removal_takes_the_program_and_leaves_the_settings(node: Node) -> None:
    node.run("dpkg", "--remove", "edge-node")
    assert not node.path("opt/edge-node").exists()
    assert not node.path("usr/bin/edge-run").exists()
    assert not node.path("usr/lib/edge-node").exists()
    assert node.path("etc/edge-node/node.yaml").read_text().endswith("# a technician's line\n")
    assert node.path(UPDATES, "bundle").is_symlink()


def test_a_purge_leaves_nothing(node: Node) -> None:
    for name in (
        "etc/edge-node/node.pem",
        "var/lib/edge-node/outbox/log.sqlite",
        "var/lib/edge-update/packages/edge-node_1_arm64.deb",
        "var/log/journal/0123456789abcdef.edge-node/system.journal",
        "run/log/journal/0123456789abcdef.edge-node/system.journal",
        "etc/systemd/system/edge-run.service.d/network.conf",
        "var/lib/systemd/timers/stamp-edge-update.timer",
    ):
        node.path(name).parent.mkdir(parents=True, exist_ok=True)
        node.path(name).write_text("left\n")
    node.run("dpkg", "--purge", "edge-node")
    own = {"var/log/journal", "run/log/journal", "run/log", "var/lib/systemd/timers"}
    assert leavings(node) - own == set()
    assert node.path("etc/passwd").read_text() == node.users
    assert "edge-node" not in node.path("etc/group").read_text()
    assert node.run("dpkg", "--list")[0].count("edge-node") == 0
    node.run("dpkg", "--audit")


def test_it_installs_again_after_a_purge(node: Node, packages: tuple[Path, Path]) -> None:
    node.install(packages[0])
    assert node.versions == {edge.__version__}
    node.run("edge-run", "--version")
    node.run("dpkg", "--purge", "edge-node")
    assert not node.path("opt/edge-node").exists()

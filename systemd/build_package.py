"""`make deb`: the node's Debian package for arm64, with all that it needs offline.

Wheels are pinned in wheels.txt and named with their sha256 in wheels.sha256. What was fetched once is
kept in build/package, so that a second build needs no network. The same commit, Python versions and
package version give the same bytes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import edge
from build_steps import Steps
from edge.base import cli
from edge.base.commands import MODULES
from edge.base.errors import EdgeError, UsageError
from edge.base.files import file_lock, sha256, sha256_of, write_atomically
from edge.inference.weights import fetch, locked, original

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "edge-node"
PYTHONS = ("3.10", "3.11", "3.12")
# Ubuntu 22.04, the oldest base, has glibc 2.35.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
# Of the wheel of our own; from a folder, so that it can be made without a network.
BUILD_TOOL = "setuptools==84.2.1"
# What our wheel and the package are made of; the laboratory, tests and demo stay here.
SOURCES = ("edge", "export/__init__.py", "export/engine", "systemd", "pyproject.toml", "README.md",
           "LICENSE", "LICENSES", "THIRD_PARTY.md")  # fmt: skip
OPENCV = "opencv-python-headless"
PIP_SECONDS = 900
# Compiled modules are about as large as their source; the rest is for what pip itself needs meanwhile.
SPARE = 1.15


def _ignore(line: str) -> None:
    pass


def _run(
    words: Sequence[str | Path],
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
    seen: Callable[[str], None] = _ignore,
) -> str:
    """Return what a command printed; `seen` gets each line as it comes. Raises EdgeError with its last
    line where it fails."""
    late = threading.Event()
    with tempfile.TemporaryFile("w+") as faults:
        try:
            process = subprocess.Popen(
                list(map(str, words)), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=faults,
                text=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise EdgeError(
                f"{words[0]} is not here; apt-get install dpkg-dev debhelper git"
            ) from error

        def give_up() -> None:
            late.set()
            process.kill()

        watch = threading.Timer(PIP_SECONDS, give_up)
        watch.start()
        printed = []
        with process:
            for line in process.stdout or ():
                printed.append(line)
                seen(line)
        watch.cancel()
        if late.is_set():
            raise EdgeError(f"{words[0]} took more than {PIP_SECONDS} s; try again")
        if process.returncode:
            faults.seek(0)
            said = faults.read().strip() or "".join(printed).strip() or "it failed"
            lines = said.splitlines()
            errors = [line for line in lines if "error" in line.lower()]
            raise EdgeError(f"{' '.join(map(str, words[:4]))} ...: {(errors or lines)[-1]}")
    return "".join(printed)


def _pip(
    *words: str | Path, env: dict[str, str] | None = None, seen: Callable[[str], None] = _ignore
) -> None:
    if importlib.util.find_spec("pip") is None:
        raise EdgeError(f"{sys.executable} has no pip; apt-get install python3-pip")
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], env, seen=seen)


def _number(python: str) -> tuple[int, ...]:
    return tuple(map(int, python.split(".")))


def pins(text: str, python: str) -> dict[str, str]:
    """Return versions by name, from the lines of wheels.txt that hold for a Python such as 3.10."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(
            r'([a-z0-9-]+)==([0-9.]+)(?:; python_version (<|>=) "([0-9.]+)")?', line.strip()
        )
        if match is None:
            raise EdgeError(
                f"wheels.txt: '{line}' is not a pinned requirement; write name==version"
            )
        name, version, compare, limit = match.groups()
        if compare and (_number(python) < _number(limit)) != (compare == "<"):
            continue
        if name in found:
            raise EdgeError(f"wheels.txt: {name} is pinned twice for Python {python}")
        found[name] = version
    return found


def fits(wheel: str, python: str) -> bool:
    """Tell whether a wheel of our platforms is for this Python: its own, a stable ABI, or any."""
    tag, abi = wheel.removesuffix(".whl").split("-")[-3:-1]
    if "py3" in tag.split("."):
        return True
    at_least = re.fullmatch(r"cp3(\d+)", tag)
    if abi == "abi3" and at_least:
        return int(at_least[1]) <= _number(python)[1]
    return tag == f"cp{python.replace('.', '')}"


def named(wheel: str) -> tuple[str, str]:
    """Return a wheel's project, as requirements spell it, and its version."""
    name, version = wheel.split("-")[:2]
    return re.sub(r"[-_.]+", "-", name).lower(), version


def read_lock() -> dict[str, str]:
    """Return sha256 by file name, from wheels.sha256 (in sha256sum's format)."""
    path = ROOT / "systemd/wheels.sha256"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: digest for digest, name in (line.split() for line in lines)}


def choose(wanted: dict[str, str], python: str, files: Iterable[str]) -> list[str]:
    """Return the one file of each pinned requirement. Raises EdgeError where there is none, or two."""
    chosen = []
    for pin in wanted.items():
        fitting = [file for file in files if named(file) == pin and fits(file, python)]
        if len(fitting) != 1:
            raise EdgeError(
                f"wheels.sha256 names {len(fitting)} files for {pin[0]} {pin[1]} on Python {python}; "
                "run this again with --lock"
            )
        chosen += fitting
    return chosen


def fetch_wheels(cache: Path, python: str, wanted: dict[str, str], steps: Steps) -> None:
    """Download into the cache, from the user's package index."""
    begun = 0

    def seen(line: str) -> None:
        nonlocal begun
        if line.startswith("Collecting "):
            begun += 1
            steps.detail(f"fetching {begun} of {len(wanted)}, {line.split()[1]}")

    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]
    exact = [f"{name}=={version}" for name, version in wanted.items()]
    _pip("download", "--no-deps", *target, *platforms, "--dest", cache, *exact, seen=seen)


def wheelhouse(
    cache: Path, pythons: Sequence[str], lock: bool, steps: Steps
) -> dict[str, list[Path]]:
    """Return the wheels of each Python, checked against wheels.sha256, which `lock` writes first."""
    text = (ROOT / "systemd/wheels.txt").read_text(encoding="utf-8")
    cache.mkdir(parents=True, exist_ok=True)
    if lock:
        for python in pythons:
            with steps.step(f"any wheels for Python {python}"):
                fetch_wheels(cache, python, pins(text, python), steps)
        there = [path.name for path in sorted(cache.glob("*.whl"))]
        used = {name for python in pythons for name in choose(pins(text, python), python, there)}
        lines = [f"{sha256_of(cache / name)}  {name}\n" for name in sorted(used)]
        write_atomically(ROOT / "systemd/wheels.sha256", "".join(lines).encode())
    known = read_lock()
    found = {}
    for python in pythons:
        wanted = pins(text, python)
        names = choose(wanted, python, known)
        with steps.step(f"{len(names)} wheels for Python {python}"):
            if not all((cache / name).is_file() for name in names):
                fetch_wheels(cache, python, wanted, steps)
            for number, name in enumerate(names, 1):
                steps.detail(f"checking {number} of {len(names)}, {named(name)[0]}")
                if not (cache / name).is_file():
                    raise EdgeError(f"the index has no {name} any more; run this again with --lock")
                if sha256_of(cache / name) != known[name]:
                    (cache / name).unlink()
                    raise EdgeError(f"{name} has another sha256 than wheels.sha256 says; not used")
        found[python] = [cache / name for name in names]
    return found


def requirement(wheel: Path) -> str:
    """Return the line of a requirements file that names a wheel by its hash."""
    name, version = named(wheel.name)
    return f"{name}=={version} --hash=sha256:{sha256_of(wheel)}\n"


def installed_kib(wheels: Iterable[Path]) -> int:
    """Return what they take on a disk, their compiled modules included."""
    total = 0
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            for item in wheel.infolist():
                total += item.file_size * (2 if item.filename.endswith(".py") else 1)
    return int(total * SPARE) >> 10


def tracked() -> list[str]:
    """List the files of SOURCES, those not yet committed included, those that git ignores not."""
    listed = _run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *SOURCES])
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def node_commands(project: str, tree: Path) -> str:
    """Return pyproject.toml's text without the commands whose module is not in the tree."""
    for command, module in MODULES.items():
        if not (tree / f"{module.replace('.', '/')}.py").is_file():
            project = re.sub(f'^{command} = ".+"\n', "", project, flags=re.M)
    return project


def copy(source: Path, target: Path) -> None:
    """Copy a file, with a mode that does not depend on who checked it out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def own_wheel(tree: Path, cache: Path, env: dict[str, str]) -> Path:
    """Build our wheel from a copy of the tree; the tool that makes it is fetched once."""
    tools, out, project = cache / "tools", tree / "own", tree / "pyproject.toml"
    project.write_text(node_commands(project.read_text(encoding="utf-8"), tree))
    if not list(tools.glob(BUILD_TOOL.replace("==", "-") + "-*.whl")):
        _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", tools, BUILD_TOOL)
    offline = ["--no-deps", "--no-index", "--find-links", str(tools), "--wheel-dir", str(out)]
    _pip("wheel", *offline, tree, env=env)
    (wheel,) = out.glob("*.whl")
    return wheel


def weights(cache: Path) -> Path:
    """Return the detector's file as published; a node patches it itself, by hash."""
    entry = locked()["yunet"]
    path = cache / "weights" / str(entry["file"])
    if not path.is_file():
        write_atomically(path, original("yunet", entry, None, fetch))
    elif sha256(path.read_bytes()) != entry["sha256"]:
        path.unlink()
        raise EdgeError(f"{path.name} in the cache was damaged and is removed; run this again")
    return path


def where_installed(settings: str) -> str:
    """Return node.yaml's text with the schema's place on a node, for whoever edits it there."""
    return settings.replace("../edge/schemas/", "/usr/share/edge-node/")


def share(
    tree: Path,
    cache: Path,
    version: str,
    houses: dict[str, list[Path]],
    ours: Path,
) -> None:
    """Fill tree/share, which becomes /usr/share/edge-node. ours: the kit's own wheel."""
    folder = tree / "share"
    copy(ours, folder / "wheels" / ours.name)
    for python, wheels in houses.items():
        for wheel in wheels:
            copy(wheel, folder / "wheels" / wheel.name)
        opencv = [wheel for wheel in wheels if named(wheel.name)[0] == OPENCV]
        base = [wheel for wheel in wheels if wheel not in opencv and named(wheel.name)[0] != "pip"]
        lines = sorted(map(requirement, [ours, *base]))
        size = f"# installed-kib: {installed_kib([ours, *wheels])}\n"
        (folder / f"requirements-{python}.txt").write_text(size + "".join(lines))
        (folder / f"opencv-{python}.txt").write_text("".join(map(requirement, opencv)))
    detector = weights(cache)
    copy(detector, folder / "weights" / detector.name)
    for path in sorted((tree / "edge/models").iterdir()):
        copy(path, folder / "bundle" / path.name)
    copy(tree / "edge/schemas/node.yaml.json", folder / "node.yaml.json")
    copy(tree / "systemd/node.yaml", folder / "node.yaml")
    settings = folder / "node.yaml"
    settings.write_text(where_installed(settings.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "version").write_text(f"{version}\n")
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in inside]
    # What else the package is made of; sha256sum --check reads these lines as comments.
    lines += [f"# {sha256_of(ROOT / name)}  {name}\n" for name in tracked()]
    (folder / "MANIFEST").write_text("".join(lines))


def entry(version: str, changelog: str, epoch: int) -> str:
    """Return debian/changelog, with an entry for a version that has none."""
    if changelog.startswith(f"{PACKAGE} ({version}) "):
        return changelog
    date = datetime.fromtimestamp(epoch, timezone.utc).strftime("%a, %d %b %Y %H:%M:%S +0000")
    by = changelog.partition(" -- ")[2].partition("  ")[0]
    return (
        f"{PACKAGE} ({version}) unstable; urgency=medium\n\n  * Built from the tree.\n\n"
        f" -- {by}  {date}\n\n{changelog}"
    )


def build(version: str, pythons: Sequence[str], lock: bool, out: Path) -> Path:
    """Build the package; its path. Raises EdgeError where a file, a tool or an index is missing."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _run(["git", "log", "-1", "--format=%ct"]))
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    work = ROOT / "build/package"
    tree = work / "tree" / f"{PACKAGE}-{version}"
    # Another build here is waited for.
    with file_lock(work / "lock"):
        shutil.rmtree(work / "tree", ignore_errors=True)
        steps = Steps(len(pythons) * (1 + lock) + 3)
        houses = wheelhouse(work / "wheels", pythons, lock, steps)
        with steps.step("the kit's own wheel"):
            for name in tracked():
                copy(ROOT / name, tree / name)
            ours = own_wheel(tree, work, env)
        with steps.step("what a node keeps: wheels, weights, bundle, manifest"):
            share(tree, work, version, houses, ours)
        shutil.copytree(tree / "systemd/debian", tree / "debian")
        changelog = tree / "debian/changelog"
        changelog.write_text(entry(version, changelog.read_text(encoding="utf-8"), epoch))
        # Our own build dependencies are asked for; -d leaves out the compiler for arm64 that dpkg takes
        # every foreign package to need, and this one holds nothing to compile.
        _run(["dpkg-checkbuilddeps", "-I", "-a", "arm64"], env, tree)
        with steps.step("packing, the longest"):
            _run(["dpkg-buildpackage", "-b", "-us", "-uc", "-d", "-a", "arm64"], env, tree)
        out.mkdir(parents=True, exist_ok=True)
        made = tree.parent / f"{PACKAGE}_{version}_arm64.deb"
        path = out / made.name
        shutil.move(made, path)
    return path


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "build_package",
        "Build the node's Debian package for arm64, with all that it needs offline.",
        "build_package --python 3.10",
        version=False,
    )
    p.add_argument(
        "--version", default=edge.__version__, help="of the package; default: the tree's"
    )
    p.add_argument(
        "--python", nargs="+", choices=PYTHONS, default=PYTHONS, help="of the systems it serves"
    )
    p.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    p.add_argument(
        "--lock", action="store_true", help="write wheels.sha256 from wheels.txt and the index"
    )
    args = p.parse_args(argv)
    # It is a folder's name on the node, in which a colon would end a PATH's entry.
    if not re.fullmatch(r"[0-9][A-Za-z0-9.+~]*", args.version):
        raise UsageError(f"--version '{args.version}' must be digits, letters and . + ~ alone")
    if args.lock and set(args.python) != set(PYTHONS):
        raise UsageError("--lock names the wheels of every Python; leave --python out")
    path = build(args.version, args.python, args.lock, args.out)
    print(f"{path}\n{path.stat().st_size} bytes\nsha256 {sha256_of(path)}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("build_package", run, argv)


if __name__ == "__main__":
    sys.exit(main())

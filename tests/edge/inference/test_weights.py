from __future__ import annotations

from pathlib import Path

import pytest

from edge.base.errors import WeightsError
from edge.base.files import write_atomically
from edge.inference.weights import locked, resolve
from support.detector import original


def no_network(source: dict[str, str]) -> bytes:
    raise OSError("no route to host")


def test_no_network_and_no_file_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        resolve("yunet", cache=tmp_path, fetcher=no_network)
    assert "\n" not in str(caught.value)
    assert "put the file into a folder" in str(caught.value)
    assert "no route to host" in str(caught.value)


def test_a_source_with_another_hash_is_refused_and_the_next_one_asked(
    tmp_path: Path, detector_file: Path
) -> None:
    good, asked = original(detector_file), []

    def fetcher(source: dict[str, str]) -> bytes:
        asked.append(source)
        return b"something else" if len(asked) == 1 else good

    path = resolve("yunet", cache=tmp_path, fetcher=fetcher)
    assert len(asked) == 2
    assert path.read_bytes() == detector_file.read_bytes()
    with pytest.raises(WeightsError, match="refused: sha256"):
        resolve("yunet", cache=tmp_path / "other", fetcher=lambda source: b"wrong")


def test_the_folder_comes_first_and_a_wrong_file_there_is_an_error(
    tmp_path: Path, detector_file: Path
) -> None:
    name = locked()["yunet"]["file"]
    (tmp_path / name).write_bytes(original(detector_file))
    cache = tmp_path / "cache"
    assert resolve("yunet", tmp_path, cache, no_network).parent == cache
    (tmp_path / name).write_bytes(original(detector_file)[:-1])
    with pytest.raises(WeightsError, match="not the locked"):
        resolve("yunet", tmp_path, cache, no_network)


def test_a_damaged_cache_is_replaced(tmp_path: Path, detector_file: Path) -> None:
    good = original(detector_file)
    path = resolve("yunet", cache=tmp_path, fetcher=lambda source: good)
    path.write_bytes(path.read_bytes()[:100])
    again = resolve("yunet", cache=tmp_path, fetcher=lambda source: good)
    assert again.read_bytes() == detector_file.read_bytes()
    assert resolve("yunet", cache=tmp_path, fetcher=no_network) == again


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, detector_file: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    good = original(detector_file)
    with pytest.raises(WeightsError, match="cannot keep"):
        resolve("yunet", cache=blocked / "cache", fetcher=lambda source: good)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(WeightsError, match="no weights named"):
        resolve("resnet")


def test_write_atomically_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_given_weights_are_used_where_no_cache_can_be_written(
    tmp_path: Path, detector_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = original(detector_file)
    (tmp_path / locked()["yunet"]["file"]).write_bytes(published)
    blocked = tmp_path / "home"
    blocked.write_bytes(b"")  # no folder: as a home that is read-only, also for root
    found = resolve("yunet", tmp_path, blocked / "cache", no_network)
    assert found.read_bytes() == detector_file.read_bytes()
    # A user whom no file knows, without HOME: as in a container.
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert resolve("yunet", tmp_path, fetcher=no_network) == found
    with pytest.raises(WeightsError, match="set HOME or XDG_CACHE_HOME"):
        resolve("yunet", fetcher=lambda source: published)

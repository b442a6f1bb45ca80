"""Lists of boxes as people and programs write them, and every way to get one wrong."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.base.errors import DataError
from edge.tools.boxes import read_boxes

OFFICIAL = """0--Parade/0_Parade_1.jpg
2
449 330 122 149 0 0 0 0 0 0
361 98 263 339 0 0 0 1 0 0
0--Parade/0_Parade_2.jpg
0
0 0 0 0 0 0 0 0 0 0
room one.png
1
5 6 7.5 8
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "boxes.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        OFFICIAL,
        OFFICIAL.replace("\n", "\r\n"),
        "\ufeff" + OFFICIAL,
        OFFICIAL.replace("0 0 0 0 0 0 0 0 0 0\n", ""),
        OFFICIAL.replace("room", "\nroom") + "\n\n",
    ],
    ids=["official", "crlf", "bom", "no-zeros", "blank-lines"],
)
def test_reads_the_official_list_and_what_editors_make_of_it(tmp_path: Path, text: str) -> None:
    two, none, one = read_boxes(written(tmp_path, text))
    assert (two.name, none.name, one.name) == (
        "0--Parade/0_Parade_1.jpg",
        "0--Parade/0_Parade_2.jpg",
        "room one.png",
    )
    assert two.boxes.tolist() == [[449, 330, 122, 149], [361, 98, 263, 339]]
    assert two.valid.tolist() == [True, False]
    assert none.boxes.shape == (0, 4)
    assert one.boxes.tolist() == [[5, 6, 7.5, 8]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("a.png", "line 1: the list ends without the number"),
        ("a.png\nb.png\n", "line 2: expected the number of faces of 'a.png', not 'b.png'"),
        ("a.png\n-1\n", "line 2: expected the number"),
        ("a.png\n9999999\n", "line 2: expected the number"),
        ("a.png\n2\n1 2 3 4\n", "line 2: announces 2 faces, 1 lines follow"),
        ("a.png\n2\n1 2 3 4\nb.png\n0\n", "line 4: expected 'left top width height"),
        ("a.png\n1\n1 2 3\n", "line 3: expected 'left"),
        ("a.png\n1\n1 2 3 nan\n", "line 3: expected 'left"),
        ("a.png\n1\n1 2 3 4 0\n", "line 3: expected 'left"),
        ("a.png\n0\n\na.png\n0\n", "line 4: 'a.png' stands in line 1 already"),
        ("../a.png\n0\n", "line 1: '../a.png' is no picture's name within the folder"),
        ("/a.png\n0\n", "line 1: '/a.png' is no picture's name"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_names_file_and_line_of_what_is_wrong(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_boxes(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


NAMES = st.from_regex(r"[a-z][a-z]{0,5}(/[a-z]{1,5})?\.jpg", fullmatch=True)
BOXES = st.lists(st.tuples(*[st.integers(-9, 999)] * 4, st.booleans()), max_size=4)


@given(st.dictionaries(NAMES, BOXES, min_size=1, max_size=5))
def test_reads_back_whatever_was_listed(entries: dict[str, list[tuple[int, ...]]]) -> None:
    import tempfile

    lines = []
    for name, boxes in entries.items():
        lines += [name, str(len(boxes))]
        lines += [f"{a} {b} {c} {d} 0 0 0 {int(bad)} 0 0" for a, b, c, d, bad in boxes]
        lines += [] if boxes else [" ".join("0" * 10)]
    with tempfile.TemporaryDirectory() as place:
        read = read_boxes(written(Path(place), "\n".join(lines)))
    assert [entry.name for entry in read] == list(entries)
    for entry, boxes in zip(read, entries.values(), strict=True):
        assert entry.boxes.tolist() == [list(box[:4]) for box in boxes]
        assert entry.valid.tolist() == [not box[4] for box in boxes]
        assert entry.boxes.dtype == np.float64

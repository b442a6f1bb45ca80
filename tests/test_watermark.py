"""No pixel leaves the node: a run on watermarked pictures, traced at the system calls.

Every picture is noise of its own, which no encoding makes small: what leaves the process is searched
for the watermark as it is and as text, and is too little to hold even one picture.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.crop import crop_faces
from edge.detect import Detector
from edge.inference.bundle import load_bundle
from edge.inference.loader import open_backend
from edge.inference.weights import resolve
from support.brokers import Mosquitto
from support.paths import ROOT
from support.patience import PATIENCE

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(
    STRACE is None, reason="needs strace (Debian: apt-get install strace)"
)
# All that moves bytes out of a process, or makes a file that could be written without a call.
CALLS = (
    "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,splice,vmsplice,"
    "copy_file_range,mmap,io_uring_setup,process_vm_writev,connect"
)
WIDTH, HEIGHT, PICTURES = 640, 480, 20
PIECE = 16  # bytes of a picture's row that are looked for

# Some libraries keep quiet under CI, and only there.
HONEST = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}

Pictures = list[np.ndarray]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pictures]:
    """A lossless video: faces are found on it, and every other pixel is random."""
    path = tmp_path_factory.mktemp("clip") / "watermark.avi"
    rng = np.random.default_rng(0)
    face = cv2.resize(cv2.imread(str(ROOT / "edge" / "sources" / "portrait.jpg")), (96, 120))
    pictures = []
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 5, (WIDTH, HEIGHT))
    for _ in range(PICTURES):
        picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        noise = rng.integers(-6, 7, face.shape)
        picture[60:180, 40:136] = np.clip(face.astype(int) + noise, 0, 255)
        writer.write(picture)
        pictures.append(picture)
    writer.release()
    read = cv2.VideoCapture(str(path)).read()[1]
    assert (read == pictures[0]).all(), "this build of OpenCV reads FFV1 without loss"
    return path, pictures


def plain(text: str) -> bytes:
    """strace's \\x41\\x42 as bytes."""
    return bytes.fromhex(text.replace("\\x", "").replace("...", ""))


def traced(command: list[str], folder: Path, **env: str) -> tuple[bytes, bytes, str]:
    """Everything that the command gave to a file or a socket, in the outbox's files and elsewhere, and
    the trace's lines without it."""
    trace = folder / "trace"
    done = subprocess.run(
        [str(STRACE), "-fyxx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", trace, *command],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
        env={**HONEST, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    stored, out, rest = b"", b"", []
    for line in trace.read_text().splitlines():
        given = b"".join(plain(text) for text in re.findall(r'"([^"]*)"', line))
        to = re.match(r"\d+ +\w+\(\d+<([^>]*)>", line)
        if to and b".sqlite" in plain(to[1]):
            stored += given
        else:
            out += given
        address = re.search(r'inet_addr\("(.*?)"', line)
        said = plain(address[1]).decode() if address else ""
        rest.append(re.sub(r'"[^"]*"', f'"{said}"', line))
    return stored, out, "\n".join(rest)


def once(out: bytes) -> bytes:
    """What left, without the messages that went out again: where a broker's word comes late, as on a
    busy machine, the node says the same once more."""
    text, said, kept, end = out.decode("latin-1"), set(), [], 0
    for start in (begun.start() for begun in re.finditer(r'\{"schema":"edge', text)):
        try:
            _, stop = json.JSONDecoder().raw_decode(text, start)
        except ValueError:  # cut by the socket: counts as it is
            continue
        if text[start:stop] in said:
            kept.append(text[end:start])
            end = stop
        said.add(text[start:stop])
    return "".join([*kept, text[end:]]).encode("latin-1")


def test_a_message_that_goes_out_again_counts_once_and_all_else_each_time() -> None:
    first, second = b'{"schema":"edge.a/1","n":{"x":1}}', b'{"schema":"edge.a/1","n":{"x":2}}'
    assert once(b"a" + first + b"\xff" + second + b"b" + first + b"a") == (
        b"a" + first + b"\xff" + second + b"ba"
    )
    assert once(b"aa" + first[:-1] + b"aa" + first[:-1]) == b"aa" + first[:-1] + b"aa" + first[:-1]


def crops(pictures: Pictures) -> Pictures:
    """What the student is given of each picture: (S, S) grey, as the node cuts it."""
    bundle = load_bundle()
    backend = open_backend("ort", resolve("yunet"), 1)
    detector = Detector(backend, 640, 480, 0.3)
    cut = [crop_faces(picture, detector.find(picture), bundle.crop) for picture in pictures]
    return [face[0] for faces in cut for face in faces]


def found(left: bytes, pictures: Pictures) -> list[str]:
    """In which form pieces of a picture are in what left: from every sixteenth row, the face's too."""
    seen = set()
    for picture in pictures:
        forms = {"crop": picture[..., None]} if picture.ndim == 2 else {
            "bgr": picture,
            "rgb": picture[..., ::-1],
            "grey": cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None],
            "planes": np.moveaxis(picture, 2, 0).reshape(-1, WIDTH, 1),
        }  # fmt: skip
        for name, form in forms.items():
            middle = form.shape[1] // 4
            pieces = [
                row[x:].tobytes() for row in form[4::16] for x in (60 % form.shape[1], middle)
            ]
            for piece in pieces:
                piece = piece[: 3 * PIECE]
                texts = [base64.b64encode(piece[i : i + 3 * PIECE - 3])[:-4] for i in range(3)]
                for text in (piece[:PIECE], piece[:PIECE].hex().encode(), *texts):
                    if len(set(text)) > 4 and text in left:
                        seen.add(name)
    signs = {
        "jpeg": rb"\xff\xd8\xff[\xdb\xe0\xe1]",
        "png": rb"\x89PNG\r\n",
        "webp": rb"RIFF....WEBP",
    }
    return sorted(seen | {name for name, sign in signs.items() if re.search(sign, left, re.S)})


# A node that leaves no core dump can be looked into by root alone.
TRACEABLE = (
    "import sys, edge.run\nedge.run.forbid_core_dumps = lambda: None\nsys.exit(edge.run.main())"
)
MOVERS = r"\b(sendfile|splice|vmsplice|copy_file_range|io_uring_setup|process_vm_writev)\("


def quiet(rest: str) -> list[str]:
    """Calls that could move pixels past the search: those that name no bytes, and writable mappings
    that are shared with a file."""
    mapped = r"PROT_WRITE.*MAP_SHARED, \d"
    return [line for line in rest.splitlines() if re.search(f"{MOVERS}|{mapped}", line)]


def test_no_watermark_in_any_file_or_socket(
    clip: tuple[Path, Pictures], mosquitto: Mosquitto, tmp_path: Path, detector_file: Path
) -> None:
    path, pictures = clip
    config = tmp_path / "node.yaml"
    config.write_text("runtime: {health_seconds: 1}\n")
    stored, out, rest = traced(
        [sys.executable, "-c", TRACEABLE, "--config", str(config), "--camera", str(path),
         "--broker", mosquitto.url, "--window", "1", "--min-group", "1"],
        tmp_path, XDG_CACHE_HOME=str(detector_file.parents[1]),
    )  # fmt: skip
    left = stored + out
    assert b"edge.counts/2" in out, "the trace saw the messages"
    assert b"edge.counts/2" in stored, "and what went into the outbox"
    assert b'"max":1' in out, "and a face was found in the pictures"
    faces = crops(pictures)
    assert len(faces) >= PICTURES
    assert found(left, [*pictures, *faces]) == []
    assert quiet(rest) == []
    # Beside the outbox, all that left, each message once, is less than one face of each picture would
    # be as a poor JPEG.
    poor = len(cv2.imencode(".jpg", faces[0], [cv2.IMWRITE_JPEG_QUALITY, 30])[1])
    assert len(once(out)) < PICTURES * poor
    # Nobody beyond this machine is spoken to, no name server either: ONNX Runtime, left alone, reports
    # to its maker since 1.29. (paho wakes its own thread over loopback.)
    peers = re.findall(r'connect\(\S+ \{sa_family=(\w+)(?:.*inet_addr\("(.*?)"\))?', rest)
    assert set(peers) == {("AF_INET", "127.0.0.1")}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} <= {"state"}


LEAKS = {
    "crop": "open(out, 'wb').write(crops([picture])[0].tobytes())",
    "jpeg": "open(out, 'wb').write(cv2.imencode('.jpg', picture[60:180, 40:136])[1].tobytes())",
    "bgr": "open(out, 'wb').write(picture.tobytes())",
    "grey": "socket.create_connection(address).sendall("
    "cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).tobytes())",
    "rgb": "open(out, 'w').write(base64.b64encode(picture[200:, 100:, ::-1].tobytes()).decode())",
    "planes": "open(out, 'w').write(picture[..., 0].tobytes().hex())",
}


@pytest.mark.parametrize("form", sorted(LEAKS))
def test_a_leak_would_be_seen(
    form: str,
    clip: tuple[Path, Pictures],
    mosquitto: Mosquitto,
    tmp_path: Path,
    detector_file: Path,
) -> None:
    path, pictures = clip
    script = (
        "import base64, cv2, socket, sys\nsys.path += ['.', 'tests']\n"
        "from test_watermark import crops\n"
        f"picture = cv2.VideoCapture({str(path)!r}).read()[1]\n"
        f"out, address = {str(tmp_path / 'out')!r}, ('127.0.0.1', {mosquitto.port})\n" + LEAKS[form]
    )
    cache = str(detector_file.parents[1])
    _, left, _ = traced([sys.executable, "-c", script], tmp_path, XDG_CACHE_HOME=cache)
    assert form in found(left, [*pictures, *crops(pictures[:1])])


@pytest.mark.process
def test_a_mapped_file_would_be_seen(tmp_path: Path) -> None:
    script = f"""
import mmap
with open({str(tmp_path / "out")!r}, "w+b") as file:
    file.truncate(4096)
    mmap.mmap(file.fileno(), 4096)[:5] = b"pixel"
"""
    *_, rest = traced([sys.executable, "-c", script], tmp_path)
    assert len(quiet(rest)) == 1

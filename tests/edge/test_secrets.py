"""A marker in the place of every password, fed through what a node says: none of it may come out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.base.errors import EdgeError, SourceError
from edge.base.strict_yaml import read_yaml, validate
from edge.run import main, warn_of_open_secrets
from edge.settings import Camera, Settings
from edge.sources.open import open_source
from support.brokers import Mosquitto
from support.command import Done
from support.examples import examples
from support.paths import ROOT
from support.secret_addresses import MARKER, addresses
from support.subscriber import Subscriber

fuzzed = settings(
    max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Nothing listens on the discard port of this machine.
CAMERAS = [
    f"http://127.0.0.1:9/videostream.cgi?usr=admin&pwd={MARKER}",
    f"http://127.0.0.1:9/videostream.cgi;user=admin;password={MARKER}",
    f"http://admin:{MARKER}@127.0.0.1:9/x?channel=1",
    f"rtsp://admin:%2F{MARKER}%40@127.0.0.1:9/stream",
    f"rtsp://admin:a/{MARKER}@127.0.0.1:9/stream",
    f"rtsp://127.0.0.1:9/user=admin_password={MARKER}_channel=1_stream=0",
    f"rtsp://127.0.0.1:9/live/{MARKER}",
    f"https://127.0.0.1:9/x?access_token={MARKER}",
    f"mqtt://admin:{MARKER}@127.0.0.1:9",
    f"rtspsrc location=rtsp://127.0.0.1/x user-id=admin user-pw={MARKER} ! videoconvert ! appsink",
    f"admin:{MARKER}@127.0.0.1",
]


def said(work: Callable[[], object]) -> str:
    """The error that comes of it, and what was printed meanwhile."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            work()
        except EdgeError as error:
            return f"{error} {out.getvalue()}"
    return out.getvalue()


@fuzzed
@given(address=addresses, data=st.data())
def test_no_settings_file_has_its_addresses_repeated(
    tmp_path: Path, address: str, data: st.DataObject
) -> None:
    """In any setting, as a section, in a list, as a name, and where YAML cannot be read."""
    whole = Settings().model_dump(mode="json")
    section = data.draw(st.sampled_from(sorted(whole)))
    key = data.draw(st.sampled_from(sorted(whole[section])))
    how = data.draw(st.sampled_from(["value", "list", "section", "name", "top", "raw", "alias"]))
    if how == "value":
        whole[section][key] = address
    elif how == "list":
        whole[section][key] = [address, {"a": address}]
    elif how == "section":
        whole[section] = address
    elif how == "name":
        whole[section][address] = 1
    elif how == "top":
        whole[address] = {}
    text = yaml.safe_dump(whole, allow_unicode=True)
    if how == "raw":
        text = f"camera: {{source: {address}}}\n"
    elif how == "alias":
        text = f"broker: {{password: {data.draw(st.sampled_from('*!&@%`|'))}{MARKER}}}\n"
    path = tmp_path / "node.yaml"
    path.write_text(text, encoding="utf-8")
    assert MARKER not in said(lambda: validate(Settings, read_yaml(path), str(path)))


@fuzzed
@given(address=addresses)
def test_no_source_that_cannot_be_opened_is_repeated(address: str) -> None:
    # Those that would be opened, over the network, are below.
    if not address.lower().startswith(("rtsp:", "rtsps:", "http:", "https:")):
        assert MARKER not in said(lambda: open_source(Camera(source=address)))


@pytest.mark.parametrize("camera", CAMERAS)
def test_no_camera_that_gives_nothing_is_repeated(camera: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(Camera(source=camera, timeout_seconds=0.5, hang_seconds=10))
    assert MARKER not in str(caught.value)
    assert MARKER not in caught.value.public


@pytest.mark.parametrize("camera", CAMERAS[:3])
def test_check_and_run_repeat_no_camera(command: Callable[..., Done], camera: str) -> None:
    for more in (["--check", "--max-seconds", 0.1], []):
        done = command("edge.run", "--camera", camera, "--backend", "fake", *more)
        assert done.code == 1
        assert "127.0.0.1" in done.out + done.err
        assert MARKER not in done.out + done.err


@pytest.mark.parametrize("word", ["--broker", "--record", "--backend", "--window", "--nothing"])
def test_no_option_is_repeated(word: str) -> None:
    address = f"rtsp://admin:{MARKER}@cam/x?pwd={MARKER}"
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        assert main([word, address]) == 2
    assert MARKER not in err.getvalue()
    from edge.watch.run import main as watch

    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        assert watch([word, address]) == 2
    assert MARKER not in err.getvalue()


@pytest.mark.broker
def test_no_message_names_the_file_of_a_run(
    mosquitto: Mosquitto, tmp_path: Path, command: Callable[..., Done]
) -> None:
    folder = tmp_path / f"{MARKER}-lesson of anna"
    folder.mkdir()
    (folder / f"{MARKER}.jpg").write_bytes(b"no picture")
    subscriber = Subscriber(mosquitto.port)
    done = command(
        "edge.run", "--camera", folder, "--backend", "fake", "--broker", mosquitto.url
    )  # fmt: skip
    assert done.code == 1
    subscriber.wait_for(lambda: [m for m in subscriber.of("status") if m["state"] == "stopped"])
    assert MARKER in done.err, "whoever runs it reads which file"
    assert MARKER not in json.dumps(subscriber.messages)
    subscriber.close()


def test_a_settings_file_with_a_password_that_all_can_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "node.yaml"
    secret = tmp_path / "password"
    secret.write_text("geheim\n")
    both = f"broker: {{url: mqtt://x, username: a, password_file: '{secret}'}}\n"
    for text, mode, told in (
        (f"camera: {{source: 'rtsp://a:{MARKER}@cam/x'}}", 0o644, ["node.yaml"]),
        (f"camera: {{source: 'http://cam/x?pwd={MARKER}'}}", 0o644, ["node.yaml"]),
        (f"camera: {{source: 'http://cam/x?pwd={MARKER}'}}", 0o640, []),
        ("camera: {source: 'rtsp://cam/x'}", 0o644, []),
        (both, 0o644, ["password"]),
    ):
        caplog.clear()
        path.write_text(text)
        path.chmod(mode)
        warn_of_open_secrets(path, validate(Settings, read_yaml(path), "x"))
        assert [line.split()[0].rsplit("/")[-1] for line in caplog.messages] == told
        assert all("readable for all users: chmod 640" in line for line in caplog.messages)
        assert MARKER not in caplog.text


@pytest.mark.process
def test_a_crash_leaves_no_core_dump() -> None:
    """Also where whoever started it asked for one, and where the kernel hands it to a collector."""
    start = (
        "import resource, sys\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "from edge.run import main\n"
        "sys.exit(main(['--camera', 'test', '--backend', 'fake', '--window', '1']))\n"
    )
    node = subprocess.Popen(
        [sys.executable, "-c", start], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert node.stdout is not None
    assert b"status" in node.stdout.readline()
    limits = Path(f"/proc/{node.pid}/limits").read_text()
    assert "Max core file size        0 " in limits
    node.send_signal(signal.SIGABRT)
    _, status = os.waitpid(node.pid, 0)
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    node.stdout.close()
    node.returncode = -signal.SIGABRT

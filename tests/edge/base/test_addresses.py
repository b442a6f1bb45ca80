"""What of an address may be shown, with a marker in every place where a password can stand."""

from __future__ import annotations

import logging
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.base import cli
from edge.base.addresses import redact, shown
from edge.base.errors import EdgeError, SourceError
from support.examples import examples
from support.secret_addresses import MARKER, addresses


@settings(max_examples=examples(1000))
@given(addresses)
def test_no_address_shows_its_password(address: str) -> None:
    assert MARKER not in shown(address)


@settings(max_examples=examples(1000))
@given(st.text(max_size=20), addresses, st.text(max_size=20))
def test_no_text_shows_the_password_of_an_address_in_it(
    before: str, address: str, after: str
) -> None:
    if " " not in address:
        assert MARKER not in redact(f"{before} {address} {after}")
        assert MARKER not in redact(f"{before}'{address}'{after}")
        assert MARKER not in str(SourceError(f"{address}: {after}"))


@pytest.mark.parametrize(
    ("address", "left"),
    [
        ("mqtt://192.0.2.10:1884", "mqtt://192.0.2.10:1884"),
        ("mqtts://broker.school/", "mqtts://broker.school/"),
        ("rtsp://admin:geheim@10.0.0.7:554/stream", "rtsp://10.0.0.7"),
        ("rtsp://admin:ge/hei?m@10.0.0.7/stream", "rtsp://***"),
        ("http://cam/videostream.cgi?usr=admin&pwd=geheim", "http://cam"),
        ("http://[fd00::7]:80/user=admin;password=geheim", "http://[fd00::7]"),
        ("rtsp://cam/user=admin_password=geheim_channel=1", "rtsp://cam"),
        ("rtspsrc location=rtsp://cam user-id=a user-pw=geheim ! fakesink", "***"),
        ("postgresql://db.school/edge?password=geheim", "postgresql://db.school"),
        ("sqlite:////var/lib/school.sqlite", "sqlite:////var/lib/school.sqlite"),
        ("/home/anna/lesson 1 (b).mp4", "/home/anna/lesson 1 (b).mp4"),
        ("admin:geheim@10.0.0.7", "***"),
        ("0", "0"),
    ],
)
def test_scheme_and_host_stay(address: str, left: str) -> None:
    shown_now = shown(address)
    assert shown_now.rstrip("/") == left.rstrip("/")


@pytest.mark.parametrize(
    "text",
    [
        "broker mqtt://127.0.0.1:1883 away: nothing listens there; check address and user",
        "the page is at https://10.0.0.1:8080; Ctrl-C ends",
        "outbox /var/lib/edge-node/outbox.sqlite is damaged (disk image is malformed)",
        "broker.password_file /etc/edge-node/password cannot be read; put it on the first line",
        "camera_width=1280 pictures at 10:15:00",
        "'camera.source' is missing (and 2 more)",
        "url must be mqtt://host[:port], mqtts://host[:port] or -",
        "tls is set, and url is mqtt://, which is plain text; write mqtts:// or take tls out",
        "give 0, a path, rtsp://..., csi:0, loop:FILE or test",
        "give an rtsp:// or http:// address",
        "must be sqlite:///FILE, FILE.sqlite or postgresql://[USER@]HOST[:PORT]/DATABASE",
        "url must be https://host[:port]/folder or null",
    ],
)
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert str(EdgeError(text)) == text


def test_an_argument_that_argparse_does_not_know_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.parser("x", "x", "x").parse_args([f"rtsp://a:{MARKER}@cam/x"])
    assert "rtsp://cam" in capsys.readouterr().err


def test_log_lines_and_tracebacks_hide_what_a_library_says_of_an_address(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    address = f"rtsp://admin:{MARKER}@cam/live"

    def fail(argv: object) -> None:
        logging.getLogger("av").error("cannot open %s", address)
        raise LookupError(f"no stream in {address}")

    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    cli.start_log()
    thread = threading.Thread(target=fail, args=(None,))
    with pytest.raises(LookupError) as caught:
        cli.run("x", fail, None)
    thread.start()
    thread.join()
    sys.excepthook(caught.type, caught.value, caught.tb)
    told = capsys.readouterr().err
    assert MARKER not in told
    assert told.count("error cannot open rtsp://cam") == 2
    assert told.count("LookupError: no stream in rtsp://cam") == 2

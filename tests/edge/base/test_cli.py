"""What every command line shares: a help that fits a terminal."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence

import pytest

from edge.base import cli

MORE = {
    "edge.watch.run": ("simulate", "broker", "forget", "export"),
    "edge.flash.run": ("ca", "image", "rootfs", "fleet", "write", "wipe", "release"),
}


def shown(module: str, *words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main([*words, "--help"])
    assert stop.value.code == 0
    return out.getvalue()


@pytest.mark.parametrize(
    ("module", "word"), [(module, word) for module, words in MORE.items() for word in words]
)
def test_a_commands_own_commands_fit_80_columns_too(
    module: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(module, word)
    assert max(map(len, text.splitlines())) <= 80
    assert "example:\n  " in text
    assert "exit codes: 0 done" in text


def test_paragraphs_are_wrapped_lists_stay_and_an_example_goes_on_behind_a_backslash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    p = cli.parser(
        "edge-x",
        "One paragraph that somebody\nhas broken by hand, and that is longer than a line.\n\n"
        "  a  first\n  b  second",
        "edge-x --camera rtsp://192.0.2.1/stream --window 10 \\\n    --broker mqtt://192.0.2.2",
    )
    p.add_argument("--faces", type=int, default=0, help="in view")
    p.add_argument("--json", action="store_true", help="lines for programs")
    p.add_argument("--name", default="", help="of the node")
    p.add_argument("--size", default=3, help="default: the camera's")
    text = p.format_help()
    assert max(map(len, text.splitlines())) <= 60
    assert "One paragraph that somebody has broken by hand, and that\n" in text
    assert "  a  first\n  b  second\n" in text
    assert "  edge-x --camera rtsp://192.0.2.1/stream --window 10 \\\n    --broker mqtt" in text
    assert "in view (default: 0)" in text
    assert text.count("default") == 2, "no default where there is none, or where it is told"


def test_the_version_is_the_kits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser("edge-x", "x", "edge-x").parse_args(["--version"])
    assert capsys.readouterr().out.startswith("edge-x 0.")


def test_a_command_within_a_command_is_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    from edge.watch.run import main

    assert main(["--broker", "mqtt://192.0.2.1", "simulate"]) == 2
    assert "simulate comes first: edge-watch simulate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["simulat"])
    assert stop.value.code == 2
    assert "simulate" in capsys.readouterr().err


def test_a_closed_stdout_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the shell's `>&-` and some supervisors leave it: readings would be said to be taken."""
    monkeypatch.setattr("sys.stdout", None)
    assert cli.run("edge-run", lambda argv: print("a reading"), []) == 2
    assert capsys.readouterr().err == (
        "edge-run: stdout is closed; send it to a file, or to /dev/null\n"
    )


def test_with_a_closed_stderr_nothing_of_its_own_goes_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)

    def say(argv: Sequence[str] | None) -> None:
        print("notice", file=sys.stderr)
        print("a reading")

    assert cli.run("edge-run", say, []) == 0
    assert capsys.readouterr().out == "a reading\n"

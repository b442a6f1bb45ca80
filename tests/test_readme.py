"""Every command of the pages: run where it can be, checked against --help where it needs more."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.base import cli
from edge.base.commands import MODULES
from edge.flash import run as flash
from edge.watch import run as watch
from support.command import Done, run_script
from support.paths import ROOT

# Hardware, another machine or data that a clone does not have.
NEEDS_MORE = (
    *("--camera 0", "192.0.2.", "export-engine", "ferplus", "runs/", "boxes.txt"),
    *("edge-watch ", "edge-flash ", "edge-provision", "edge-update"),
)


PAGES = (
    *ROOT.glob("*.md"),
    *(
        page
        for folder in ("docs", "edge", "distill", "export", "systemd")
        for page in (ROOT / folder).rglob("*.md")
    ),
)


def commands(language: str) -> list[str]:
    found = []
    for path in PAGES:
        for block in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S):
            block = re.sub(r'^sudo (?:"\$\(command -v ([a-z-]+)\)")?', r"\1", block, flags=re.M)
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split("  #")[0].strip() for line in lines if line.strip()]
    return sorted(set(found))


OURS = [c for c in commands("sh") + commands("text") if c.split()[0] in MODULES]
RUNNABLE = [c for c in OURS if not any(need in c for need in NEEDS_MORE)]


# A README's command measures; whether it runs is seen sooner.
SHORTER = {"export-bench": ["--rounds", "1"]}


def module(script: str) -> str:
    return MODULES[script]


def test_the_readme_shows_enough_commands() -> None:
    assert len(RUNNABLE) >= 4
    assert {c.split()[0] for c in OURS} >= {"edge-run", "edge-watch", "edge-bench", "export-model"}


@pytest.mark.parametrize("line", RUNNABLE)
def test_command_runs(
    line: str, command: Callable[..., Done], clip_run: Callable[..., Done]
) -> None:
    script, *arguments = shlex.split(line)
    if arguments[:4] == ["--camera", "demo/classroom.mp4", "--broker", "-"]:
        done = clip_run(*arguments[4:])
    else:
        done = command(module(script), *arguments, *SHORTER.get(script, []))
    assert done.code == 0, done.err
    assert done.out.strip()


@pytest.mark.parametrize("line", sorted(set(OURS) - set(RUNNABLE)))
def test_options_of_a_command_exist(line: str, command: Callable[..., Done]) -> None:
    script, *arguments = shlex.split(line)
    # Of a command's own command, such as `edge-watch forget` or `edge-flash ca init`, its own help.
    depth = {"edge-watch": 1, "edge-flash": 2 if arguments[:1] in (["ca"], ["release"]) else 1}
    named = [a for a in arguments[: depth.get(script, 0)] if not a.startswith("-")]
    shown = command(module(script), *named, "--help")
    assert shown.code == 0
    for option in [a for a in arguments if a.startswith("--")]:
        assert option in shown.out, option


@pytest.mark.parametrize("script", sorted(MODULES))
def test_every_command_has_help_with_an_example_and_refuses_nonsense(
    script: str, command: Callable[..., Done], process_command: Callable[..., Done]
) -> None:
    shown = process_command(module(script), "--help")
    assert shown.code == 0
    assert f"example:\n  {script} " in shown.out
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    assert "--version" in shown.out
    wrong = command(module(script), "--no-such-option")
    assert wrong.code == 2


def own_commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of the commands within it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for made in action.choices.values():
                yield from own_commands(made)


@pytest.mark.parametrize(
    ("script", "words"),
    [(script, []) for script in sorted(MODULES)]
    + [("edge-watch", [name]) for name in watch.COMMANDS]
    + [("edge-flash", [name]) for name in flash.COMMANDS],
    ids=lambda value: value if isinstance(value, str) else value[0] if value else "itself",
)
def test_every_option_says_what_it_is_and_its_default(
    script: str, words: list[str], command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(
        cli.Parser, "print_help", lambda self, file=None: shown.append(self), raising=True
    )
    assert command(module(script), *words, "--help").code == 0
    for parser in own_commands(shown[0]):
        assert parser.epilog, parser.prog
        assert "exit codes: " in parser.epilog, parser.prog
        text = " ".join(parser.format_help().split())
        for action in parser._actions:
            name = action.option_strings or action.dest
            assert isinstance(action, argparse._SubParsersAction) or action.help, name
            default = action.default
            if action.help == argparse.SUPPRESS:
                continue
            if default and default != argparse.SUPPRESS and not isinstance(default, bool | list):
                assert re.search(rf"default: [^)]*{re.escape(str(default))}", text), name


def test_every_make_target_of_the_pages_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.M))
    assert targets >= {"demo", "test", "lint"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as a code host makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.process
def test_the_demo_shows_counts_and_ends_by_itself(detector_file: Path) -> None:
    done = run_script("demo/run.py", {"COLUMNS": "80"})
    assert done.code == 0, done.err
    # A healthy run says what it does, and nothing that looks like a fault. A fast machine is through
    # with the clip before the broker has said which MQTT it speaks.
    expected = (
        r"the page is at |notice: |info (student|detector) (on|at) |info broker .*MQTT|info waiting"
    )
    assert [line for line in done.err.splitlines() if not re.match(expected, line)] == []
    assert done.err.count("notice: ") == 1
    counts = [line for line in done.out.splitlines() if " counts " in line]
    assert len(counts) == 5
    assert "too few to count" in counts[-1]
    assert '"schema":"edge.counts/2"' in done.out.splitlines()[-1]
    assert all(len(line) <= 80 for line in counts)

"""`edge-watch pause`, `resume`, `set-window`, `set-min-group`, `report`, `reload-bundle`: ask nodes by
name, and print what each answers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge.base import cli
from edge.base.errors import EdgeError, UsageError
from edge.base.setting_types import default_state
from edge.delivery.commands import Name
from edge.delivery.protocol import MEMORY_FILE
from edge.watch.command import (
    ANSWER_SECONDS,
    LONGEST_SECONDS,
    Answer,
    Caller,
    Outcome,
    check_target,
    order,
)
from edge.watch.options import broker_options, broker_settings

EXIT_CODES = (
    "exit codes: 0 every node did it, 1 failed (see the last line), 2 usage, 3 a node refused it, "
    "4 no answer from a node, or no such node, 130 Ctrl-C"
)


class NodeRefused(EdgeError):
    """A node was asked and said no."""

    exit_code = 3


class Unanswered(EdgeError):
    """A node was asked and said nothing."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Text:
    """How one command is told. option: of its number, with `unit` and whether it must be given."""

    short: str
    long: str
    option: str = ""
    unit: str = ""
    needed: bool = False
    example: str = ""


TEXTS: dict[Name, Text] = {
    "pause": Text(
        "have nodes look at nothing for a while",
        "Have nodes look at nothing for some minutes, or until `edge-watch resume`.",
        "--minutes",
        "minutes; without it until resumed",
        example="--minutes 10",
    ),
    "resume": Text("end a pause", "End a pause."),
    "set-window": Text(
        "have nodes count in longer windows",
        "Have nodes count in windows of another length, never shorter than node.yaml says.",
        "--seconds",
        "length of a window in seconds",
        True,
        "--seconds 60",
    ),
    "set-min-group": Text(
        "have nodes hide the counts of more people",
        "Have nodes hide the counts of more people, never of fewer than node.yaml says.",
        "--people",
        "the smallest group that is shown",
        True,
        "--people 8",
    ),
    "report": Text(
        "have nodes say how they do, now", "Have nodes publish status, info and health, now."
    ),
    "reload-bundle": Text(
        "have nodes read their model again",
        "Have nodes read their model's folder again; a bad one changes nothing.",
    ),
}


def build_parser(name: Name) -> argparse.ArgumentParser:
    text = TEXTS[name]
    more = f" {text.example}" if text.example else ""
    p = cli.parser(
        f"edge-watch {name}",
        f"{text.long} Waits for the answer of each and prints it: what no node answered is not done.",
        f"edge-watch {name} north/room-12{more} --broker mqtt://192.0.2.10\n"
        f"  edge-watch {name} 'north/*'{more} --broker mqtt://192.0.2.10",
        codes=EXIT_CODES,
    )
    p.add_argument("target", metavar="SITE/ROOM[/NODE]", help="whom to ask; * for any: 'north/*'")
    if text.option:
        kind = int if text.unit.startswith("the smallest") else float
        p.add_argument(
            text.option, dest="amount", type=kind, metavar="N", required=text.needed, help=text.unit
        )
    p.add_argument(
        "--timeout",
        type=float,
        default=ANSWER_SECONDS,
        metavar="S",
        help="wait so many seconds for an answer",
    )
    broker_options(p)
    return p


def run(name: Name, argv: Sequence[str]) -> None:
    """Run one of the commands. Raises UsageError, BrokerError, NodeRefused or Unanswered."""
    args = build_parser(name).parse_args(argv)
    target, asked = check_target(args.target), order(name, getattr(args, "amount", None))
    if not (math.isfinite(args.timeout) and 0 < args.timeout <= LONGEST_SECONDS):
        raise UsageError(f"--timeout must be above 0 and at most {LONGEST_SECONDS:g} s")
    settings = broker_settings(args)
    with Caller(settings, default_state() / MEMORY_FILE) as caller:
        nodes = caller.nodes(target)
        if not nodes:
            raise Unanswered(
                f"the broker has no status of a node '{target}': nobody was asked; "
                f"edge-watch without a command shows which there are"
            )
        if len(nodes) == 1:
            (answer,) = caller.ask(nodes, asked, args.timeout)
            _raise_or_print(answer)
            return
        cli.say(f"asking {len(nodes)} nodes: {', '.join(nodes)}")
        answers = caller.ask(
            nodes, asked, args.timeout, lambda answer: print(_line(answer), flush=True)
        )
    _sum_up(answers)


def _line(answer: Answer) -> str:
    return f"{answer.node}: {answer.outcome.value}: {answer.text}"


def _raise_or_print(answer: Answer) -> None:
    if answer.outcome is Outcome.REFUSED:
        raise NodeRefused(f"{answer.node} refused it: {answer.text}")
    if answer.outcome is Outcome.UNANSWERED:
        raise Unanswered(_line(answer))
    print(_line(answer))


def _sum_up(answers: Sequence[Answer]) -> None:
    refused, silent = (
        sum(answer.outcome is outcome for answer in answers)
        for outcome in (Outcome.REFUSED, Outcome.UNANSWERED)
    )
    line = f"{refused} of {len(answers)} nodes refused it, {silent} gave no answer; see the lines above"
    if silent:
        raise Unanswered(line)
    if refused:
        raise NodeRefused(line)

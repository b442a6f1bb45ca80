"""What every command line shares: one line for an error, its exit code, and no traceback."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Container, Sequence
from types import TracebackType
from typing import Any, NoReturn, TextIO

import edge
from edge.base.addresses import redact
from edge.base.commands import lacking
from edge.base.errors import EdgeError, UsageError

# To a terminal: back to the first column, and what stands there is gone.
CLEAR_LINE = "\r\x1b[K"
EXIT_CODES = "exit codes: 0 done, 1 failed (see the last line), 2 usage, 130 Ctrl-C"


# Set by the shell function of register-python-argcomplete: how many words are the program's, from 1.
COMPLETING = "_ARGCOMPLETE"


class Parser(argparse.ArgumentParser):
    """argparse repeats what it does not understand, and that may be a camera's address. Where a shell
    asks for completions it gives those in place of parsing."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if COMPLETING in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(redact(message))


class Help(argparse.HelpFormatter):
    """Fits any terminal: a paragraph is wrapped, an example goes on behind a backslash, a list stays a
    list; and a default that its text does not name is named."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in re.sub(r" *\\\n *", " ", text).split("\n\n"):
            listed = "\n  " in paragraph  # under a heading, or line by line
            lines = paragraph.splitlines() if listed else [" ".join(paragraph.split())]
            paragraphs.append("\n".join(self._wrapped(line, width) for line in lines))
        return "\n\n".join(paragraphs)

    def _wrapped(self, line: str, width: int) -> str:
        if not line.startswith(" "):
            return "\n".join(textwrap.wrap(line, width, break_on_hyphens=False))
        lines: list[str] = []
        for part in re.split(r" (?=--)", line):  # an option stays with its value
            if lines and len(lines[-1]) + len(part) + 3 <= width:
                lines[-1] += f" {part}"
            else:
                lines.append(f"    {part}" if lines else part)
        return " \\\n".join(lines)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        value = action.default
        silent = (
            value is None or isinstance(value, bool) or value in (argparse.SUPPRESS, "", [], ())
        )
        if silent or "default" in text or not action.option_strings:
            return text
        return f"{text} (default: %(default)s)".strip()


class Formatter(logging.Formatter):
    """Lines of the log, without what could be a password in an address. On a terminal each takes the
    place of a line that tells how far something is."""

    def format(self, record: logging.LogRecord) -> str:
        text = redact(super().format(record))
        return CLEAR_LINE + text if moves(sys.stderr) else text


def parser(
    command: str, description: str, example: str, version: bool = True, codes: str = EXIT_CODES
) -> argparse.ArgumentParser:
    """An argument parser whose help ends with an example and the exit codes. version: with an option
    that prints the kit's; codes: its exit codes, where it has its own."""
    made = Parser(
        prog=command,
        description=description,
        epilog=f"example:\n  {example}\n\n{codes}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    if version:
        made.add_argument("--version", action="version", version=f"{command} {edge.__version__}")
    return made


def split_command(
    argv: Sequence[str] | None, commands: Container[str]
) -> tuple[str | None, list[str]]:
    """Split the words of a command that has others within: which of them is named first (None: none of
    them), and what follows it. argv: None for the process's own, or those that a shell completes."""
    words = list(sys.argv[1:] if argv is None else argv)
    completing = COMPLETING in os.environ
    if completing:
        line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode()
        words = line.split()[1:]
        if line[-1:].strip():
            words = words[:-1]  # still being typed
    if not words or words[0] not in commands:
        return None, words
    if completing:
        os.environ[COMPLETING] = "2"
    return words[0], words[1:]


def moves(out: TextIO) -> bool:
    """Tell whether a line can be written over: on a terminal that knows how."""
    return out.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say(line: str) -> None:
    """Progress, on stderr; stdout is for what was asked for."""
    print(line, file=sys.stderr, flush=True)


def add_verbose(p: argparse.ArgumentParser) -> None:
    """Add the option that `start_log` takes."""
    p.add_argument("--verbose", action="store_true", help="say on stderr also why, for a diagnosis")


def start_log(verbose: bool = False) -> None:
    """Log facts with values, on stderr; stdout is for messages alone. verbose: also reasons that a
    person only wants who looks for them."""
    level = logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())


def _show_defect(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    say(redact("".join(traceback.format_exception(kind, error, trace))).rstrip())


def _show_defect_of_thread(args: threading.ExceptHookArgs) -> None:
    _show_defect(args.exc_type, args.exc_value, args.exc_traceback)


def run(
    command: str, main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None
) -> int:
    """main's exit code; a fault of ours or of the machine is one line on stderr. A defect is a
    traceback, in which libraries may have put an address."""
    sys.excepthook, threading.excepthook = _show_defect, _show_defect_of_thread
    if sys.stderr is None:
        # Closed (`2>&-`): print would write what is meant for it among the messages on stdout.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        print(f"{command}: stdout is closed; send it to a file, or to /dev/null", file=sys.stderr)
        return UsageError.exit_code
    try:
        main(argv)
        sys.stdout.flush()
    except EdgeError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        return lacking(command, error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our lines has gone (`| head`): nothing is wrong, nothing can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(redact(f"{command}: {error.strerror or error}{where}"), file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{command}: out of memory; use smaller pictures or fewer threads", file=sys.stderr)
        return 1
    return 0

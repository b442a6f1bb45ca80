"""`make demo`: sets what Ctrl-C does before the imports, which take seconds; `show.py` is the rest."""

from __future__ import annotations

import os
import signal
import sys

STOP = (signal.SIGINT, signal.SIGTERM)


def take_terminal() -> None:
    """Let Ctrl-C reach this process alone: make, which waits for it, would end with an error of its
    own. Nothing is done where there is no terminal, or where it is another's."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        if os.tcgetpgrp(terminal) == os.getpgrp() != os.getpid():
            # A process in the background may not take it, and Ctrl-Z would stop what nobody can resume.
            for number in (signal.SIGTTOU, signal.SIGTSTP):
                signal.signal(number, signal.SIG_IGN)
            os.setpgid(0, 0)
            os.tcsetpgrp(terminal, os.getpid())
    except OSError:
        return


if __name__ == "__main__":
    for one in STOP:
        signal.signal(one, lambda *_: os._exit(0))
    take_terminal()
    try:
        from show import main

        code = main(STOP)
    except ModuleNotFoundError as error:
        from edge.base.commands import lacking

        code = lacking("demo", error)
    sys.exit(code)

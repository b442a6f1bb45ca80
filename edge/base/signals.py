"""What SIGTERM and Ctrl-C do.

A handler of Python's runs between two bytecodes of the main thread, wherever that is: within
`Event.wait`, or within the handler of the signal before. One that sets an Event can find the Event's
lock taken by the code that it interrupted, and then waits for ever: systemd's SIGTERM beside a
technician's Ctrl-C is enough. So the handler puts a word into a queue that may be entered again
(queue.SimpleQueue, "put() is reentrant"), and a thread does what the signal asks for.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Sequence

STOP = (signal.SIGTERM, signal.SIGINT)


def on_signal(act: Callable[[], None], numbers: Sequence[signal.Signals] = STOP) -> None:
    """Call act for each signal of these numbers that comes, one after the other, in a thread of its
    own. Call it from the main thread; what was set for these signals before is replaced."""
    came: queue.SimpleQueue[None] = queue.SimpleQueue()

    def answer() -> None:
        while True:
            came.get()
            act()

    threading.Thread(target=answer, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda *_: came.put(None))

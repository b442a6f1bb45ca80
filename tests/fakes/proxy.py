"""A TCP proxy between a node and its broker that misbehaves on request."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

MODES = ("pass", "slow", "swallow", "corrupt", "cut", "refuse")


class Proxy:
    """pass: as it is. slow: each piece a second late. swallow: takes everything and passes nothing, a
    half-open connection. corrupt: some bytes from the broker are others. cut: every connection ends
    after a moment. refuse: ends at once."""

    def __init__(self, target: int) -> None:
        """target: the broker's port on this machine."""
        self.mode = "pass"
        self.connections = 0
        self._target, self._random = target, random.Random(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.mode == "refuse":
                client.close()
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            self._open += [client, broker]
            for source, sink, down in ((client, broker, False), (broker, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, down), daemon=True).start()
            if self.mode == "cut":
                threading.Timer(
                    self._random.uniform(0.05, 0.8), self._end, (client, broker)
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        try:
            while data := source.recv(4096):
                while self.mode == "swallow":
                    time.sleep(0.05)
                if self.mode == "slow":
                    time.sleep(1.0)
                if self.mode == "corrupt" and down:
                    changed = bytearray(data)
                    changed[self._random.randrange(len(changed))] ^= 0xFF
                    data = bytes(changed)
                sink.sendall(data)
        except OSError:
            pass
        self._end(source, sink)

    @staticmethod
    def _end(*both: socket.socket) -> None:
        for one in both:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self.mode = "pass"
        self._listener.close()
        self._end(*self._open)

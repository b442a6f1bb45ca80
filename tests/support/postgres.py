"""A PostgreSQL of the tests' own, where one is installed."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from support.brokers import free_port
from support.patience import PATIENCE


def postgres_programs() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them out of PATH."""
    if found := shutil.which("postgres"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return versions[-1].parent if versions else None


class Postgres:
    """A cluster in a folder of its own, on a free port of loopback."""

    def __init__(self) -> None:
        programs = postgres_programs()
        if programs is None:
            pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
        # Not below pytest's folders, which are closed to PostgreSQL's user.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="edge-postgres-"))
        self._programs, self.data = programs, folder / "cluster"
        self.port, self._log = free_port(), folder / "postgres.log"
        # PostgreSQL refuses to run as root; Debian's package brings the user that it runs as.
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        self.user = "postgres" if self._as else getpass.getuser()
        if self._as:
            shutil.chown(folder, "postgres")
        # Of the same encoding whatever the tests' own locale is.
        same = ("--locale=C", "--encoding=UTF8")
        self._run("initdb", "-D", self.data, "-U", self.user, "--auth=trust", "-N", *same)
        self.start()

    def _run(self, program: str, *words: object) -> None:
        command = [*self._as, str(self._programs / program), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        words = ["-D", self.data, "-w", "-t", 60, "-l", self._log, "-o", options, "start"]
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._run("pg_ctl", *words)
                return
            except AssertionError:
                # After a SIGKILL its children hold the memory for a moment longer.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def kill(self) -> None:
        """SIGKILL to the server; its children go when they notice."""
        number = (self.data / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(number), 9)

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/postgres"

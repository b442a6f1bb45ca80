"""What the boot test leaves for people to read: commit, package, counts that arrived, power cuts."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path

from boot.machine import say
from boot.school import School
from support.paths import ROOT

FILE = Path(__file__).with_name("last-run.txt")


class Story:
    """Kept in the order in which it happened."""

    def __init__(self, package: Path, console: Path) -> None:
        self._package, self.console = package, console
        self._began = time.monotonic()
        self._commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout.strip()
        self._marks: list[tuple[int, str]] = []
        self._notes: list[str] = []

    def mark(self, what: str) -> None:
        """Something that happened to the machine, at this place of its console."""
        lines = self.console.read_text(errors="replace").splitlines()
        self._marks.append((len(lines), what))
        say(what)

    def note(self, title: str, text: str) -> None:
        self._notes += [f"{title}:", *(f"  {line}" for line in text.strip().splitlines()), ""]

    def _console(self) -> list[str]:
        shown = []
        marks = dict(self._marks)
        for number, line in enumerate(self.console.read_text(errors="replace").splitlines()):
            if number in marks:
                shown.append(f"--- {marks[number]} ---")
            if found := re.search(r"edge-node: .*", line):
                shown.append(found[0])
        return shown

    def write(self, school: School, node: str) -> None:
        heard, info = school.all("counts"), school.all("info")[-1]
        shown = [
            f"seq {c['seq']:3} {c['start']} faces {json.dumps(c['faces'])} {json.dumps(c['counts'])}"
            for c in [*heard[:8], *heard[-4:]]
        ]
        digest = hashlib.sha256(self._package.read_bytes()).hexdigest()
        model = info["model"]
        lines = [
            "make test-boot: a blank card to a publishing node, on qemu-system-aarch64 (emulated, two",
            f"cores), in {(time.monotonic() - self._began) / 60:.0f} minutes",
            f"commit  {self._commit}",
            f"package {self._package.name}",
            f"sha256  {digest}",
            f"node    {node}, {model['backend']} {model['precision']}, {json.dumps(info['versions'])}",
            "",
            f"{len(heard)} readings arrived over mutual TLS, of one log, seq 1 to "
            f"{heard[-1]['seq']}, none missing; the first eight and the last four:",
            *shown,
            "",
            "status:",
            *[f"  {s['state']:9} {s.get('reason') or ''}" for s in school.all("status")],
            "",
            *self._notes,
            "console:",
            *self._console(),
        ]
        FILE.write_text("\n".join(line.rstrip() for line in lines) + "\n")
        say(f"report: {FILE.name}")

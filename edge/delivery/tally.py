"""What a run counted, and why nothing was, from the messages alone: small groups stay unknown here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHORTEST_WINDOW_SECONDS = 1.0  # as window.seconds allows


@dataclass(slots=True)
class Tally:
    """Adds up `counts` messages. window_held, group_held: by a command, so that no option makes them
    smaller; windows: all of them; small: with fewer people than min_group; unseen: by what
    `quality.camera` says of them; seconds: person-seconds by label."""

    window_seconds: float
    min_group: int
    window_held: bool = False
    group_held: bool = False
    windows: int = 0
    small: int = 0
    most: int = 0
    people: float = 0.0
    unseen: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, message: dict[str, Any]) -> None:
        """Add the content of one `counts` message."""
        self.windows += 1
        faces = message["faces"]
        if faces is None:
            self.unseen[message["quality"]["camera"]] += 1
        elif isinstance(faces, str):
            self.small += 1
        else:
            self.people += faces["mean"]
            self.most = max(self.most, faces["max"])
            self.seconds.update(message["person_seconds"])

    @property
    def counted(self) -> int:
        """Windows whose counts were published."""
        return self.windows - self.small - self.unseen.total()

    def why_nothing(self, source: str, lasted: float) -> str:
        """Say why nobody was counted, and what to do; "" where somebody was. source: what was read,
        such as "a clip of 6 s"; lasted: seconds of its own time."""
        if not self.windows:
            return self._no_window(source, lasted)
        if self.counted:
            return "" if self.most else f"{self._times(self.counted)}, and nobody in view: {CHECK}"
        reasons = []
        if self.small:
            reasons.append(
                f"fewer than {self.min_group} people {self._share(self.small)}: {self._show()}"
            )
        for camera, number in sorted(self.unseen.items()):
            reasons.append(f"nothing seen ({camera}) {self._share(number)}")
        return "; ".join(reasons)

    def lines(self) -> list[str]:
        """Say what was counted, for a person."""
        if not self.counted:
            return []
        parts = [f"{self.counted} counted" if self.counted < self.windows else "all counted"]
        if self.small:
            parts.append(f"{self.small} of fewer than {self.min_group} people ({self._show()})")
        if self.unseen:
            parts.append(f"{self.unseen.total()} unseen")
        said = [f"{self._times(self.windows)}: {', '.join(parts)}"]
        if total := self.seconds.total():
            shares = [(label, round(100 * s / total)) for label, s in self.seconds.most_common()]
            mix = ", ".join(f"{label} {share} %" for label, share in shares if share)
            said.append(f"{self.people / self.counted:.1f} people on average: {mix}")
        return said

    def _no_window(self, source: str, lasted: float) -> str:
        said = f"no whole window of {self.window_seconds:g} s in {source}"
        if lasted < SHORTEST_WINDOW_SECONDS:
            least = f"{SHORTEST_WINDOW_SECONDS:g} s"
            return f"{said}, and the shortest window is {least}: give a longer one"
        if self.window_held:
            return f"{said}: edge-watch set-window {HELD}"
        # A third surely fits: a camera's windows begin at multiples of their length only.
        return f"{said}: give --window {max(1, int(min(lasted, self.window_seconds) / 3))}"

    def _show(self) -> str:
        return f"edge-watch set-min-group {HELD}" if self.group_held else SHOW

    def _times(self, number: int) -> str:
        return f"{number} window{'s' * (number != 1)} of {self.window_seconds:g} s"

    def _share(self, number: int) -> str:
        if number < self.windows:
            return f"in {number} of {self.windows} windows"
        return "in every window" if number > 1 else "in the one window"


SHOW = "--min-group 1 shows them"
HELD = "changes what a command holds"
CHECK = "edge-run --check says what the detector finds"

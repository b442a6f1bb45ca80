"""How many examples hypothesis tries."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> int:
    """Return the number for the whole suite, a tenth of it for `--hypothesis-profile quick`."""
    return max(5, number * settings.default.max_examples // 100)

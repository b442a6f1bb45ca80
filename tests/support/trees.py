"""The syntax trees of our own files, each read once a process: a dozen tests look at all of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    """Return a file's tree. It is shared: a test looks and changes nothing."""
    return ast.parse(path.read_text())

"""The page in the reader's language: `page/words/LANGUAGE.json`, texts by the English one.

A text that counts has a form by each plural category of the language (Unicode CLDR), as the browser's
Intl.PluralRules names them; what is named in braces is put in by the page.
"""

from __future__ import annotations

import html
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "de", "fr", "es")
MARKED = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)
MOST_WISHES = 20


def choose(header: str) -> str:
    """Return the language that an Accept-Language header likes best (RFC 9110, 12.5.4); English where
    it likes none that there is."""
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(header.split(",")[:MOST_WISHES]):
        name, _, rest = part.partition(";")
        found = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", rest)
        quality = float(found[1]) if found else 1.0
        language = name.strip().lower().partition("-")[0]
        if quality > 0 and language in LANGUAGES:
            wishes.append((-quality, place, language))
    return min(wishes)[2] if wishes else LANGUAGES[0]


@lru_cache(maxsize=len(LANGUAGES))
def words(folder: Path, language: str) -> dict[str, Any]:
    """Read a language's texts."""
    found: dict[str, Any] = json.loads((folder / "words" / f"{language}.json").read_text("utf-8"))
    return found


def dress(folder: Path, language: str, facts: dict[str, Any]) -> str:
    """Return the page in a language. facts: what the page's script is told beside its texts."""
    known = words(folder, language)
    given = json.dumps({**facts, "language": language, "words": known}, ensure_ascii=True)
    # Nothing in it may end the element it stands in.
    given = given.replace("<", "\\u003c")

    def text(found: re.Match[str]) -> str:
        if found[1] == "language":
            return language
        return given if found[1] == "facts" else html.escape(known[found[1]], quote=True)

    return MARKED.sub(text, (folder / "index.html").read_text("utf-8"))

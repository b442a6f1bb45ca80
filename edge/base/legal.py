"""Whether a text is a reason for which the law lets a node read expressions in a school.

The AI Act (Regulation (EU) 2024/1689), Article 5(1)(f), excepts medical and safety reasons alone. What
a reason is worth nobody's program can tell; this tells one from a blank that was filled in to go on.
"""

from __future__ import annotations

import re

WANTED = "write 'medical: ' or 'safety: ' and which, in the school's own words"
# The two grounds as Europe's schools write them; the beginning of a word is enough.
GROUNDS = re.compile(
    r"\b(medic|medizin|médic|gesundheit|zdrav|zdrow|sanit|safety|sicherheit|sécurité|segur|sicurezza"
    r"|veiligheid|säkerhet|sikkerhed|bezpe)",
    re.IGNORECASE,
)
# What stands where a reason should: blanks, and the words by which forms and examples ask for one.
FILLERS = """
    todo tbd tba fixme wip na none null nil unknown test testing tests tested example sample
    dummy placeholder default lorem ipsum dolor sit amet asdf qwerty qwertz foo bar baz blah bla
    abc etc yes no ok okay true false later soon reason reasons grund motif basis legal law
    article act ai gdpr ground grounds text words word value string something anything nothing
    whatever here there this that these it is are be to do done determined defined filled fill
    in out add change changeme replace insert enter write say put your our my own school schools
    s the a an of for on or and with because why which what please me as may run lawful lawfully
    see above below refer refers reference same before previous earlier following next cf ibid attached
    attachment annex appendix enclosed document documents form page pages file files separate pending
    siehe oben unten anlage anhang voir dessus dessous annexe véase arriba abajo anexo
"""
FILLER_WORDS = frozenset(FILLERS.split())


def is_reason(text: str) -> bool:
    """Tell whether a text names one of the law's grounds, and says something of its own beside it: two
    words or more that are no blanks."""
    if not GROUNDS.search(text):
        return False
    # One letter again and again is a blank too.
    words = {word for word in re.findall(r"[^\W\d_]+", text.casefold()) if len(set(word)) > 1}
    own = {word for word in words if word not in FILLER_WORDS and not GROUNDS.match(word)}
    return len(own) >= 2 and sum(map(len, own)) >= 8


def not_a_reason(text: str) -> str:
    """Say of a text that is none what to write."""
    shown = " ".join(text.split())
    return (
        f"'privacy.legal_basis' gives no reason ('{shown:.40}'): the law knows medical and "
        f"safety ones alone (AI Act, Article 5); {WANTED}"
    )

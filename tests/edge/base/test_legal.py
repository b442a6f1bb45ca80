"""A reason that a school wrote is taken, a blank that was filled in to go on is not."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from edge.base.legal import FILLER_WORDS, is_reason, not_a_reason
from support.paths import ROOT


@pytest.mark.parametrize(
    "text",
    [
        "medical: a named study",
        "medical: epilepsy monitoring in class 4b",
        "Medical reasons: pain assessment of pupils who do not speak",
        "fire safety drill",
        "safety: evacuation drill, panic at the exits",
        "Sicherheit: Panikerkennung bei der Räumungsübung",
        "medizinisch: Schmerzerfassung in der Förderschule",
        "raisons médicales : suivi de la douleur",
        "seguridad: simulacro de evacuación",
    ],
)
def test_a_schools_reason_is_taken(text: str) -> None:
    assert is_reason(text)


@pytest.mark.parametrize(
    "text",
    [
        *("...", "todo", "TODO", "tbd", "T.B.D.", "xxx", "x", "-", "n/a", "none", "null", "asdf", "?"),
        *("", " ", "\u2026", "lorem ipsum", "test", "a test", "<reason>", "see above", "123"),
        *("medical", "safety", "medical:", "safety: ...", "medical: todo", "medical: xxx"),
        *("medical or safety", "medical or safety reason", "the medical or safety reason"),
        *("write the medical or safety reason", "medical: your reason here", "safety: yes yes yes"),
        *("medical: aaaa bbbbbb", "safety safety safety", "consent of the parents", "research"),
        "medical: the school's own reason, in its own words",
        *("safety: see above", "medical: see the attached document", "safety: same as before"),
        *("Sicherheit: siehe oben", "médical: voir ci-dessus", "safety: pending, see annex 3"),
    ],
)  # fmt: skip
def test_a_blank_is_none(text: str) -> None:
    assert not is_reason(text)


@given(
    st.lists(
        st.sampled_from([*sorted(FILLER_WORDS), "medical", "safety", "xxxx", "..."]), max_size=12
    )
)
def test_no_words_of_a_form_make_a_reason(words: list[str]) -> None:
    assert not is_reason(" ".join(words))


@given(st.text(max_size=300))
def test_what_is_wrong_is_one_line_whatever_the_text(text: str) -> None:
    assert is_reason(text) in (True, False)
    assert "safety: " in not_a_reason(text)
    assert len(not_a_reason(text).splitlines()) == 1


def test_what_the_pages_show_is_no_reason() -> None:
    """Copied as it stands, nothing of ours lets a node run."""
    page = (ROOT / "edge/flash/README.md").read_text()
    (block,) = (b for b in page.split("```yaml\n")[1:] if "legal_basis" in b)
    shown = yaml.safe_load(block.split("```")[0])
    assert not is_reason(shown["privacy"]["legal_basis"])
    settings = yaml.safe_load((ROOT / "systemd/node.yaml").read_text())
    assert not is_reason(settings["privacy"]["legal_basis"])

"""Score a model on data with other classes: over those that both have.

An image of a class that the model does not know is left out, as one voted "unknown" is. The model is
asked for the shared classes alone: its probabilities of these, divided by their sum. How often its own
answer was another class is said, since a node would have counted that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distill.data.splits import Split, majority
from distill.models.predict import Predictor
from edge.base.errors import DataError


def shared_classes(model: Sequence[str], data: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that model and data share, in the model's order. Raises DataError where those
    are fewer than two."""
    shared = tuple(label for label in model if label in data)
    if len(shared) < 2:
        raise DataError(
            f"the data has the classes {', '.join(data)}, the model {', '.join(model)}: fewer than two "
            f"are shared; rename the data's, or use other data"
        )
    return shared


def over(split: Split, labels: tuple[str, ...]) -> Split:
    """Give a split's votes in the order of `labels`, which it has; its other classes become votes for
    none of them."""
    own = [split.labels.index(label) for label in labels]
    rest = [column for column in range(split.votes.shape[1]) if column not in own]
    return Split(split.crops, split.votes[:, [*own, *rest]], labels)


def columns(
    probabilities: NDArray[np.float64], have: Sequence[str], labels: Sequence[str]
) -> NDArray[np.float64]:
    """Return the probabilities (N, K) of `have` as those of `labels` alone, whose rows sum to 1."""
    if tuple(have) == tuple(labels):
        return probabilities
    some = probabilities[:, [list(have).index(label) for label in labels]]
    total = np.maximum(some.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(some / total)


def restrict(model: Predictor, labels: tuple[str, ...]) -> Predictor:
    """Return the model as one that is asked for `labels` alone."""
    return replace(
        model,
        labels=labels,
        predict=lambda pixels: columns(model.predict(pixels), model.labels, labels),
    )


def explain(
    split: Split, data: Sequence[str], model: Sequence[str], probabilities: NDArray[np.float64]
) -> tuple[list[str], dict[str, object]]:
    """Say what is scored where the classes differ, in lines and as an entry of the scores; nothing
    where they are the same.

    split: by the shared classes; data, model: the classes of both; probabilities: (N, K), the model's
    own."""
    shared = split.labels
    if set(shared) == set(data) == set(model):
        return [], {}
    scored = majority(split.votes, len(shared)) >= 0
    left_out = int((majority(split.votes, len(data)) >= len(shared)).sum())
    answers = np.array(model)[probabilities.argmax(axis=1)]
    elsewhere = float((~np.isin(answers[scored], shared)).mean()) if scored.any() else 0.0
    lines = [
        f"scored over the {len(shared)} classes that model and data share: {', '.join(shared)}"
    ]
    if other := [label for label in data if label not in shared]:
        lines.append(f"  left out: {left_out} images of {', '.join(other)}, which the model lacks")
    if other := [label for label in model if label not in shared]:
        lines.append(
            f"  not asked for: {', '.join(other)}, which the data lack; the model's own answer is one "
            f"of these for {100 * elsewhere:.2f} % of the images"
        )
    return lines, {
        "shared_classes": list(shared),
        "left_out": left_out,
        "answers_not_asked_for": round(elsewhere, 5),
    }

"""Each loss on fixed tensors against values computed another way, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy, pearsonr, zscore

from distill.training.losses import (
    RunningStandard,
    attention_relations,
    decoupled_distillation,
    feature_distance,
    logit_distillation,
    relation_distillation,
    soft_cross_entropy,
    standardise,
)

RNG = np.random.default_rng(7)
STUDENT, TEACHER = RNG.normal(0, 2, (5, 4)), RNG.normal(1, 3, (5, 4))
LABELS = np.array([0, 3, 1, 1, 2])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def t(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_soft_cross_entropy() -> None:
    q = softmax(TEACHER)
    expected = np.mean([-(q[i] * np.log(softmax(STUDENT)[i])).sum() for i in range(5)])
    assert float(soft_cross_entropy(t(STUDENT), t(q))) == pytest.approx(expected)


def test_a_prior_is_added_to_the_logits_in_the_loss_alone() -> None:
    q, shift = softmax(TEACHER), np.array([0.5, -1.0, 2.0, 0.0])
    expected = np.mean([-(q[i] * np.log(softmax(STUDENT + shift)[i])).sum() for i in range(5)])
    assert float(soft_cross_entropy(t(STUDENT), t(q), t(shift))) == pytest.approx(expected)
    # Where only the classes' shares are to be known, the bare logits need not learn them.
    shares = np.tile([0.7, 0.1, 0.15, 0.05], (5, 1))
    flat = t(np.zeros((5, 4))).requires_grad_()
    soft_cross_entropy(flat, t(shares), t(np.log(shares[0]))).backward()
    assert flat.grad is not None
    assert float(flat.grad.abs().max()) < 1e-12


def test_standardised_logits_have_no_scale_and_no_shift() -> None:
    assert standardise(t(STUDENT)).numpy() == pytest.approx(zscore(STUDENT, axis=1), abs=1e-5)
    assert float(logit_distillation(t(STUDENT), t(3 * STUDENT + 5))) == pytest.approx(0, abs=1e-8)


def test_logit_distillation() -> None:
    p, q = (softmax(zscore(x, axis=1) / 2) for x in (STUDENT, TEACHER))
    expected = 4 * np.mean([entropy(q[i], p[i]) for i in range(5)])
    assert float(logit_distillation(t(STUDENT), t(TEACHER))) == pytest.approx(expected, rel=1e-5)


def test_decoupled_distillation() -> None:
    p, q = (softmax(zscore(x, axis=1) / 2) for x in (STUDENT, TEACHER))
    target, rest = [], []
    for i, label in enumerate(LABELS):
        target.append(entropy([q[i, label], 1 - q[i, label]], [p[i, label], 1 - p[i, label]]))
        others = np.delete(np.arange(4), label)
        rest.append(entropy(q[i, others], p[i, others]))  # entropy() divides by the sums
    expected = 4 * (1.0 * np.mean(target) + 8.0 * np.mean(rest))
    got = decoupled_distillation(t(STUDENT), t(TEACHER), torch.tensor(LABELS), beta=8.0)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_relation_distillation() -> None:
    p, q = softmax(STUDENT / 2), softmax(TEACHER / 2)
    between = np.mean([1 - pearsonr(p[i], q[i])[0] for i in range(5)])
    within = np.mean([1 - pearsonr(p[:, k], q[:, k])[0] for k in range(4)])
    got = relation_distillation(t(STUDENT), t(TEACHER))
    assert float(got) == pytest.approx(4 * (between + within), rel=1e-6)


def test_feature_distance() -> None:
    cosine = [
        1 - STUDENT[i] @ TEACHER[i] / np.linalg.norm(STUDENT[i]) / np.linalg.norm(TEACHER[i])
        for i in range(5)
    ]
    d = np.abs(STUDENT - TEACHER)
    smooth = np.where(d < 1, 0.5 * d**2, d - 0.5).mean()
    expected = 0.5 * np.mean(cosine) + 0.5 * smooth
    assert float(feature_distance(t(STUDENT), t(TEACHER))) == pytest.approx(expected)
    assert float(feature_distance(t(STUDENT), t(STUDENT))) == pytest.approx(0, abs=1e-9)


def test_attention_relations_need_no_equal_width() -> None:
    a, b = RNG.normal(0, 1, (2, 3, 4)), RNG.normal(0, 1, (2, 3, 6))
    values = []
    for i in range(2):
        for head in range(2):
            x, y = a[i][:, 2 * head : 2 * head + 2], b[i][:, 3 * head : 3 * head + 3]
            p, q = softmax(x @ x.T / np.sqrt(2)), softmax(y @ y.T / np.sqrt(3))
            values += [entropy(q[n], p[n]) for n in range(3)]
    assert float(attention_relations(t(a), t(b), heads=2)) == pytest.approx(np.mean(values))
    assert float(attention_relations(t(a), t(a), heads=2)) == pytest.approx(0, abs=1e-9)


def test_running_statistics_settle_follow_only_in_training_and_are_kept() -> None:
    torch.manual_seed(0)
    standard = RunningStandard(3)
    scale, shift = torch.tensor([1.0, 5.0, 0.2]), torch.tensor([0.0, -4.0, 9.0])
    for _ in range(300):
        standard(torch.randn(64, 7, 3) * scale + shift)
    standard.eval()
    out = standard(torch.randn(4000, 3) * scale + shift)
    assert out.mean(dim=0).abs().max() < 0.15
    assert (out.std(dim=0) - 1).abs().max() < 0.1
    before = standard.mean.clone()
    standard(torch.randn(64, 3) + 100)
    assert torch.equal(before, standard.mean)
    copy = RunningStandard(3)
    copy.load_state_dict(standard.state_dict())
    assert torch.equal(copy.variance, standard.variance)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: logit_distillation(s, t(TEACHER)),
        lambda s: decoupled_distillation(s, t(TEACHER), torch.tensor(LABELS)),
        lambda s: relation_distillation(s, t(TEACHER)),
        lambda s: feature_distance(s, t(TEACHER)),
    ],
)
def test_every_loss_pulls_the_student_to_the_teacher(loss: object) -> None:
    student = t(STUDENT).requires_grad_()
    first = float(loss(student.detach()))  # type: ignore[operator]
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        value = loss(student)  # type: ignore[operator]
        value.backward()
        assert bool(student.grad is not None and torch.isfinite(student.grad).all())
        optimiser.step()
    assert float(value.detach()) < 0.2 * first

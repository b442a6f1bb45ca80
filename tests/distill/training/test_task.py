from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from distill.data.sampling import Examples, log_prior
from distill.models.student import Student, StudentConfig
from distill.models.teacher import Teacher, TeacherAnswers, TeacherConfig, TeacherOutputs
from distill.recipe import Distillation, Training
from distill.training.batches import mixup
from distill.training.losses import RunningStandard, soft_cross_entropy
from distill.training.optimizer import adamw, learning_rate, sam_gradients, update_ema
from distill.training.task import DistillationTask, StudentTask, resize_grids

STUDENT = StudentConfig(
    classes=3, size=32, widths=(4, 6, 8, 8), depths=(1, 1, 1), width=8, heads=2, dropout=0.0
)
TEACHER = TeacherConfig(classes=3, scene_width=12, face_widths=(10,), width=16, heads=2)


def batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, TeacherOutputs]:
    g = torch.Generator().manual_seed(seed)
    outputs = TeacherOutputs(
        logits=torch.randn(size, 3, generator=g),
        embedding=torch.randn(size, 16, generator=g),
        scene=torch.randn(size, 12, 4, 4, generator=g),
        face=torch.randn(size, 10, 4, 4, generator=g),
    )
    faces = torch.rand(size, 1, 32, 32, generator=g) * 255
    return faces, torch.softmax(torch.randn(size, 3, generator=g), dim=1), outputs


QUERIES = replace(STUDENT, pool="queries", queries=3)


def task(student: StudentConfig = STUDENT, **weights: object) -> DistillationTask:
    torch.manual_seed(0)
    config = Distillation(**weights)  # type: ignore[arg-type]
    return DistillationTask(Student(student), config, Teacher(TEACHER).eval())


def test_every_loss_has_its_name_and_its_weight() -> None:
    faces, targets, outputs = batch(6)
    named = task(relations=1.0, relation_heads=2)(faces, targets, outputs)
    assert set(named) == {"votes", "logits", "tokens", "embedding", "relations"}
    assert all(value.ndim == 0 and value.item() > 0 for value in named.values())
    double = task(logits=2.0, tokens=0.0)(faces, targets, outputs)
    assert set(double) == {"votes", "logits", "embedding"}
    assert float(double["logits"].detach()) == pytest.approx(
        2 * float(named["logits"].detach()), rel=1e-4
    )
    for kind in ("decoupled", "relation"):
        other = task(logits_loss=kind)(faces, targets, outputs)
        assert other["logits"].detach().item() != pytest.approx(named["logits"].detach().item())


def test_the_prior_reaches_the_loss_on_the_votes_and_no_other() -> None:
    faces, targets, outputs = batch(6)
    prior = torch.tensor([0.0, -1.0, 1.0])
    torch.manual_seed(0)
    with_it = DistillationTask(Student(STUDENT), Distillation(), Teacher(TEACHER).eval(), prior)
    plain, adjusted = task()(faces, targets, outputs), with_it(faces, targets, outputs)
    assert float(adjusted["votes"].detach()) != pytest.approx(float(plain["votes"].detach()))
    for name in ("logits", "tokens", "embedding"):
        assert float(adjusted[name].detach()) == pytest.approx(float(plain[name].detach()))
    assert set(with_it.state_dict()) == set(task().state_dict()), "older runs can be resumed"
    alone = StudentTask(Student(STUDENT).eval(), prior)
    logits = alone.network(faces)
    assert float(alone(faces, targets)["votes"].detach()) == pytest.approx(
        float(soft_cross_entropy(logits + prior, targets).detach())
    )


def test_the_prior_is_the_log_of_the_classes_shares() -> None:
    targets = np.array([[1, 0, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    examples = Examples(np.zeros((4, 1, 8, 8), np.uint8), targets, np.array([0, 1, 2]), "")
    # Two and a half images' votes, a half's and none, which counts as one image's, as the half does.
    assert log_prior(examples).exp().numpy() == pytest.approx(np.array([2.5, 1, 1]) / 4.5)


def test_the_prior_is_that_of_the_images_as_they_are_drawn() -> None:
    targets = np.eye(3, dtype=np.float32)[[0] * 30 + [1] * 9 + [2] * 3]
    examples = Examples(np.zeros((42, 1, 8, 8), np.uint8), targets, np.arange(42), "")
    shares = [log_prior(examples, balance).exp().numpy() for balance in (0.0, 0.5, 1.0)]
    assert shares[0] == pytest.approx(np.array([30, 9, 3]) / 42)
    assert shares[1] == pytest.approx(np.sqrt([30, 9, 3]) / np.sqrt([30, 9, 3]).sum())
    assert shares[2] == pytest.approx(np.full(3, 1 / 3)), "there is no mix to take out"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "student"),
    [
        *((name, STUDENT) for name in ("logits", "tokens", "embedding", "relations")),
        *((name, QUERIES) for name in ("votes", "logits", "tokens", "embedding")),
    ],
    ids=lambda given: given if isinstance(given, str) else given.pool,
)
def test_each_loss_by_itself_can_be_learned(name: str, student: StudentConfig) -> None:
    only = {"votes": 0.0, "logits": 0.0, "tokens": 0.0, "embedding": 0.0, "relations": 0.0}
    it = task(student, **{**only, name: 1.0}, relation_heads=2)
    inputs = batch(8)
    learns = torch.optim.Adam([p for p in it.parameters() if p.requires_grad], lr=0.01)
    seen = []
    for _ in range(60):
        loss = it(*inputs)[name]
        learns.zero_grad()
        loss.backward()
        learns.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]


def test_without_a_teachers_inside_the_logits_alone_are_followed() -> None:
    config = Distillation(tokens=0, embedding=0)
    assert config.logits_alone
    for inside in ({"tokens": 1}, {"embedding": 1}, {"relations": 1}, {"views": 2}, {"live": True}):
        own: dict[str, object] = {"tokens": 0, "embedding": 0, **inside}
        assert not Distillation(**own).logits_alone  # type: ignore[arg-type]
    student = Student(STUDENT)
    plain = DistillationTask(student, config, None)
    assert all(name.startswith("network.") for name in plain.state_dict())
    faces, targets, outputs = batch(6)
    answers = TeacherAnswers(outputs.logits, torch.empty(6, 0))
    named = plain.eval()(faces, targets, answers)
    assert set(named) == {"votes", "logits"}
    same = plain(faces, targets, TeacherAnswers(student(faces), torch.empty(6, 0)))
    assert float(same["logits"].detach()) == pytest.approx(0, abs=1e-5)
    assert float(named["logits"].detach()) > 0.01


def test_each_stream_learns_its_own_backbone() -> None:
    it = task(votes=0.0, logits=0.0, embedding=0.0)
    faces, targets, outputs = batch(6)
    it(faces, targets, outputs)["tokens"].backward()
    assert it.network.scene.wide.weight.grad is not None
    before = [it.network.scene.wide.weight.grad.clone(), it.network.face.wide.weight.grad.clone()]
    it.zero_grad()
    it(faces, targets, replace(outputs, scene=outputs.scene.flip(0)))["tokens"].backward()
    assert not torch.allclose(it.network.scene.wide.weight.grad, before[0])
    assert torch.allclose(it.network.face.wide.weight.grad, before[1], atol=1e-6)


def test_the_teacher_is_no_part_of_what_is_saved_or_learns() -> None:
    it = task(relations=1.0, relation_heads=2)
    assert not [name for name in it.state_dict() if "teacher" in name]
    assert sum(p.numel() for p in it.parameters()) < 20_000
    moved = resize_grids(batch(2)[2], 8)
    assert moved.scene.shape == (2, 12, 8, 8)


def test_mixup_mixes_pictures_and_targets_alike() -> None:
    x = torch.eye(4)
    targets, mixed = mixup(0.5, torch.Generator().manual_seed(3), x, 10 * x)
    assert torch.allclose(10 * targets, mixed)
    assert torch.allclose(targets.sum(dim=1), torch.ones(4))
    assert 0 < float(targets[targets > 0].min()) < 1
    assert mixup(0.0, torch.Generator(), x, x)[0] is x


def test_sharpness_aware_gradients_are_those_of_the_worst_point_nearby() -> None:
    """f(w) = sum a w^2 has the gradient 2 a w; at w + rho g / |g| it is known in closed form."""
    a, rho = torch.tensor([1.0, 4.0]), 0.1
    holder = nn.Module()
    holder.w = nn.Parameter(torch.tensor([1.0, -2.0]))
    loss = lambda: (a * holder.w**2).sum()  # noqa: E731
    loss().backward()
    g = 2 * a * torch.tensor([1.0, -2.0])
    sam_gradients(loss, holder, [holder.w], rho)
    expected = 2 * a * (torch.tensor([1.0, -2.0]) + rho * g / g.norm())
    assert torch.allclose(holder.w.grad, expected)
    assert torch.allclose(holder.w.data, torch.tensor([1.0, -2.0])), "weights stand where they were"


def test_sharpness_aware_step_counts_a_teachers_statistics_once() -> None:
    holder = nn.ModuleDict({"line": nn.Linear(3, 3), "standard": RunningStandard(3)})
    x = torch.randn(8, 3)
    loss = lambda: (holder["line"](x) - holder["standard"](x)).pow(2).sum()  # noqa: E731
    loss().backward()
    sam_gradients(loss, holder, holder.parameters(), 0.05)
    assert int(holder["standard"].seen) == 1
    assert holder["standard"].training


def test_sharpness_aware_step_counts_batch_statistics_once() -> None:
    norm = nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    loss = lambda: norm(x).pow(3).sum()  # noqa: E731
    loss().backward()
    mean = norm.running_mean.clone()
    sam_gradients(loss, norm, norm.parameters(), 0.05)
    assert torch.equal(norm.running_mean, mean)
    assert norm.momentum == 0.1


def test_schedule_groups_and_average() -> None:
    training = Training(epochs=10, learning_rate=0.1, warmup_epochs=1.0, weight_decay=0.3)
    rates = [learning_rate(training, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 1e-3
    network = nn.ModuleDict({"tail": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    groups = adamw(network, training, network["tail"], 0.2).param_groups
    assert [(g["share"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1.0, 0.3, 1),
        (1.0, 0.0, 1),
        (0.2, 0.3, 1),
        (0.2, 0.0, 1),
    ]
    average, new = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    average.weight.data.fill_(1.0)
    new.weight.data.fill_(2.0)
    update_ema(average, new, 0.75)
    assert average.weight.detach().item() == pytest.approx(1.25)

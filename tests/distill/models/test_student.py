from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distill.models.student import (
    LearnedQueries,
    Student,
    StudentConfig,
    multiply_adds,
    reparameterise,
)
from support.trained import in_use

TWO_WAY = StudentConfig(classes=8)
FORMS = [
    TWO_WAY,
    replace(TWO_WAY, attend=False),
    *(replace(TWO_WAY, pool="queries", queries=n) for n in (1, 4, 8)),
]


def name_of(config: StudentConfig) -> str:
    if config.pool == "queries":
        return f"{config.queries}-queries"
    return "two-way" if config.attend else "perceptron"


def trained_like(config: StudentConfig) -> Student:
    """A student whose batch statistics are those of a network in use, not the initial ones."""
    torch.manual_seed(0)
    student = Student(config)
    in_use(student)
    return student.eval()


def faces(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("config", FORMS, ids=name_of)
def test_reparameterised_student_answers_as_the_training_one(config: StudentConfig) -> None:
    student = trained_like(config)
    deployed = reparameterise(student)
    with torch.no_grad():
        difference = (student(faces(5)) - deployed(faces(5))).abs().max()
    assert float(difference) < 1e-4
    assert not [m for m in deployed.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)], "left as it was"


@pytest.mark.parametrize("config", FORMS, ids=name_of)
def test_deployed_student_keeps_to_its_budget(config: StudentConfig) -> None:
    student = Student(config)
    parameters = sum(p.numel() for p in reparameterise(student).parameters())
    assert parameters <= 2_500_000
    assert multiply_adds(student) <= 150_000_000


def test_without_attention_the_student_costs_the_same_and_tokens_do_not_meet() -> None:
    with_it = Student(StudentConfig(classes=8))
    without = Student(StudentConfig(classes=8, attend=False)).eval()
    assert multiply_adds(without) == multiply_adds(with_it)
    scene, face = torch.randn(2, 1, 64, 128)
    other = face.clone()
    other[0, 5] += 3.0
    x, y = (without.fusion.scene_to_face_attention(scene, f) for f in (face, other))
    assert torch.equal(x, y)
    x, y = (with_it.fusion.scene_to_face_attention(scene, f) for f in (face, other))
    assert not torch.allclose(x, y)


@pytest.mark.parametrize("config", FORMS, ids=name_of)
@pytest.mark.parametrize("sizes", [{}, {"size": 32, "width": 48, "heads": 2}], ids=["64", "32"])
def test_all_forms_cost_the_same_but_for_the_head(
    config: StudentConfig, sizes: dict[str, int]
) -> None:
    config, two_way = replace(config, **sizes), replace(TWO_WAY, **sizes)
    wider_head = (config.embedding_width - config.width) * config.classes
    assert multiply_adds(Student(config)) == multiply_adds(Student(two_way)) + wider_head


def test_learned_queries_answer_what_attention_gives_token_by_token() -> None:
    torch.manual_seed(2)
    attention = LearnedQueries(width=6, heads=2, tokens=5, queries=3)
    context = torch.randn(4, 5, 6)
    with torch.no_grad():
        answers = attention(context)
        k, v = attention.key(context), attention.value(context)
    assert answers.shape == (4, 3, 6)
    for face in range(4):
        for query in range(3):
            for head in range(2):
                own = slice(3 * head, 3 * head + 3)
                look = attention.query[0, head, query].detach()
                weights = torch.softmax(torch.stack([look @ token[own] for token in k[face]]), 0)
                expected = sum(w * token[own] for w, token in zip(weights, v[face], strict=True))
                torch.testing.assert_close(answers[face, query, own], expected)


def test_learned_queries_ask_every_token_of_both_streams() -> None:
    student = trained_like(replace(TWO_WAY, pool="queries"))
    scene, face = (torch.randn(1, 64, 128, requires_grad=True) for _ in range(2))
    student.fusion(scene, face).pow(2).sum().backward()
    for stream in (scene, face):
        assert (stream.grad.norm(dim=2) > 0).all()


def test_one_look_by_all_queries_is_not_forced() -> None:
    """Each query starts at its own place: were two equal, they would learn the same for ever."""
    student = Student(replace(TWO_WAY, pool="queries", queries=4))
    looks = student.fusion.queries.query[0].transpose(0, 1).flatten(1)  # (Q, D)
    distances = torch.cdist(looks, looks) + torch.eye(4) * 1e3
    assert float(distances.detach().min()) > 0.5


def test_queries_without_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="leave attend True"):
        replace(TWO_WAY, pool="queries", attend=False)


def test_multiply_adds_of_a_case_worked_out_by_hand() -> None:
    config = StudentConfig(
        classes=2, size=16, widths=(1, 1, 1, 1), depths=(1, 1, 1), width=2, heads=1
    )
    convolutions = 9 * (256 + 64 + 16 + 4) + 2 * 9 * 2 * 4 + 9 * 4 * 2 * 4
    attention = 2 * (4 * 2 * 2 * 4) + 2 * (2 * 4 * 4 * 2)
    assert multiply_adds(Student(config)) == convolutions + attention + 2 * 2


def test_tokens_are_places_a_moved_face_moves_its_tokens() -> None:
    student = trained_like(StudentConfig(classes=8))
    picture = torch.full((1, 1, 64, 64), 128.0)
    picture[:, :, 24:32, 16:24] = 255.0
    moved = torch.roll(picture, shifts=(8, 16), dims=(2, 3))  # one token down, two to the right
    empty = torch.full((1, 1, 64, 64), 128.0)
    with torch.no_grad():
        tokens = [student.tokens(image) for image in (empty, picture, moved)]
    for plain, before, after in zip(*tokens, strict=True):
        places = []
        for with_face in (before, after):
            strongest = int((with_face - plain)[0].norm(dim=1).argmax())
            places.append((strongest // 8, strongest % 8))
        assert places[0] in [(y, x) for y in (2, 3, 4) for x in (1, 2, 3)], "where the face is"
        assert (places[1][0] - places[0][0], places[1][1] - places[0][1]) == (1, 2)


def test_each_stream_asks_the_other() -> None:
    """Changing one stream's tokens changes what the other one's attention gives."""
    student = trained_like(StudentConfig(classes=8))
    scene, face = student.tokens(faces(1))
    attention = student.fusion.scene_to_face_attention
    with torch.no_grad():
        plain = attention(scene, face)
        assert not torch.allclose(plain, attention(scene, face.flip(1) * 2))
        # Attention over a set: the order of the context's tokens does not matter.
        torch.testing.assert_close(plain, attention(scene, face.flip(1)))

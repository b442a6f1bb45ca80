from __future__ import annotations

import torch

from distill.models.student import Student, StudentConfig, multiply_adds, reparameterise
from support.trained import in_use


def trained_like(config: StudentConfig) -> Student:
    """A student whose batch statistics are those of a network in use, not the initial ones."""
    torch.manual_seed(0)
    student = Student(config)
    in_use(student)
    return student.eval()


def faces(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def test_reparameterised_student_answers_as_the_training_one() -> None:
    student = trained_like(StudentConfig(classes=8))
    deployed = reparameterise(student)
    with torch.no_grad():
        difference = (student(faces(5)) - deployed(faces(5))).abs().max()
    assert float(difference) < 1e-4
    assert not [m for m in deployed.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)], "left as it was"


def test_deployed_student_keeps_to_its_budget() -> None:
    student = Student(StudentConfig(classes=8))
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

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.data.augment import corrupt, distort, random_affine, warp
from distill.data.sampling import Examples
from distill.recipe import Recipe
from distill.training.batches import StudentBatches, TeacherBatches, augmented

TEMPLATE = [[20, 23], [44, 23], [32, 37], [22, 51], [42, 51]]
STILL = {
    "rotate_degrees": 0, "scale": 1, "shift": 0, "contrast": 1, "brightness": 0, "gamma": 1,
    "shrink_share": 0, "blur_share": 0, "noise": 0, "jpeg_share": 0, "erase_share": 0,
}  # fmt: skip


def recipe(**augmentation: float) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "crop": {"size": 64, "template": TEMPLATE},
            "student": {},
            "augmentation": {**STILL, **augmentation},
            "training": {"epochs": 1},
        }
    )


def examples(count: int = 16) -> Examples:
    faces = np.full((count, 1, 64, 64), 128, np.uint8)
    return Examples(faces, np.eye(2, dtype=np.float32)[np.arange(count) % 2], np.arange(count), "")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_students_and_teachers_see_covered_mouths_where_the_recipe_asks(share: float) -> None:
    own, cpu = examples(), torch.device("cpu")
    plan, rows = recipe(mask_share=share), np.arange(16)
    student = StudentBatches(plan, own, own.faces, cpu)
    same = torch.nn.Identity()
    teacher = TeacherBatches(plan, own, [], [same, same], cpu, [None, None])
    for batches in (student, teacher):
        inputs = batches.batch(rows, 0, torch.Generator().manual_seed(0))
        faces = next(x for x in inputs if x.dim() == 4)
        lips = (faces[:, :, 50:54, 28:36] - 128).abs().mean(dim=(1, 2, 3))
        assert float((lips > 3).float().mean()) == pytest.approx(share, abs=0.25)
        assert torch.allclose(faces[:, :, :20], torch.tensor(128.0), atol=0.1)


@pytest.mark.parametrize("plain", [0.0, 0.5, 1.0])
def test_a_plain_share_of_the_images_is_only_moved_and_lit(plain: float) -> None:
    """Of images that are all to be masked and made noisy, that share stays uncovered."""
    own = examples(400)
    plan = recipe(plain_share=plain, mask_share=1, noise=8, brightness=10)
    batches = StudentBatches(plan, own, own.faces, torch.device("cpu"))
    faces = batches.batch(np.arange(400), 0, torch.Generator().manual_seed(0))[0]
    even = faces.flatten(1).std(dim=1) < 0.01  # one grey, whichever
    assert float(even.float().mean()) == pytest.approx(plain, abs=0.1)
    if plain:
        assert float(faces[even].std()) > 2, "lit anew"


def test_recipes_without_a_plain_share_draw_as_before() -> None:
    faces = torch.rand(8, 1, 64, 64) * 255
    plan = recipe(mask_share=0.5, noise=9)
    one, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    affine = random_affine(8, plan.augmentation, torch.Generator().manual_seed(1))
    changed = distort(faces, plan.augmentation, torch.tensor(plan.crop.template), one)
    expected = corrupt(warp(changed, affine), plan.augmentation, one)
    assert torch.equal(augmented(faces, affine, plan, other), expected)
    assert torch.equal(one.get_state(), other.get_state())

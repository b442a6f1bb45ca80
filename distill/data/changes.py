"""What happens to a face on its way to the network, at given strengths: pose, light, covers, a camera.

Evaluation makes these changes at stated strengths (`evaluation/robustness.py`), training at random ones
(`augment.py`): the one code for both. Faces are (B, C, S, S) float32 of 0..255, one colour channel or
BGR; landmarks (5, 2) are in pixels of that image, in the order of the crop's template, where the five
landmarks of an aligned crop lie. What is random comes in as an argument; borders are repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# A mean face: how far the nose's tip stands out of the plane of eyes and mouth (as `edge.pose` has it),
# and the radius of curvature of its front, both in distances between the eyes.
NOSE, RADIUS = 0.5, 1.25
Turned = Callable[[Tensor, Tensor], Tensor]  # places across the face, and heights, to where they go
DISPLAY_GAMMA = 2.2  # of grey levels: light is (grey / 255) to this power


def _sample(faces: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read images at pixels x, y (B, S, S), bilinearly."""
    side = faces.shape[-1]
    field = (2 * torch.stack([x, y], dim=-1) + 1) / side - 1
    return functional.grid_sample(faces, field, padding_mode="border", align_corners=False)


def _depth(x: Tensor, y: Tensor, nose: Tensor, radius: Tensor) -> Tensor:
    """Return how far the face stands out at x, y from the nose's tip, in distances between the eyes: a
    parabola across the face, and the nose on it."""
    tip = nose - 0.125 / radius  # eyes and mouth lie half a distance aside on the parabola
    return -(x**2) / (2 * radius) + tip * torch.exp(-((x / 0.15) ** 2 + (y / 0.25) ** 2) / 2)


def turn(
    faces: Tensor,
    landmarks: Tensor,
    degrees: Tensor,
    nose: float | Tensor = NOSE,
    radius: float | Tensor = RADIUS,
) -> Tensor:
    """Turn heads about the vertical (yaw) and align them again by where the landmarks went.

    degrees: (B,), the sign is the side; nose, radius: of the face's depth, numbers or (B,). What the
    nose or the far cheek hides is gone; what a turn would uncover is stretched from its border."""
    batch, side = len(faces), faces.shape[-1]
    eyes = float(torch.linalg.vector_norm(landmarks[1] - landmarks[0]))
    middle, nose_y = float(landmarks[:, 0].mean()), float(landmarks[2, 1])
    form = [torch.as_tensor(v, dtype=torch.float32).expand(batch) for v in (nose, radius)]
    angle, mirror = torch.deg2rad(degrees.abs()), torch.where(degrees < 0, -1.0, 1.0)

    def turned(across: Tensor, y: Tensor) -> Tensor:
        """Move `across`, pixels from the face's middle towards the side it turns to, at height y."""
        shape = (batch, *[1] * (across.dim() - 1))
        out = _depth(across / eyes, (y - nose_y) / eyes, *(f.reshape(shape) for f in form))
        return across * angle.cos().reshape(shape) + eyes * out * angle.sin().reshape(shape)

    # Of points that land on one place the one nearer the camera is seen: it comes first in this order.
    across = torch.arange(2 * side, dtype=torch.float32).sub(side).expand(batch, side, -1)
    rows = torch.arange(side, dtype=torch.float32)[None, :, None]
    seen = turned(across, rows).cummax(dim=2).values
    wanted = across.contiguous()
    after = torch.searchsorted(seen, wanted).clamp(1, 2 * side - 1)
    low, high = seen.gather(2, after - 1), seen.gather(2, after)
    part = ((wanted - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    inverse = after - 1 - side + part  # (B, S, 2S): which `across` is seen at each place

    back_x, back_y = _aligned_again(landmarks, mirror[:, None], middle, turned, side)
    index = torch.stack(
        [
            (2 * (mirror.reshape(-1, 1, 1) * (back_x - middle) + side) + 1) / (2 * side) - 1,
            (2 * back_y + 1) / side - 1,
        ],
        dim=-1,
    )
    source = functional.grid_sample(
        inverse[:, None], index, padding_mode="border", align_corners=False
    )[:, 0]
    return _sample(faces, middle + mirror.reshape(-1, 1, 1) * source, back_y)


def _aligned_again(
    landmarks: Tensor, mirror: Tensor, middle: float, turned: Turned, side: int
) -> tuple[Tensor, Tensor]:
    """Return, for each pixel of the new crop, its place x, y (B, S, S) in the turned picture: through
    the least-squares similarity of `edge.crop`, by complex numbers."""
    batch = len(mirror)
    heights = landmarks[:, 1].expand(batch, -1)
    moved = middle + mirror * turned(mirror * (landmarks[:, 0] - middle), heights)
    points, template = torch.complex(moved, heights), torch.complex(*landmarks.T.contiguous())
    own, theirs = points.mean(dim=1, keepdim=True), template.mean()
    ratio = ((points - own).conj() * (template - theirs)).sum(dim=1, keepdim=True)
    ratio = ratio / (points - own).abs().square().sum(dim=1, keepdim=True)
    place = torch.arange(side, dtype=torch.float32)
    pixels = torch.complex(place[None, :].expand(side, -1), place[:, None].expand(-1, side))
    back = (pixels - theirs) / ratio[:, :, None] + own[:, :, None]
    return back.real, back.imag


def bend(faces: Tensor, landmarks: Tensor, shifts: Tensor) -> Tensor:
    """Move the landmarks and bend what lies between by a thin-plate spline; the border stays.

    shifts: (B, 5, 2), pixels from where a landmark is to where it was. Bookstein, "Principal warps",
    IEEE TPAMI 1989."""
    side = faces.shape[-1]
    edge = torch.tensor([0.0, (side - 1) / 2, side - 1])
    border = torch.cartesian_prod(edge, edge)
    points = torch.cat([landmarks, border[torch.arange(9) != 4]])  # (P, 2), without the middle
    count = len(points)

    def terms(at: Tensor) -> Tensor:
        square = (at[:, None] - points[None]).square().sum(dim=2)
        bent = torch.xlogy(square, square)
        return torch.cat([bent, torch.ones(len(at), 1), at], dim=1)

    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count] = terms(points)
    system[count:, :count] = system[:count, count:].T
    place = torch.arange(side, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1)
    basis = terms(pixels.reshape(-1, 2)).double() @ torch.linalg.inv(system)[:, :5]
    moved = (basis.float() @ shifts).reshape(-1, side, side, 2) + pixels
    return _sample(faces, moved[..., 0], moved[..., 1])


def side_light(faces: Tensor, ratio: Tensor, degrees: Tensor) -> Tensor:
    """Light from one side: full there, falling to 1 / ratio of it on the other.

    ratio: (B,), at least 1; degrees: (B,), where the light is, 0 right and 90 below."""
    side = faces.shape[-1]
    place = torch.arange(side, dtype=torch.float32).mul(2 / (side - 1)).sub(1)
    angle = torch.deg2rad(degrees).reshape(-1, 1, 1)
    along = angle.cos() * place[None, None, :] + angle.sin() * place[None, :, None]
    stops = -ratio.log().reshape(-1, 1, 1) * (1 - along.clamp(-1, 1)) / 2
    return faces * torch.exp(stops / DISPLAY_GAMMA)[:, None]


def through_camera(
    faces: Tensor, side: int, noise: float, quality: int, generator: torch.Generator
) -> Tensor:
    """Take a far face's picture: few pixels, a sensor's noise on them, JPEG, and enlarged by the node.

    side: of the crop on the sensor, pixels; noise: deviation in grey levels; quality: JPEG's."""
    small = functional.interpolate(faces, size=(side, side), mode="bilinear", antialias=True)
    small = small + noise * torch.randn(small.shape, generator=generator)
    small = jpeg(small.clamp(0, 255), quality)
    return functional.interpolate(small, size=faces.shape[-2:], mode="bilinear")


@dataclass(frozen=True, slots=True)
class _FaceAxes:
    """across, down: (B, S, S), each pixel's place from the middle of the eyes, in `eyes` (the distance
    between them) and in `height` (from eyes to mouth), both in pixels."""

    across: Tensor
    down: Tensor
    eyes: float
    height: float


def _axes(landmarks: Tensor, side: int) -> _FaceAxes:
    eyes = landmarks[1] - landmarks[0]
    middle = landmarks[:2].mean(dim=0)
    mouth = landmarks[3:].mean(dim=0) - middle
    place = torch.arange(side, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1) - middle
    parts = pixels @ torch.linalg.inv(torch.stack([eyes, mouth]))
    lengths = (float(torch.linalg.vector_norm(v)) for v in (eyes, mouth))
    return _FaceAxes(parts[None, ..., 0], parts[None, ..., 1], *lengths)


def _inside(pixels: Tensor) -> Tensor:
    """Return how much of a pixel lies inside an edge that is so many pixels away, 0..1."""
    return (pixels + 0.5).clamp(0, 1)


def _blend(faces: Tensor, colour: Tensor, share: Tensor) -> Tensor:
    return faces + (colour - faces) * share[:, None]


def as_channels(bgr: Tensor, channels: int) -> Tensor:
    """Turn BGR colours (B, 3) into (B, channels, 1, 1): grey by the weights of ITU-R BT.601."""
    colour = bgr if channels == 3 else bgr @ torch.tensor([[0.114], [0.587], [0.299]])
    return colour[:, :, None, None]


def wear_mask(
    faces: Tensor,
    landmarks: Tensor,
    bgr: Tensor,
    covered: Tensor,
    width: float = 1.05,
    pleats: float = 0.06,
) -> Tensor:
    """Draw a cloth mask from cheek to cheek and below the chin, with its straps, lit as the face is.

    bgr: (B, 3), 0..255; covered: (B,), of the way from the mouth up to the eyes (0.5 is the nose's
    tip); width: half of it, in distances between the eyes; pleats: contrast of its folds."""
    axes = _axes(landmarks, faces.shape[-1])
    aside, down = axes.across.abs(), axes.down
    top = (1 - covered).reshape(-1, 1, 1) + 0.3 * axes.across**2
    bottom = 1.75 - 0.6 * axes.across**2
    cloth = _inside((down - top) * axes.height) * _inside((bottom - down) * axes.height)
    cloth = cloth * _inside((width - aside) * axes.eyes)
    out = aside - width
    upper = (1 - covered).reshape(-1, 1, 1) + 0.3 * width**2 + 0.05 - 0.5 * out
    straps = torch.maximum(
        *(_inside(0.2 - (down - y).abs() * axes.height) for y in (upper, 1.05 - out))
    )
    share = torch.maximum(cloth, straps * _inside(out * axes.eyes))
    light = (faces.mean(dim=(1, 2, 3), keepdim=True) / 128).clamp(0.2, 1.3)
    shade = (1 - 0.25 * axes.across**2) * (1 + pleats * torch.cos(6 * math.pi * down))
    colour = as_channels(bgr, faces.shape[1]) * light * shade[:, None].clamp(0.3)
    return _blend(faces, colour, share).clamp(0, 255)


def wear_sunglasses(
    faces: Tensor,
    landmarks: Tensor,
    bgr: Tensor,
    passes: Tensor,
    width: Tensor,
    height: Tensor,
    roundness: float = 3.0,
) -> Tensor:
    """Draw sunglasses: two lenses, the bridge between them and the arms to the ears.

    bgr: (B, 3), of the frame; passes: (B,), the share of the light that a lens lets through (what lies
    behind is lit through it and seen through it); width, height: (B,), half a lens in distances between
    the eyes; roundness: 2 is an ellipse, more is squarer."""
    axes = _axes(landmarks, faces.shape[-1])
    aside, down = axes.across.abs(), axes.down * axes.height / axes.eyes
    half, tall = width.reshape(-1, 1, 1), height.reshape(-1, 1, 1)
    off = ((aside - 0.5).abs() / half) ** roundness + ((down - 0.05).abs() / tall) ** roundness
    reach = (1 - off ** (1 / roundness)) * torch.minimum(half, tall) * axes.eyes
    lens, rim = _inside(reach), _inside(1.0 - reach.abs())
    bar = _inside((0.04 - (down + 0.05).abs()) * axes.eyes)
    beside = torch.maximum(
        _inside((0.5 - half - aside) * axes.eyes), _inside((aside - 0.5 - half) * axes.eyes)
    )
    frame = torch.maximum(rim, bar * beside)
    seen = faces * passes.reshape(-1, 1, 1, 1) ** (2 / DISPLAY_GAMMA)
    shine = 14 * (0.5 - (down - 0.05) / (2 * tall)).clamp(0, 1)[:, None]  # the sky in the lens
    return _blend(_blend(faces, seen + shine, lens), as_channels(bgr, faces.shape[1]), frame).clamp(
        0, 255
    )


def gaussian_blur(faces: Tensor, deviation: float) -> Tensor:
    """Blur (B, C, S, S); deviation in pixels, borders repeated."""
    reach = max(1, math.ceil(3 * deviation))
    place = torch.arange(-reach, reach + 1, dtype=faces.dtype, device=faces.device)
    kernel = torch.exp(-0.5 * (place / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(faces.shape[1], 1, -1)
    padded = functional.pad(faces, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=faces.shape[1])
    return functional.conv2d(across, kernel[:, :, :, None], groups=faces.shape[1])


def jpeg(faces: Tensor, quality: int) -> Tensor:
    """Pass (B, C, S, S) of 0..255 through JPEG's own loss: the DCT of 8x8 blocks, divided by the
    standard luminance table at that quality, rounded, and back (ITU-T T.81, annex K.1)."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(_LUMINANCE, dtype=torch.float32, device=faces.device).reshape(8, 8)
    table = ((table * scale + 50) / 100).floor().clamp(1, 255)
    k = torch.arange(8, dtype=torch.float32, device=faces.device)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= 2**0.5
    own = faces.shape[-1]
    if own % 8:  # an encoder fills its last blocks up
        faces = functional.pad(faces, (0, -own % 8, 0, -own % 8), mode="replicate")
    batch, channels, side, _ = faces.shape
    blocks = faces.reshape(batch, channels, side // 8, 8, side // 8, 8).transpose(3, 4) - 128
    coefficients = basis @ blocks @ basis.T
    coefficients = (coefficients / table).round() * table
    back = (basis.T @ coefficients @ basis + 128).transpose(3, 4)
    return back.reshape(batch, channels, side, side)[:, :, :own, :own].clamp(0, 255)


# The example luminance table of ITU-T T.81, row by row.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip

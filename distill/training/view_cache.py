"""Keep several teachers' common answers for a few augmented views of every training image on disk.

DATA.features/views-KEY/ holds, by view and row of the split:

    logits.npy       (V, N, K) float16, of all teachers together
    embedding.npy    (V, N, D) float16, the first teacher's
    probe.npy        (V, C, S, S) uint8, the views of one made-up image
    done             how many rows are written, of V * N; a run that was killed resumes there

No grids: with 8 classes and D = 256 a view costs 528 bytes. A view is drawn anew whenever it is needed,
from a generator that its row and number seed alone, so every epoch, run and process sees the very
image that the teachers answered for. Beyer et al., CVPR 2022, call this consistent teaching. KEY is a
digest of the teachers' weights, the cropped images, the augmentation's settings and the precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.disk import create_map, refuse_full_disk
from distill.models.backbones import FrozenBackbones
from distill.models.precision import autocast
from distill.models.predict import Predictor, ensemble, probabilities
from distill.models.teacher import Teacher, TeacherAnswers
from distill.progress import Progress
from edge.base.errors import DataError
from edge.base.files import file_lock, write_atomically
from edge.inference.bundle import CropSpec

BATCH = 128
SAVE_EVERY = 8  # batches
MOST_VIEWS = 64
PROBE_TOLERANCE = 0.5  # mean grey levels: processors round a view otherwise by far less

Augment = Callable[[Tensor, torch.Generator], Tensor]
Ask = Callable[[NDArray[np.uint8]], TeacherAnswers]


@dataclass(frozen=True, slots=True)
class Views:
    """Draw the augmented views of a split's images.

    count: of each image; faces: (N, C, S, S) uint8; augment: changes (B, C, S, S) float32 of 0..255 by
    what it draws from a generator."""

    count: int
    faces: NDArray[np.uint8]
    augment: Augment

    def draw(self, rows: NDArray[np.int64], view: int) -> NDArray[np.uint8]:
        """Return one view of each row's image, (B, C, S, S), whatever stands next to it in a batch."""
        return np.concatenate([self._of(self.faces[row], int(row), view) for row in rows])

    def probe(self) -> NDArray[np.uint8]:
        """Return all views of a made-up image, (V, C, S, S), by which other augmentation is noticed."""
        shape = self.faces.shape[1:]
        ramp = np.linspace(0, 255, int(np.prod(shape))).reshape(shape).astype(np.uint8)
        return np.concatenate([self._of(ramp, 0, view) for view in range(self.count)])

    def _of(self, face: NDArray[np.uint8], row: int, view: int) -> NDArray[np.uint8]:
        # torch's generator on the CPU takes 32 bits of its seed.
        generator = torch.Generator().manual_seed(row * MOST_VIEWS + view)
        changed = self.augment(torch.from_numpy(np.array(face)).float()[None], generator)
        return np.asarray(changed.round().clamp(0, 255).to(torch.uint8).numpy())


@dataclass(frozen=True, slots=True)
class ViewTargets:
    """Read the answers of a view. logits: (V, N, K), embedding: (V, N, D), memory-mapped float16."""

    logits: NDArray[np.float16]
    embedding: NDArray[np.float16]

    def read(self, rows: NDArray[np.int64], view: int) -> TeacherAnswers:
        """Return float32 answers (B, K) and (B, D)."""
        return TeacherAnswers(
            *(
                torch.from_numpy(array[view][rows].astype(np.float32))
                for array in (self.logits, self.embedding)
            )
        )


def ask_together(
    teacher: Teacher,
    frozen: FrozenBackbones,
    labels: tuple[str, ...],
    crop: CropSpec,
    others: Sequence[Predictor],
    bf16: bool,
) -> Ask:
    """Return a function from images (B, C, S, S) uint8 to the answers of all networks together: their
    mean logits (of averaged log-probabilities, up to a constant a row) and the teacher's embedding.

    labels, crop: the teacher's. The function raises DataError where another network knows other
    classes or reads other crops."""
    device = next(teacher.parameters()).device

    def ask(pixels: NDArray[np.uint8]) -> TeacherAnswers:
        faces = torch.from_numpy(pixels).float().to(device)
        with torch.no_grad(), autocast(device, bf16):
            outputs = teacher.eval().forward_outputs(*frozen(faces))
        logits = outputs.logits.float().cpu()
        if others:
            own = probabilities(logits.numpy())
            first = Predictor(labels, crop, lambda _: own, "fp32")
            mean = ensemble([first, *others]).predict(pixels)
            logits = torch.from_numpy(np.log(np.maximum(mean, 1e-12))).float()
        return TeacherAnswers(logits, outputs.embedding.float().cpu())

    return ask


def views_folder(crops: Path, split: str, views: Views, made_by: dict[str, Any]) -> Path:
    """Return DATA.features/views-KEY for the crops in DATA.crops/KEY.

    made_by: all that the answers depend on beside the images and the number of views. Raises DataError
    where the crops of that split are not finished."""
    try:
        images = hashlib.sha256((crops / f"{split}.key").read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{crops} holds no finished crops of '{split}'; run it again") from error
    facts = {"crops": crops.name, "images": images, "views": views.count, **made_by}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    beside = crops.parent.with_name(crops.parent.name.removesuffix(".crops") + ".features")
    return beside / f"views-{key}"


def cache_view_targets(
    folder: Path, views: Views, ask: Ask, progress: Callable[[str], None]
) -> ViewTargets:
    """Open the answers in `folder` after computing what is missing of them.

    Raises DataError where the disk is too small, the files are damaged, or the views are drawn
    otherwise than when they were answered for."""
    try:
        # A finished one may lie on a disk that is read-only.
        if _done(folder) == views.count * len(views.faces):
            return _cached(folder, views, ask, progress)
        refuse_full_disk(folder, 0)
        with file_lock(folder / ".lock"):  # of two runs, the second waits and finds it done
            return _cached(folder, views, ask, progress)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be used ({error}); delete it and start again") from error


def _done(folder: Path) -> int:
    mark = folder / "done"
    return int(mark.read_text()) if mark.is_file() else 0


def _cached(folder: Path, views: Views, ask: Ask, progress: Callable[[str], None]) -> ViewTargets:
    images, mark, probe = len(views.faces), folder / "done", views.probe()
    total = views.count * images
    done = _done(folder)
    if done == 0:
        _allocate(folder, views, ask, probe)
    known = np.load(folder / "probe.npy")
    if known.shape != probe.shape or _difference(known, probe) > PROBE_TOLERANCE:
        raise DataError(
            f"{folder} was made by another augmentation than this version's; delete it and start again"
        )
    mode: Any = "r" if done == total else "r+"
    logits, embedding = (
        np.load(folder / f"{n}.npy", mmap_mode=mode) for n in ("logits", "embedding")
    )
    if not logits.shape[:2] == embedding.shape[:2] == (views.count, images) or done > total:
        raise DataError(f"{folder} holds other images; delete it and start again")
    size = (logits.nbytes + embedding.nbytes) / images
    progress(
        f"targets of {views.count} views of {images} images: {images * size / 1e6:,.1f} MB, "
        f"{size / 1e3:.1f} kB an image, {folder}"
    )
    saved = done
    with Progress("teachers on views", total, "views", done, shown=done < total) as bar:
        while done < total:
            view, row = divmod(done, images)
            rows = np.arange(row, min(row + BATCH, images))
            answers = ask(views.draw(rows, view))
            logits[view, rows] = answers.logits.numpy()
            embedding[view, rows] = answers.embedding.numpy()
            done += len(rows)
            bar.advance(len(rows))
            if done - saved >= SAVE_EVERY * BATCH or done % images == 0:
                logits.flush()
                embedding.flush()
                # After the rows: killed in between, they are computed again.
                write_atomically(mark, str(done).encode())
                saved = done
    return ViewTargets(logits, embedding)


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean())


def _allocate(folder: Path, views: Views, ask: Ask, probe: NDArray[np.uint8]) -> None:
    """Take the room for all answers, as wide as those for one image."""
    sample = ask(views.draw(np.arange(1), 0))
    shape = (views.count, len(views.faces))
    widths = {"logits": sample.logits.shape[1], "embedding": sample.embedding.shape[1]}
    refuse_full_disk(folder, 2 * shape[0] * shape[1] * sum(widths.values()))
    try:
        for name, width in widths.items():
            create_map(folder / f"{name}.npy", np.float16, (*shape, width))
        np.save(folder / "probe.npy", probe)
    except (OSError, DataError):
        for name in widths:  # they would fill a disk that is full already
            (folder / f"{name}.npy").unlink(missing_ok=True)
        raise

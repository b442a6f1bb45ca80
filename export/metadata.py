"""What an ONNX file says of itself, so that it can be read without bundle.json.

    python -m export.metadata BUNDLE     stamps the files of a bundle that is there

`model_author`, `model_license` and `Image.*` are ONNX's own keys (its docs/MetadataProps.md), `edge.*`
the kit's. No runtime's results depend on any. A file cannot hold its own hash, nor a bundle.json's that
holds the file's: `edge.content_sha256` covers what all files of a bundle share, and of each file
what is left without its metadata, as COVERS says. bundle.json's provenance has the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from edge.base import cli
from edge.base.files import sha256, sha256_of
from edge.inference.bundle import load_bundle
from export import card
from export.folder import put_in_place, refuse_other_folders

AUTHOR = "The authors of the classroom node kit"
CONTENT = "edge.content_sha256"
COVERS = (
    "SHA-256 of the JSON (sorted keys, no spaces, UTF-8) of bundle.json's labels, input, crop and "
    "counting's folded and constants, of the known inputs' sha256, and of each file's sha256 without "
    "metadata_props"
)
PIXELS = {"grey": "Gray8", "bgr": "Bgr8"}


def _compact(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def without_metadata(path: Path) -> bytes:
    """Return an ONNX file's bytes but for its metadata_props; they are the file's first bytes."""
    model = onnx.load(str(path))
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def content_sha256(folder: Path, description: dict[str, Any]) -> str:
    """Return the hash that names what a bundle's files compute, as COVERS says; the same before and
    after a stamp. description: bundle.json's content."""
    counting = description.get("counting")
    content = {
        **{key: description[key] for key in ("labels", "input", "crop")},
        "counting": counting and {key: counting[key] for key in ("folded", "constants")},
        "known_inputs": description["known_answers"]["inputs"]["sha256"],
        "files": {
            role: sha256(without_metadata(folder / entry["name"]))
            for role, entry in description["files"].items()
        },
    }
    return hashlib.sha256(_compact(content).encode()).hexdigest()


def stamp(folder: Path, description: dict[str, Any]) -> None:
    """Write each file's metadata anew, and into the description the hashes that follow from it.

    description: bundle.json's content, which the caller writes; its `files` and `provenance` change."""
    content = content_sha256(folder, description)
    inputs = description["input"]
    shared = {
        "model_author": AUTHOR,
        "model_license": description["provenance"]["weights_licence"],
        "Image.BitmapPixelFormat": PIXELS[inputs["colour"]],
        "Image.NominalPixelRange": "NominalRange_0_255",
        "edge.labels": _compact(description["labels"]),
        "edge.input": _compact(inputs),
        "edge.crop": _compact(description["crop"]),
        CONTENT: content,
        "edge.content_covers": COVERS,
    }
    for role, entry in description["files"].items():
        path, notes = folder / entry["name"], onnx.ModelProto()
        onnx.helper.set_model_props(notes, {**shared, "edge.role": role})
        # Protobuf lets one message follow the other: the field is added, no byte before it changes.
        path.write_bytes(without_metadata(path) + notes.SerializeToString(deterministic=True))
        entry["sha256"] = sha256_of(path)
    description["provenance"]["content_sha256"] = content


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write bundle.json, and the card where there are scores."""
    if description["scores"]:
        (folder / card.NAME).write_text(card.write(description), encoding="utf-8")
    text = json.dumps(description, indent=1) + "\n"
    (folder / "bundle.json").write_text(text, encoding="utf-8")


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "python -m export.metadata",
        "Write into a bundle's ONNX files what they are (labels, crop, licence, content hash), and\n"
        "bundle.json's hashes and the card to match. `export-model` does it by itself.",
        "python -m export.metadata edge/models",
        version=False,
    )
    p.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that export-model wrote")
    out = p.parse_args(argv).bundle
    load_bundle(out)  # no stamp hides that a file is not what bundle.json says
    refuse_other_folders(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as draft:
        folder = Path(draft) / "bundle"
        shutil.copytree(out, folder)
        description = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        stamp(folder, description)
        write_description(folder, description)
        load_bundle(folder)
        put_in_place(folder, out)
    print(f"{out}: stamped, content {description['provenance']['content_sha256']}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("python -m export.metadata", run, argv)


if __name__ == "__main__":
    sys.exit(main())

"""A tiny student through the whole of export, and what export refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch

from distill.evaluation.metrics import fit_temperature
from distill.models.checkpoint import SCHEMA
from distill.models.provenance import data_of_network, learned_from
from distill.models.warm_start import read_start
from edge.base.errors import EdgeError
from edge.inference.bundle import SHIPPED, load_bundle
from edge.inference.loader import open_backend
from export import card
from export.agree import compare, torch_equals_onnx
from export.describe import weights_licence
from export.folder import put_in_place
from export.metadata import content_sha256
from export.model import judge_temperature
from export.source import read_source
from export.to_onnx import check_graph, deployed
from support.command import Done
from support.notes import notes
from support.tiny_student import crops, student

RECIPE = {
    "name": "tiny",
    "crop": {"size": 32, "template": [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]},
    "student": {"widths": [4, 6, 8, 8], "depths": [1, 1, 1], "width": 8, "heads": 2},
    "training": {"epochs": 1},
}
LABELS = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]


def test_onnx_equals_torch_at_any_batch_and_holds_the_temperature(fp32: Path) -> None:
    assert torch_equals_onnx(deployed(student(), 1.7), fp32, crops(7)) < 1e-4
    backend = open_backend("ort", fp32, 1)
    plain = student()
    with torch.no_grad():
        expected = plain(torch.from_numpy(crops(3)).float()).numpy() / 1.7
    assert np.abs(backend.run(crops(3).astype(np.float32))["logits"] - expected).max() < 1e-4
    assert backend.input.shape == (None, 1, 32, 32)


def test_another_network_is_not_taken_for_the_exported_one(fp32: Path) -> None:
    with pytest.raises(EdgeError, match="torch and ONNX differ"):
        torch_equals_onnx(deployed(student(), 1.0), fp32, crops(7))


def test_check_graph_refuses_a_fixed_batch_another_opset_and_a_lost_attention(
    fp32: Path, tmp_path: Path
) -> None:
    def changed(edit: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(str(fp32))
        edit(model)
        path = tmp_path / "changed.onnx"
        onnx.save(model, str(path))
        return path

    def fix_batch(model: onnx.ModelProto) -> None:
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        del model.graph.value_info[:]

    def lose_attention(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Softmax":
                node.op_type = "LogSoftmax"
                return

    with pytest.raises(EdgeError, match="the batch is fixed"):
        check_graph(changed(fix_batch), 2)
    with pytest.raises(EdgeError, match="1 Softmax, the fused block has 2"):
        check_graph(changed(lose_attention), 2)
    with pytest.raises(EdgeError, match="opsets"):
        check_graph(changed(lambda m: setattr(m.opset_import[0], "version", 19)), 2)


def test_agreement_of_a_case_worked_out_by_hand() -> None:
    truth, labels = np.array([0] * 100 + [-1] * 10), ("a", "b")
    exact = np.zeros((110, 2), np.float32)
    exact[:, 0] = 1
    rounded = exact.copy()
    rounded[:4] = [0, 1]  # four that only float gets right
    exact[4] = rounded[5] = [0, 1]
    exact[5] = [0, 1]  # 4: only INT8 right; 5: both wrong
    result = compare(exact, rounded, truth, labels)
    assert result.accuracy_float == pytest.approx(0.98)
    assert result.accuracy_int8 == pytest.approx(0.95)
    assert result.accuracy_change == pytest.approx(-0.03)
    half = 1.96 * np.sqrt(5 - 9 / 100) / 100
    assert result.interval == pytest.approx((-0.03 - half, -0.03 + half))
    assert result.changed == pytest.approx(5 / 110)
    assert result.recall_change == {"a": pytest.approx(-0.03), "b": None}
    # Float says b of two: of one of them INT8 says a.
    assert result.changed_by_class == {"a": pytest.approx(4 / 108), "b": pytest.approx(1 / 2)}
    assert not result.within
    assert compare(exact, exact, truth, labels).within
    assert compare(exact, exact, truth, labels).kl == pytest.approx(0, abs=1e-9)


def write_checkpoint(path: Path, **changes: object) -> Path:
    content = {
        "schema": SCHEMA,
        "labels": LABELS,
        "recipe": RECIPE,
        "epoch": 0,
        "valid_accuracy": 0.5,
        "frozen": "",
        "teacher": "",
        "network": student().state_dict(),
        **changes,
    }
    torch.save(content, path)
    return path


def test_only_a_checkpoint_that_guesses_is_refused_for_its_temperature() -> None:
    truth = np.eye(4, dtype=np.float32)[np.arange(200) % 4]
    chance = np.eye(4, dtype=np.float32)[np.arange(200) // 50]
    said: list[str] = []
    hesitant = fit_temperature(0.1 * truth, truth)
    judge_temperature(hesitant, 200, False, said.append)
    assert "lower end of its range: nearly all of 200 images" in said.pop()
    sure = fit_temperature(20.0 * chance, truth)
    with pytest.raises(EdgeError, match=r"upper end .* learned nothing"):
        judge_temperature(sure, 200, False, said.append)
    judge_temperature(sure, 200, True, said.append)
    judge_temperature(1.0, 200, False, said.append)
    assert not said


@pytest.mark.slow
@pytest.mark.process
def test_checkpoint_to_bundle_to_scores(
    detector_file: Path, tiny_ferplus: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    before = {"recipe": RECIPE | {"name": "first"}, "teacher": "somebody", "data": "RAF-DB"}
    checkpoint = write_checkpoint(tmp_path / "c.pt", start=before)
    out = tmp_path / "bundle"
    options = ["--data", tiny_ferplus, "--layout", "ferplus", "--out", out, "--force", "--test"]
    done = command("export.model", checkpoint, *options)
    assert done.code == 0, done.err
    bundle = load_bundle(out)
    assert bundle.crop.size == 32
    assert bundle.labels == tuple(LABELS)
    assert {entry["split"] for entry in bundle.description.scores} == {"valid", "test"}
    for precision in ("int8", "fp32"):
        backend = open_backend("ort", bundle.model(precision), 1)
        bundle.self_test(backend, precision)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "c.pt"], "no draft left"

    content = content_sha256(out, json.loads((out / "bundle.json").read_text()))
    for entry in bundle.description.files.values():
        assert notes(out / entry.name)["edge.content_sha256"] == content
        assert "RAF-DB" in notes(out / entry.name)["model_license"]
    text = (out / "MODEL_CARD.md").read_text()
    assert "Learned by recipe `first` (RAF-DB, " in text
    assert f"taught by somebody), then by recipe `{RECIPE['name']}` (FER+, " in text
    assert "Its weights are for non-commercial research alone" in text, "as the first run's data"
    test = next(e for e in bundle.description.scores if e["split"] == "test")
    assert f"{100 * test['accuracy']:.2f} %" in text
    assert "must not be used" in text
    assert "| disgust |" not in text, "a class that the data do not have has no recall"
    assert text.count("| occlusion |") == 3

    # The same checkpoint again replaces the bundle; a folder with anything else in it is refused.
    (out / "thesis.txt").write_text("years of work")
    done = command("export.model", checkpoint, *options)
    assert done.code == 2
    assert "'thesis.txt', which is not part of a bundle" in done.last
    (out / "thesis.txt").unlink()
    # The graph's logits are the checkpoint's over the temperature.
    temperature = bundle.description.provenance["calibration_temperature"]
    with torch.no_grad():
        plain = student()(torch.from_numpy(bundle.known_inputs()).float()).numpy()
    stored = np.array(bundle.description.known_answers.logits["fp32"]) - bundle.folded
    assert np.abs(stored * temperature - plain).max() < 1e-3

    # The constants of `dominant` lie in the graph of every file; without them it is the same network.
    entry = bundle.description.counting
    assert entry is not None
    assert entry.folded == "dominant"
    assert entry.fitted["method"] == "fitted"
    assert set(entry.fitted["effect"]) == {"dominant", "expected"}
    assert "## What is counted" in text

    # distill-eval says of the bundle what export wrote into it, and predicts without labels.
    predictions, scores = tmp_path / "p.csv", tmp_path / "s.json"
    data = ["--data", tiny_ferplus, "--layout", "ferplus", "--split", "test"]
    done = command(
        "distill.evaluation.evaluate",
        "--bundle",
        out,
        *data,
        "--predictions",
        predictions,
        "--json",
        scores,
    )
    assert done.code == 0, done.err
    written = [
        entry
        for entry in bundle.description.scores
        if entry["split"] == "test" and entry["precision"] == "int8"
    ]
    *scored, kinds, more = json.loads(scores.read_text())
    assert scored == written
    assert set(kinds) == {"domains"}
    assert set(more) == {"calibrated"}
    header, *rows = predictions.read_text().splitlines()
    assert header == "name," + ",".join(f"p_{label}" for label in LABELS)
    assert len(rows) == 60
    assert all(abs(sum(map(float, row.split(",")[1:])) - 1) < 1e-6 for row in rows)

    # Predictions do not depend on labels: with the votes blanked the CSV is the same.
    labels = tiny_ferplus / "FER2013Test" / "label.csv"
    kept, blank = labels.read_text(), tmp_path / "blank.csv"
    try:
        names = [row.split(",")[0] for row in kept.splitlines()]
        labels.write_text("".join(f'{n},"(0, 0, 48, 48)",{",".join("0" * 10)}\n' for n in names))
        done = command(
            "distill.evaluation.evaluate", "--bundle", out, *data, "--predictions", blank
        )
    finally:
        labels.write_text(kept)
    assert done.code == 1
    assert "no image of 'test' has a label" in done.last
    assert blank.read_bytes() == predictions.read_bytes()


@pytest.mark.slow
@pytest.mark.process
def test_a_bundle_is_exported_again_with_other_constants(
    detector_file: Path, tiny_ferplus: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    options = ["--data", tiny_ferplus, "--layout", "ferplus", "--force"]
    # Of untrained LayerNorms, which are equal, the exporter would keep one for all.
    learned = student().state_dict()
    for name, value in learned.items():
        if "norm" in name and value.is_floating_point():
            value += 0.01 * torch.rand(
                value.shape, generator=torch.Generator().manual_seed(len(name))
            )
    checkpoint = write_checkpoint(tmp_path / "c.pt", start=None, network=learned)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    prior = tmp_path / "prior.json"
    row = {label: 0.1 * i for i, label in enumerate(LABELS)}
    prior.write_text(json.dumps({"dominant": row}))
    for args in (
        [checkpoint, "--out", first, "--prior", "none"],
        [first, "--out", second, "--prior", prior],
        [second, "--out", third, "--prior", "none"],
    ):
        done = command("export.model", *args, *options)
        assert done.code == 0, done.err
    one, two, three = (load_bundle(path) for path in (first, second, third))
    logits = [np.array(b.description.known_answers.logits["fp32"]) for b in (one, two, three)]
    # The temperature is not applied again, and constants are taken out before others go in.
    assert np.abs(logits[1] - logits[0] - np.array(list(row.values()))).max() < 1e-3
    assert np.abs(logits[2] - logits[0]).max() < 1e-3
    assert one.description.counting is None
    assert three.description.counting is None
    assert one.offsets("expected").tolist() == [0.0] * 8
    assert two.offsets("expected") == pytest.approx(-np.array(list(row.values())), abs=1e-6)
    assert (two.labels, two.crop) == (one.labels, one.crop)
    old, new = one.description.provenance, two.description.provenance
    for key in ("recipe", "teacher", "start", "checkpoint_sha256", "calibration_temperature"):
        assert new[key] == old[key]
    assert new["exported_again_from"]["bundle_sha256"] == one.sha256
    card_text = (first / "MODEL_CARD.md").read_text()
    assert "No constants are added" in card_text
    assert "exported again" in (second / "MODEL_CARD.md").read_text()

    prior.write_text(json.dumps({"dominant": {"calm": 0, "glad": 1}}))
    done = command("export.model", first, "--out", tmp_path / "no", "--prior", prior, *options)
    assert done.code == 1
    assert "has the classes calm, glad, the model neutral, happiness" in done.last
    assert not (tmp_path / "no").exists()


def test_a_swap_that_fails_brings_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new = tmp_path / "bundle", tmp_path / "new"
    for folder in (out, new):
        folder.mkdir()
        (folder / "bundle.json").write_text(folder.name)
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(source) == new:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("export.folder.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        put_in_place(new, out)
    assert (out / "bundle.json").read_text() == "bundle"
    monkeypatch.undo()
    put_in_place(new, out)
    assert (out / "bundle.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_checkpoint_is_one_line(
    detector_file: Path, tiny_ferplus: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    options = ["--data", tiny_ferplus, "--layout", "ferplus", "--out", tmp_path / "b"]
    garbage = tmp_path / "g.pt"
    garbage.write_bytes(b"not a checkpoint")
    assert "holds no weights alone" in command("export.model", garbage, *options).last
    old = write_checkpoint(tmp_path / "o.pt", schema="distill.checkpoint/0")
    assert "has schema 'distill.checkpoint/0'" in command("export.model", old, *options).last
    misfit = write_checkpoint(tmp_path / "m.pt", network={})
    assert "do not fit its recipe" in command("export.model", misfit, *options).last
    good = write_checkpoint(tmp_path / "c.pt")
    done = command("export.model", good, "--data", tmp_path, *options[2:])
    assert done.code == 1
    assert "holds no images" in done.last
    done = command("export.model", good, "--layout", "ferplus", "--out", tmp_path / "b")
    assert done.code == 2
    assert "--data" in done.last
    assert not (tmp_path / "b").exists()


def test_data_of_other_classes_is_refused_before_the_first_crop(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    for split in ("train", "valid"):
        for label in ("calm", "glad"):
            (tmp_path / "d" / split / label).mkdir(parents=True)
            picture = np.full((48, 48), len(split + label), np.uint8)
            cv2.imwrite(str(tmp_path / "d" / split / label / "0.png"), picture)
    done = command(
        "export.model", write_checkpoint(tmp_path / "c.pt"), "--data", tmp_path / "d",
        *("--layout", "folders", "--out", tmp_path / "b"),
    )  # fmt: skip
    assert done.code == 1
    assert "the data has the classes calm, glad, the model " in done.last
    assert [path.name for path in (tmp_path / "d.crops").iterdir()] == ["checked.json"]


def test_a_disk_without_room_for_a_bundle_is_told_of_before_it_is_made(
    detector_file: Path,
    tiny_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nearly_full(place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=120_000 if place == tmp_path / "small" else 10**9)

    monkeypatch.setattr("distill.data.disk.shutil.disk_usage", nearly_full)
    done = command(
        "export.model", write_checkpoint(tmp_path / "c.pt"), "--out", tmp_path / "small" / "b",
        *("--data", tiny_ferplus, "--layout", "ferplus", "--force"),
    )  # fmt: skip
    assert done.code == 1
    assert f"{tmp_path / 'small'} needs " in done.last
    assert done.last.endswith("0.1 MB are free; make room, or give --out on another disk")
    assert list((tmp_path / "small").iterdir()) == []


def test_a_card_says_what_scores_are_against_and_reads_entries_that_do_not() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    new = dict(description["scores"][0], ece=0.125, ece_votes=0.0625, nll=0.75, nll_label=0.5)
    new["agreement"] = [
        {"low": 0.0, "high": 0.9, "n": 0, "accuracy": None},
        {"low": 0.9, "high": 1.0, "n": 7, "accuracy": 0.9842},
    ]
    text = card.write({**description, "scores": [new]})
    assert "| 0.125 / 0.062 | 0.500 / 0.750 |" in text
    assert "| 90 to 100 % | 7 | 98.42 % |" in text
    assert "| 0 to 90 %" not in text, "no accuracy of no image"
    for name in ("ece_votes", "nll_label", "agreement"):
        del new[name]
    text = card.write({**description, "scores": [new]})
    assert "| 0.125 / - | - / 0.750 |" in text
    assert "annotators chose" not in text


def test_a_card_names_a_file_that_strays_from_float_and_was_written_by_force() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    assert "Out of tolerance" not in card.write(description)
    provenance = description["provenance"]
    provenance["agreement"]["int8-trt"] |= {"accuracy_change": -0.1234, "changed": 0.25}
    provenance["out_of_tolerance"] = ["int8-trt"]
    text = card.write(description)
    fails = text[text.index("## Where it fails") :]
    assert "`int8-trt` -12.34 points, 25.00 % of decisions changed" in fails


def test_a_card_names_the_worst_change_and_the_mean_of_rows_old_and_new() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    old = [
        {"change": "none", "strength": None, "unit": "", "accuracy": 0.8},
        {"change": "blur", "strength": 2, "unit": "px deviation", "accuracy": 0.7},
    ]
    new = [
        {**old[0], "n": 10},
        {**old[1], "plain": 0.8, "n": 10},
        {**old[1], "change": "mask", "accuracy": 0.5, "plain": 0.75, "n": 4},
    ]
    for rows, words in (
        (
            old,
            "blur at 2 px deviation, which costs 10.0 points; the mean over all 1 rows is 70.00 %",
        ),
        (
            new,
            "mask at 2 px deviation, which costs 25.0 points; the mean over all 2 rows is 60.00 %",
        ),
    ):
        changed = {**description, "provenance": {**description["provenance"], "robustness": rows}}
        text = card.write(changed)
        assert words in text
        assert ("on the 4 of 10 images" in text) is (rows is new)
        assert "| blur | 2 px deviation | 70.00 % | 10.00 |" in text


def test_a_card_says_which_changes_have_no_row() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    assert "Not measured" not in card.write(description)
    rows = description["provenance"]["robustness"]
    gone = ("yaw", "mask", "sunglasses")  # as where no face was found
    description["provenance"]["robustness"] = [row for row in rows if row["change"] not in gone]
    assert "Not measured: yaw, mask, sunglasses." in card.write(description)


def test_a_card_names_the_classes_of_which_there_was_no_image() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    assert "no image of" not in card.write(description)
    for entry in description["scores"]:
        for label in ("fear", "contempt"):
            del entry["recall"][label]
    text = card.write(description)
    assert "It has no image of fear, contempt: mean class accuracy is over the other 6" in text


def test_a_card_does_not_call_constants_of_a_file_fitted() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    fitted = card.write(description)
    assert "(`fitted`, on " in fitted
    assert "the data that the constants were fitted on" in fitted
    description["counting"]["fitted"]["method"] = "file"
    text = card.write(description)
    assert "fitted on, by the INT8 file" not in text
    assert "(given in a file; tried on " in text
    assert "these figures are of those images, by the INT8 file" in text


def test_a_bundle_exported_again_keeps_whose_temperature_its_weights_hold(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    description = json.loads((bundle / "bundle.json").read_text())
    known = description["provenance"]
    assert "fitted on the validation split.\n" in card.write(description)
    known["calibration_data"] = "RAF-DB"
    for later in ("exported_again_from", "temperature_data"):  # as before it was kept
        known.pop(later, None)
    for known_then in ({}, {"calibration_data": "FER2013"}):  # exported once, and once more
        if known_then:
            known |= {"temperature_data": "RAF-DB", **known_then}
        (bundle / "bundle.json").write_text(json.dumps(description))
        again = read_source(bundle).provenance
        assert again["temperature_data"] == "RAF-DB"
        assert read_start(bundle).metadata.get("temperature_data", "RAF-DB") == "RAF-DB"
        assert "RAF-DB" in data_of_network(bundle)
        names = learned_from({"data": "FER2013", **again})
        assert weights_licence(names).startswith("for non-commercial research alone")
    text = card.write({**description, "provenance": {**known, **again}})
    assert "fitted on the validation split of RAF-DB.\n" in text


@pytest.mark.parametrize(
    ("licence", "known"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("for non-commercial research alone, as RAF-DB's terms say", "other"),
    ],
)
def test_a_model_hub_reads_the_cards_front_matter(licence: str, known: str) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="comes with transformers")
    description = json.loads((SHIPPED / "bundle.json").read_text())
    description["provenance"]["weights_licence"] = licence
    data = hub.ModelCard(card.write(description)).data
    assert (data.license, data.library_name) == (known, "onnx")
    assert (data.get("license_name") is not None) is (known == "other")
    assert data.pipeline_tag == "image-classification"
    told = {
        (r.dataset_split, r.dataset_name, r.metric_name): r.metric_value for r in data.eval_results
    }
    for entry in description["scores"]:
        place = (entry["split"], f"FER+, {entry['protocol']}")
        assert told[(*place, f"accuracy, {entry['precision']}")] == entry["accuracy"]


def test_the_shipped_card_is_written_from_the_shipped_bundle() -> None:
    description = json.loads((SHIPPED / "bundle.json").read_text())
    assert (SHIPPED / "MODEL_CARD.md").read_text() == card.write(description)
    for entry in description["scores"]:
        if entry["split"] == "valid" and entry["protocol"] == "majority-8":
            assert entry["n"] == 3314, "without twins of the test split"

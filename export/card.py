"""The bundle's model card, written from bundle.json so that the two cannot differ.

The headings are those of Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. The front
matter is what a model hub reads (https://huggingface.co/docs/hub/model-cards), there as README.md.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from distill.data.labels import DATA_NAMES
from distill.evaluation.robustness import CHANGES, describe, lost, mean_accuracy, worst
from distill.models.provenance import learned_from, temperature_data

NAME = "MODEL_CARD.md"
WEAK = 0.5  # recall below which a class is named as one that the model misses

# A hub knows licences by its own names; for another it wants a name and where it stands.
HUB_LICENCES = {"Apache-2.0": {"license": "apache-2.0"}}
OTHER_LICENCE = {
    "license": "other",
    "license_name": "as-the-training-pictures-allow",
    "license_link": f"{NAME}#data",
}
METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "macro_f1": ("f1", "macro-F1"),
    "mean_class_accuracy": ("recall", "mean class accuracy"),
}

USE = """\
## Intended use

Counting how many people in a room look happy, neutral, sad ... by a node that publishes counts over
windows and never a picture or a person's record.

It must not be used

- on pupils, students or employees in the European Union: the AI Act, Article 5(1)(f), prohibits
  inferring emotions in education and at work, except for medical or safety reasons;
- to judge, grade, rank, discipline or select a person, or to infer what somebody feels: it reads how a
  face looks to strangers, and strangers disagree;
- on single people, to recognise who somebody is, or without the knowledge of those in view.
"""


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _scores(scores: list[dict[str, Any]]) -> str:
    """ECE and NLL stand against the label / the votes; `-` where an older export did not keep one."""
    head = (
        "| split | file | protocol | n | accuracy [95 %] | mean class | macro-F1 "
        "| ECE label / votes | NLL label / votes |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = []
    for entry in scores:
        low, high = entry["accuracy_interval"]
        rows.append(
            f"| {entry['split']} | {entry['precision']} | {entry['protocol']} | {entry['n']} "
            f"| {_percent(entry['accuracy'])} [{100 * low:.2f}, {100 * high:.2f}] "
            f"| {_percent(entry['mean_class_accuracy'])} | {entry['macro_f1']:.3f} "
            f"| {_or_dash(entry['ece'])} / {_or_dash(entry.get('ece_votes'))} "
            f"| {_or_dash(entry.get('nll_label'))} / {_or_dash(entry['nll'])} |\n"
        )
    return head + "".join(rows)


def _agreement(entry: dict[str, Any]) -> str:
    bins = [b for b in entry.get("agreement", []) if b["n"]]
    if not bins:
        return ""
    rows = [
        f"| {100 * b['low']:.0f} to {100 * b['high']:.0f} % | {b['n']} | {_percent(b['accuracy'])} |\n"
        for b in bins
    ]
    return (
        "\nBy how many of the annotators chose the label (bins hold their lower bound):\n\n"
        "| votes for the label | n | accuracy |\n|---|---|---|\n" + "".join(rows)
    )


def _classes(entry: dict[str, Any], labels: list[str]) -> str:
    found = entry["recall"]
    rows = [f"| {label} | {value:.3f} |\n" for label, value in found.items()]
    absent = ", ".join(label for label in labels if label not in found)
    over = f"\nIt has no image of {absent}: mean class accuracy is over the other {len(found)}.\n"
    return "| class | recall |\n|---|---|\n" + "".join([*rows, over if absent else ""])


def _marks(names: set[str]) -> str:
    """What is known of how groups fare. names: the data that the weights learned from and were scored
    on."""
    what = "- How it does by age, skin colour, sex, glasses, veil or culture is not measured"
    if DATA_NAMES["rafdb"] in names:
        what += (
            ", though RAF-DB's holders publish marks of age, race and gender, by which it can be"
        )
    elif names <= {DATA_NAMES["ferplus"], DATA_NAMES["fer2013"]}:
        what += ": the data carry no such marks"
    return f"{what}. Treat any comparison of groups by its counts as unfounded.\n"


def _strays(provenance: dict[str, Any]) -> list[str]:
    """Name the files that were written by --force though they are out of tolerance."""
    found = provenance.get("agreement", {})
    cells = [
        f"`{role}` {100 * found[role]['accuracy_change']:+.2f} points, "
        f"{_percent(found[role]['changed'])} of decisions changed"
        for role in provenance.get("out_of_tolerance", [])
    ]
    if not cells:
        return []
    return [
        f"- Out of tolerance against float on the validation split, and written all the same "
        f"(`--force`): {'; '.join(cells)}. A node that runs one of these counts by it.\n"
    ]


def _failures(entry: dict[str, Any], provenance: dict[str, Any], names: set[str]) -> str:
    robustness = provenance.get("robustness", [])
    weak = [f"{label} ({value:.2f})" for label, value in entry["recall"].items() if value < WEAK]
    lines = _strays(provenance)
    if weak:
        lines.append(f"- It misses most faces of these classes (recall): {', '.join(weak)}.\n")
    unseen = entry["whole_picture_fallback"]
    lines.append(
        f"- In {_percent(unseen)} of the pictures the detector found no face and the whole picture was "
        f"read; counted as errors, accuracy is {_percent(entry['accuracy_undetected_as_errors'])}.\n"
    )
    lines.append(_marks(names))
    if not robustness:
        return "".join(
            [*lines, "- Blur, noise, darkness, turned, covered and small faces: not measured.\n"]
        )
    return "".join([*lines, _robustness(robustness)])


def _robustness(rows: list[dict[str, Any]]) -> str:
    """Name the change that costs most, and the mean, before the table."""
    bad = worst(rows)
    everyone, found = rows[0].get("n"), min(row.get("n", 0) for row in rows)
    partly = (
        f" Heads are turned and covered on the {found} of {everyone} images in which a face was found, "
        f"since that is done by its landmarks."
        if everyone and found < everyone
        else ""
    )
    measured = {row["change"] for row in rows}
    if without := [change.name for change in CHANGES if change.name not in measured]:
        partly += f" Not measured: {', '.join(without)}."
    head = (
        f"\nOne change at a time to the aligned crops (plain: {_percent(rows[0]['accuracy'])}). The "
        f"worst is {describe(bad)}, which costs {100 * lost(bad, rows):.1f} points; the mean over all "
        f"{len(rows) - 1} rows is {_percent(mean_accuracy(rows))}.{partly}\n\n"
        f"| change | strength | accuracy | lost, points |\n|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {row['change']} | {row['strength']:g} {row['unit']} | {_percent(row['accuracy'])} "
        f"| {100 * lost(row, rows):.2f} |\n"
        for row in rows[1:]
    )


def _counting(counting: dict[str, Any] | None) -> str:
    """What each way of counting adds to the logits, and what that does."""
    if counting is None:
        return (
            "No constants are added to the logits: argmax counts rare classes far too seldom where the "
            "training data had few.\n"
        )
    fitted = counting["fitted"]
    given = fitted["method"] == "file"
    how = "given in a file; tried" if given else f"`{fitted['method']}`,"
    whose = "those images" if given else "the data that the constants were fitted on"
    head = (
        f"Constants on the logits take the training set's mix out of what is counted "
        f"({how} on {fitted['images']} labelled images of {fitted['data']}). Those of "
        f"`{counting['folded']}` lie in the files' last bias, so that whoever runs them has them; the "
        f"node adds the difference for the other. Count error is the share of people in the wrong cell "
        f"in simulated rooms of 25, against majority labels for `dominant`, against votes for "
        f"`expected`; these figures are of {whose}, by the INT8 "
        f"file.\n\n"
        f"| counting | constants | accuracy | mean class | count error |\n|---|---|---|---|---|\n"
    )
    rows = [
        f"| {name} | {which} | {_percent(row['accuracy'])} | {_percent(row['mean_class_accuracy'])} "
        f"| {row['count_error_25']:.3f} |\n"
        for name, effect in fitted["effect"].items()
        for which, row in (("without", effect["without"]), ("with", effect["with"]))
    ]
    if (effect := fitted["effect"]["expected"]).get("not_kept"):
        tried = effect["train_count_error_25"]
        rows.append(
            f"\n`expected` has none: those that fit {fitted['data']} raise the count error on training "
            f"images from {tried['without']:.3f} to {tried['with']:.3f}.\n"
        )
    return head + "".join(rows)


def _front_matter(description: dict[str, Any], data: str) -> str:
    """Return the card's YAML. data: the set that scores are of."""
    provenance, name = description["provenance"], description["provenance"]["recipe"]["name"]
    results = [
        {
            "task": {"type": "image-classification", "name": "facial expression recognition"},
            "dataset": {
                "type": next((key for key, known in DATA_NAMES.items() if known == data), "other"),
                "name": f"{data}, {entry['protocol']}",
                "split": entry["split"],
            },
            "metrics": [
                {"type": kind, "name": f"{text}, {entry['precision']}", "value": entry[key]}
                for key, (kind, text) in METRICS.items()
            ],
        }
        for entry in description["scores"]
    ]
    content = {
        **HUB_LICENCES.get(provenance["weights_licence"], OTHER_LICENCE),
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["facial-expression-recognition", "onnx", "int8", "tensorrt", "edge"],
        "model-index": [{"name": name, "results": results}],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)}---\n"


def _runs(run: dict[str, Any]) -> str:
    """The runs that weights come from, the first one first, each with what it learned from."""
    if averaged := run.get("averaged"):
        parts = Counter[str]()
        for one in averaged:
            parts[_runs(one)] += one.get("times", 1)
        if parts.total() == len(averaged):
            each = "; ".join(f"{count} {text}" for text, count in parts.items())
            return f"the mean of {len(averaged)} networks' weights ({each})"
        each = "; ".join(f"{count / parts.total():.2g} {text}" for text, count in parts.items())
        return f"the weighted mean of {len(averaged)} networks' weights ({each})"
    recipe, teacher = run["recipe"], run["teacher"] or "none"
    by = "no teacher" if teacher.startswith("none") else f"taught by {teacher}"
    data = run.get("data") or "data not recorded"
    own = f"by recipe `{recipe['name']}` ({data}, {recipe['training']['epochs']} epochs, {by})"
    return f"{_runs(run['start'])}, then {own}" if run.get("start") else f"learned {own}"


def _history(provenance: dict[str, Any]) -> str:
    again = ", and exported again from its bundle" if "exported_again_from" in provenance else ""
    told = _runs(provenance)
    return f"{told[0].upper()}{told[1:]}{again}"


def _apart(provenance: dict[str, Any]) -> str:
    """Say where INT8's ranges come from, where that is not the data that scores are of."""
    if not provenance.get("calibration_folder"):
        return ""
    return (
        f" (INT8's ranges on {provenance['calibration_crops']} pictures of a folder without labels)"
    )


def _elsewhere(provenance: dict[str, Any], scored: str) -> str:
    """Say whose temperature a bundle's weights hold that was exported again on other data."""
    own = temperature_data(provenance)
    return "" if own in (None, scored) else f" of {own}"


def write(description: dict[str, Any]) -> str:
    """Return the card in Markdown, YAML before it. description: bundle.json's content with scores."""
    provenance, scores = description["provenance"], description["scores"]
    split = "test" if any(entry["split"] == "test" for entry in scores) else "valid"
    entry = next(e for e in scores if e["split"] == split and e["precision"] == "int8")
    inputs, measured = description["input"], provenance["measured_with"]
    scored = provenance.get("calibration_data") or provenance["data"]
    names = {scored, *learned_from(provenance)}
    unchosen = (
        ""
        if provenance.get("validated", True)
        else " It, or a network that it comes from, learned from all training pictures and was chosen "
        "by nothing: its last epoch. What the validation split says below is of pictures that it knows."
    )
    return (
        f"{_front_matter(description, scored)}\n"
        f"# Model card: {provenance['recipe']['name']}\n\n"
        f"A classifier of aligned faces ({inputs['size']}x{inputs['size']}, {inputs['colour']}) into "
        f"{', '.join(description['labels'])}: {provenance['parameters'] / 1e6:.2f} M parameters, "
        f"{provenance['multiply_adds'] / 1e6:.0f} M multiply-adds, float and INT8 ONNX. Its weights "
        f"are {provenance['weights_licence']}.\n\n"
        f"{USE}\n"
        f"## Data\n\n"
        f"Trained on {provenance['data']} ({provenance['data_licence']}), calibrated and scored on "
        f"{scored}{_apart(provenance)}. "
        f"Pictures with an exact or near copy in a later split were left out: "
        f"{provenance['twins_left_out'].get('train', 0)} of training, "
        f"{provenance['twins_left_out'].get('valid', 0)} of validation. "
        f"{_history(provenance)}.{unchosen}\n\n"
        f"## Scores\n\n"
        f"Onnxruntime {measured['onnxruntime']} on {measured['processor']}; intervals by bootstrap of "
        f"pictures, 2,000 rounds. Logits are divided by {provenance['calibration_temperature']}, "
        f"fitted on the validation split{_elsewhere(provenance, scored)}.\n\n"
        f"{_scores(scores)}\n"
        f"By class (INT8, {split}, {entry['protocol']}):\n\n"
        f"{_classes(entry, description['labels'])}{_agreement(entry)}\n"
        f"## What is counted\n\n{_counting(description.get('counting'))}\n"
        f"## Where it fails\n\n{_failures(entry, provenance, names)}"
    )

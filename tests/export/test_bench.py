"""export-bench: ratios of the same run, shares of the peak, and what was not measured said so."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from edge.inference.bundle import SHIPPED
from export.bench import measure, ratios
from support.command import Done


def test_ratios_are_of_the_same_batch() -> None:
    rows = [
        {"network": name, "batch": batch, "p50_ms": ms}
        for name, batch, ms in (
            ("student int8, ONNX Runtime", 16, 10.0),
            ("student fp32, ONNX Runtime", 16, 25.0),
            ("student int8, ONNX Runtime", 1, 1.0),
            ("student fp32, ONNX Runtime", 1, 9.0),
        )
    ]
    assert ratios(rows, 16) == {"student fp32, ONNX Runtime": 2.5}
    assert ratios(rows, 1) == {"student fp32, ONNX Runtime": 9.0}


@pytest.mark.slow
def test_the_bundle_alone_is_timed_with_its_conditions(command: Callable[..., Done]) -> None:
    done = command("export.bench", SHIPPED, "--rounds", 1, "--without-baselines", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    batches = {row["batch"] for row in result["rows"]}
    assert batches == {1, 8, 16, 32}
    assert set(result["int8_faster_by"]) == {"student fp32, ONNX Runtime"}
    assert set(result["share_of_peak"]) == {"int8", "fp32"}
    # Far above 1 would be an error of units; a busy machine can spoil the peak, so no tighter.
    assert all(0 < share < 3 for share in result["share_of_peak"].values())
    assert "no CUDA device" in result["not_measured"]["student int8, TensorRT"]
    assert {"processor", "threads", "rounds", "bundle"} <= set(result["conditions"])


def test_the_options_older_name_is_taken(command: Callable[..., Done]) -> None:
    for name in ("--without-baselines", "--without-rivals"):
        done = command("export.bench", SHIPPED, "--rounds", 0, name)
        assert (done.code, "--rounds must be at least 1" in done.last) == (2, True)


@pytest.mark.slow
def test_the_other_networks_are_what_their_papers_say() -> None:
    from export.baselines import MobileFaceNet, _efficientnet

    # Chen et al. give 0.99 M with an embedding of 128; Tan and Le 5.3 M with 1,000 classes.
    mobile = sum(p.numel() for p in MobileFaceNet(8).parameters())
    assert mobile == pytest.approx(0.99e6, rel=0.03)
    efficient = sum(p.numel() for p in _efficientnet(1000).parameters())
    assert efficient == pytest.approx(5.29e6, rel=0.01)


@pytest.mark.slow
def test_the_other_networks_compute_on_normal_numbers() -> None:
    """As transformers makes it, EfficientNet's activations sink to denormal numbers and then to 0."""
    import torch

    from export.baselines import MobileFaceNet, _efficientnet, denormal_share, make_healthy

    torch.manual_seed(0)
    for network, side in ((_efficientnet(8), 224), (MobileFaceNet(8), 112)):
        faces = torch.randint(0, 256, (2, 3, side, side)).float()
        before = denormal_share(network.eval(), faces)
        assert denormal_share(make_healthy(network, faces), faces) == 0.0
        logits = network(faces)
        size = (logits[0] if isinstance(logits, tuple) else logits).abs().mean()
        assert 1e-2 < float(size) < 1e2
        if side == 224:
            assert before > 0, "what was timed before"


def test_numbers_that_are_not_normal_are_seen() -> None:
    import torch
    from torch import nn

    from export.baselines import denormal_share

    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Identity())
    faces = torch.ones(1, 1, 2, 2)
    for weight, share in ((1.0, 0.0), (1e-40, 1.0), (0.0, 1.0), (float("inf"), 1.0)):
        nn.init.constant_(network[0].weight, weight)  # type: ignore[arg-type]
        assert denormal_share(network, faces) == share


def test_progress_is_said_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.inference.bundle import load_bundle
    from edge.inference.loader import open_backend

    monkeypatch.setattr("distill.progress.LINE_SECONDS", 0.0)
    backend = open_backend("ort", load_bundle().model("int8"), 1)
    measure({"student int8": (backend, (1, 64, 64))}, [1, 2], 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "timing: 16 %, 2 of 12 faces, batch 1, round 2 of 4"
    assert lines[-1] == "timing: 100 %, 12 of 12 faces, batch 2, round 4 of 4"

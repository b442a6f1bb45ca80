"""The images: what they are built from is there, their commands' options exist, and they build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.run import build_parser as run_parser
from support.paths import ROOT

FOLDER = ROOT / "containers"
LINES = (FOLDER / "Containerfile").read_text().splitlines()
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
TARGETS = ("server", "demo-node")
ENGINE = next((name for name in ("docker", "podman", "buildah") if shutil.which(name)), None)


def test_what_is_copied_exists_and_is_let_into_the_context() -> None:
    let_in = [
        line[1:]
        for line in (FOLDER / "Containerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        word
        for line in LINES
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert set(copied) == set(let_in)
    for name in copied:
        assert (ROOT / name).exists(), name


def test_the_services_are_built_of_targets_and_mount_what_is_there() -> None:
    stages = {line.split(" AS ")[1] for line in LINES if line.startswith("FROM")}
    built = {
        service["build"]["target"] for service in COMPOSE["services"].values() if "build" in service
    }
    assert built == set(TARGETS)
    assert built <= stages
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        for volume in service["volumes"]:
            place = volume.split(":")[0]
            assert (
                (FOLDER / place).exists() if place.startswith(".") else place in COMPOSE["volumes"]
            )
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])


def test_the_page_is_published_on_loopback_alone_and_has_a_password() -> None:
    server = COMPOSE["services"]["server"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert any(word.startswith("--web-password-file=/run/secrets/") for word in server["command"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/containers/page-password" in ignored


def test_the_services_commands_are_understood() -> None:
    pytest.importorskip("rich", reason="needs the 'watch' extra")
    from edge.watch.run import build_parser as watch_parser

    watch_parser().parse_args(COMPOSE["services"]["server"]["command"])
    run_parser().parse_args(COMPOSE["services"]["node"]["command"])


@pytest.mark.process
def test_the_file_is_clean_by_hadolint() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs hadolint (make hadolint)")
    done = subprocess.run([program, FOLDER / "Containerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.package
@pytest.mark.process
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_built_and_its_command_starts(target: str) -> None:
    """BASE_IMAGE: in place of the one that the file names, where no registry can be reached."""
    if ENGINE is None:
        pytest.skip("needs docker, podman or buildah")
    words = [ENGINE, "build", "--file", str(FOLDER / "Containerfile"), "--target", target]
    if base := os.environ.get("BASE_IMAGE"):
        words += ["--build-arg", f"PYTHON={base}"]
    if ENGINE == "buildah":
        words += ["--ignorefile", str(FOLDER / "Containerfile.dockerignore")]
    done = subprocess.run(
        [*words, "--tag", f"classroom-{target}", str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    program = {"server": "edge-watch", "demo-node": "edge-run"}[target]
    if ENGINE == "buildah":
        made = subprocess.run(
            [ENGINE, "from", f"classroom-{target}"], capture_output=True, text=True, check=True
        )
        start = [ENGINE, "run", made.stdout.strip(), "--", program, "--version"]
    else:
        start = [ENGINE, "run", "--rm", f"classroom-{target}", "--version"]
    said = subprocess.run(start, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{program} ")

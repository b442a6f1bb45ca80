"""What `edge-watch probe-broker` says of brokers and clusters is what docs/brokers.md says of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edge.watch.broker_trials import Trait
from support.drill import InstalledRabbitMQ, Nats, One, RabbitMQ, command
from support.drill_table import version
from support.paths import ROOT

pytestmark = pytest.mark.scale


def column(title: str) -> dict[str, str]:
    """The page's cells of one broker, by trait."""
    text = (ROOT / "docs" / "brokers.md").read_text().replace("`", "")
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    head = next(row for row in rows if row[0] == "what is tried")
    place = head.index(title)
    found = {row[0]: row[place] for row in rows if len(row) == len(head)}
    return {trait.value: found[trait.value] for trait in Trait}


def title(brokers: One | Nats | RabbitMQ) -> str:
    """The head of its column."""
    if isinstance(brokers, One):
        return f"mosquitto {version('mosquitto', '-h')}"
    if isinstance(brokers, Nats):
        return f"NATS {version('nats-server', '-v')} x3"
    return brokers.name.replace(", cluster of three", " x3")


@pytest.mark.parametrize("kind", [One, Nats, RabbitMQ, InstalledRabbitMQ])
def test_the_page_says_what_the_command_finds(
    kind: type[One | Nats | RabbitMQ], tmp_path: Path
) -> None:
    brokers = kind(tmp_path)
    tls = brokers.tls if isinstance(brokers, RabbitMQ) else {}
    words = command(["probe-broker", *brokers.urls, "--json"], [], tls)
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    finally:
        brokers.close()
    assert done.returncode in (0, 3), done.stderr
    findings = json.loads(done.stdout)["findings"]
    found = {Trait[name.upper()].value: finding["detail"] for name, finding in findings.items()}
    print(f"\n{title(brokers)}: {json.dumps(found, indent=1)}")
    assert column(title(brokers)) == found

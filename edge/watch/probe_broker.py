"""`edge-watch probe-broker`: what the kit leans on, tried at a broker or at a cluster's members."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from edge.base import cli
from edge.base.errors import EdgeError
from edge.watch.broker_trials import Bench, Finding, Trait
from edge.watch.options import broker_settings, credential_options

EXIT_CODES = (
    "exit codes: 0 all of the kit works there, 1 no connection (see the last line), 2 usage, 3 a part "
    "of the kit will not work there, 130 Ctrl-C"
)
# What of the kit does not work where a trait is missing.
MISSING = {
    Trait.MQTT5: "all works; but 3.1.1 has no reasons: what the broker forbids is dropped in silence",
    Trait.ARRIVES: "nothing works: check the access list, and that the addresses are of one cluster",
    Trait.RETAINED: "a page or table that starts shows a room once it counts, and asks it for its "
    "status; a command wants a node's whole name; nodes hear an acknowledgement only while connected",
    Trait.RETAINED_WILDCARD: "a page or table that starts shows a room once it counts, and asks it for "
    "its status; a command wants a node's whole name",
    Trait.SESSION: "what comes while a recorder is away is not kept for it: nodes send it again, from "
    "a minute later on, and nothing is lost",
    Trait.REDELIVERED: "what a recorder had not stored when its connection was cut comes from the "
    "nodes again, from a minute later on, and nothing is lost",
    Trait.IN_FLIGHT: "a recorder acknowledges what it has stored, and may store some hundred messages "
    "a second at most: raise the limit (max_inflight_messages, mqtt.prefetch, max_ack_pending)",
    Trait.SHARED: "--group stores nothing, or a part: run one recorder",
    Trait.WILL_TAKEOVER: "a node that another client of its name throws off is not reported lost",
    Trait.WILL_CUT: "a node without power is not reported lost: its room goes silent",
}
# Without these all of the kit still does what it promises.
HARMLESS = {Trait.MQTT5, Trait.IN_FLIGHT, Trait.WILL_TAKEOVER}


class Incomplete(EdgeError):
    """A part of the kit will not work with this broker."""

    exit_code = 3


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-watch probe-broker",
        "Try what the kit leans on at a broker, or at a cluster's members, and say what will not\n"
        "work there. Of several addresses, the first and the last are played against each other.\n"
        "Nothing of yours is read; what it publishes is below edge/v1/edge-probe, and taken away.",
        "edge-watch probe-broker mqtt://192.0.2.10\n"
        "  edge-watch probe-broker mqtts://a.example mqtts://b.example --ca ca.pem --username server "
        "--password-file password",
        codes=EXIT_CODES,
    )
    p.add_argument(
        "urls", nargs="+", metavar="URL", help="mqtt://host[:port] or mqtts://host[:port]"
    )
    credential_options(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    return p


def as_json(urls: Sequence[str], versions: Sequence[str], findings: Sequence[Finding]) -> str:
    """Write the findings as one JSON object: by name of the trait, with `works` true, false or null."""
    rows = {
        finding.trait.name.lower(): {
            "works": finding.works,
            "detail": finding.detail,
            "consequence": None if finding.works else MISSING[finding.trait],
        }
        for finding in findings
    }
    return json.dumps({"members": list(urls), "versions": list(versions), "findings": rows})


def consequences(findings: Sequence[Finding]) -> list[str]:
    """Say what of the kit will not work, a line each; what needs what is missing is left out."""
    missing = {finding.trait for finding in findings if finding.works is False}
    if Trait.RETAINED in missing:
        missing.discard(Trait.RETAINED_WILDCARD)
    return [f"{trait.value}: {MISSING[trait]}" for trait in Trait if trait in missing]


def run(argv: Sequence[str] | None = None) -> None:
    """Print the table. Raises UsageError, BrokerError without a connection, Incomplete where a part of
    the kit will not work."""
    args = build_parser().parse_args(argv)
    members = [broker_settings(args, url) for url in args.urls]
    bench = Bench(members)
    width = max(len(trait.value) for trait in Trait)

    def tell(finding: Finding) -> None:
        print(f"{finding.trait.value:<{width}}  {finding.detail}", flush=True)

    findings = bench.run((lambda finding: None) if args.json else tell)
    if args.json:
        print(as_json(args.urls, bench.versions, findings))
    else:
        if len(members) == 1:
            print("one address was given: 'another member' is another connection to it")
        for line in consequences(findings):
            print(line)
    lacking = [f.trait for f in findings if f.works is False and f.trait not in HARMLESS]
    if lacking:
        what = ", ".join(trait.value for trait in lacking)
        raise Incomplete(f"a part of the kit will not work there: {what}")
    if not args.json:
        print("all of the kit works there", file=sys.stdout)

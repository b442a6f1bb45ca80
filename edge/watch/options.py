"""The options of every command of the server's side that speaks to a broker."""

from __future__ import annotations

import argparse

from edge.base.errors import UsageError
from edge.base.strict_yaml import validate
from edge.settings import Broker, Settings

LOCAL = "mqtt://127.0.0.1"


def broker_options(p: argparse.ArgumentParser) -> None:
    """Add the options of every command that speaks to a broker."""
    p.add_argument(
        "--broker",
        action="append",
        metavar="URL",
        help=f"default: {LOCAL}; may be repeated, such as for a cluster's members: the next is tried "
        "where one refuses or does not answer",
    )
    credential_options(p)


def credential_options(p: argparse.ArgumentParser) -> None:
    """Add the version of MQTT, and what a client proves itself with."""
    p.add_argument(
        "--protocol", choices=("auto", "5", "3.1.1"), default="auto", help="the version of MQTT"
    )
    p.add_argument("--username", metavar="NAME", help="where the broker asks for one")
    p.add_argument(
        "--password-file", metavar="FILE", help="its first line is the password of --username"
    )
    p.add_argument("--ca", metavar="FILE", help="the site's authority, PEM")
    p.add_argument("--certificate", metavar="FILE", help="the server's own, PEM")
    p.add_argument("--key", metavar="FILE", help="of --certificate, PEM")


def metrics_option(p: argparse.ArgumentParser) -> None:
    """Add the option of a server whose figures Prometheus collects."""
    p.add_argument(
        "--metrics",
        nargs="?",
        const="9465",
        metavar="[HOST:]PORT",
        help="serve /metrics for Prometheus; without an address at 127.0.0.1:9465",
    )


def broker_settings(args: argparse.Namespace, url: str | None = None) -> Broker:
    """Check them as node.yaml's `broker` is checked. url: in place of --broker. Raises SettingsError or
    UsageError."""
    given = args.broker or [LOCAL] if url is None else [url]
    one = given[0] if len(given) == 1 else given
    broker: dict[str, object] = {"url": one, "protocol": args.protocol}
    broker |= {"username": args.username, "password_file": args.password_file}
    tls = {"ca": args.ca, "certificate": args.certificate, "key": args.key}
    settings = validate(Settings, {"broker": {**broker, "tls": tls}}, "options").broker
    if not settings.urls and url is not None:
        raise UsageError("URL must be an address, mqtt://host[:port] or mqtts://host[:port]")
    if not settings.urls:
        raise UsageError("--broker must be an address, mqtt://host[:port] or mqtts://host[:port]")
    return settings

"""The options of every command of the server's side that speaks to a broker."""

from __future__ import annotations

import argparse

from edge.base.errors import UsageError
from edge.base.strict_yaml import validate
from edge.settings import Broker, Settings


def broker_options(p: argparse.ArgumentParser) -> None:
    """Add the options of every command that speaks to a broker."""
    p.add_argument(
        "--broker", default="mqtt://127.0.0.1", metavar="URL", help="default: %(default)s"
    )
    p.add_argument("--username", metavar="NAME", help="where the broker asks for one")
    p.add_argument("--password-file", metavar="FILE")
    p.add_argument("--ca", metavar="FILE", help="the site's authority, PEM")
    p.add_argument("--certificate", metavar="FILE", help="the server's own, PEM")
    p.add_argument("--key", metavar="FILE", help="of --certificate, PEM")


def broker_settings(args: argparse.Namespace) -> Broker:
    """Check them as node.yaml's `broker` is checked. Raises SettingsError or UsageError."""
    broker = {"url": args.broker, "username": args.username, "password_file": args.password_file}
    tls = {"ca": args.ca, "certificate": args.certificate, "key": args.key}
    settings = validate(Settings, {"broker": {**broker, "tls": tls}}, "options").broker
    if settings.url == "-":
        raise UsageError("--broker must be an address, mqtt://host[:port] or mqtts://host[:port]")
    return settings

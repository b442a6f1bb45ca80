"""`edge-run`: a camera in, counts out."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.base import cli
from edge.base.addresses import may_hold_password
from edge.base.errors import SettingsError, UsageError
from edge.base.files import readable_for_all
from edge.base.legal import is_reason, not_a_reason
from edge.base.process import forbid_core_dumps
from edge.base.signals import on_signal
from edge.base.strict_yaml import read_yaml, validate
from edge.settings import Settings

log = logging.getLogger(__name__)

NOTICE = (
    "notice: reading emotions of pupils or staff is prohibited in the European Union (AI Act, "
    "Article 5(1)(f)) but for medical or safety reasons; set privacy.legal_basis to the reason"
)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-run",
        "Count expressions in front of a camera; publish the counts, never a picture.",
        "edge-run --camera 0 --broker mqtt://192.0.2.10 --window 10",
    )
    p.add_argument("--config", type=Path, metavar="node.yaml", help="settings; options win over it")
    p.add_argument(
        "--camera",
        metavar="0|PATH|FOLDER|rtsp://...|csi:0|loop:FILE|test[:FAULT]",
        help="camera index or device, video file, folder of pictures, address, CSI sensor, a video "
        "that is played as a camera, test pattern "
        "(and its faults: test:die, test:freeze, test:hang, test:lie); default: 0",
    )
    p.add_argument(
        "--broker",
        metavar="mqtt://host[:port]|mqtts://...|-",
        help="where the counts go; -, the default, prints them here",
    )
    p.add_argument(
        "--json",
        action="store_true",
        help="JSON lines of --broker - on a terminal too, where there are lines for people",
    )
    p.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle; default: the shipped")
    p.add_argument(
        "--backend", choices=("auto", "ort", "trt", "fake"), help="runtime.backend; default: auto"
    )
    p.add_argument(
        "--window", type=float, metavar="S", help="seconds a window, 1 to 3600; default: 10"
    )
    p.add_argument(
        "--min-group",
        type=int,
        metavar="K",
        help="fewer people in view: no counts; 1 is off; default: 5",
    )
    p.add_argument("--max-seconds", type=float, metavar="S", help="stop after so much source time")
    p.add_argument(
        "--check",
        action="store_true",
        help="test every part and help to aim the camera; sends nothing",
    )
    cli.add_verbose(p)
    return p


def read_settings(args: argparse.Namespace) -> Settings:
    """Read node.yaml and lay the options over it; raises SettingsError naming where."""
    data: dict[str, Any] = read_yaml(args.config) if args.config else {}
    where = str(args.config) if args.config else "settings"
    options = {
        ("camera", "source"): args.camera,
        ("broker", "url"): args.broker,
        ("runtime", "bundle"): str(args.bundle) if args.bundle else None,
        ("runtime", "backend"): args.backend,
        ("window", "seconds"): args.window,
        ("privacy", "min_group"): args.min_group,
    }
    if args.config:
        validate(Settings, data, where)  # the file's own faults under the file's name
        where = "options"
    for (section, key), value in options.items():
        if value is not None:
            part = data.setdefault(section, {})
            if isinstance(part, dict):
                part[key] = value
    if args.min_group is not None:
        privacy = data["privacy"]
        cell = privacy.get("min_cell", 2)
        # A smaller group on the command line takes the cell limit down with it.
        if isinstance(cell, int) and args.min_group > 1:
            privacy["min_cell"] = min(cell, args.min_group)
    return validate(Settings, data, where)


def warn_of_open_secrets(config: Path | None, settings: Settings) -> None:
    """Say which files hold a secret and can be read by every user of this machine."""
    holding = [settings.broker.password_file, settings.broker.tls.key]
    if config is not None and may_hold_password(settings.camera.source):
        holding.append(config)
    for path in holding:
        if path is not None and readable_for_all(path):
            log.warning("%s holds a secret and is readable for all users: chmod 640 %s", path, path)


def refuse_unlawful_service(settings: Settings) -> None:
    """Raise SettingsError for a service without a written reason; in the foreground, say the law."""
    basis = settings.privacy.legal_basis
    if is_reason(basis):
        return
    if os.environ.get("NOTIFY_SOCKET"):
        if basis.strip():
            raise SettingsError(not_a_reason(basis))
        raise SettingsError(
            "'privacy.legal_basis' is empty: a service may not run without it (AI Act, Article 5); "
            "write the medical or safety reason into node.yaml"
        )
    print(f"notice: {not_a_reason(basis)}" if basis.strip() else NOTICE, file=sys.stderr)


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.max_seconds is not None and not args.max_seconds > 0:
        raise UsageError("--max-seconds must be above 0")
    settings = read_settings(args)
    cli.start_log(args.verbose)
    forbid_core_dumps()
    stop, force_stop = threading.Event(), threading.Event()
    on_signal(lambda: (force_stop if stop.is_set() else stop).set())
    warn_of_open_secrets(args.config, settings)
    if args.check:
        from edge.tools.check import check

        check(settings, args.max_seconds or 10.0, stop)
        return
    refuse_unlawful_service(settings)
    from edge.assemble import assemble

    at_terminal = sys.stdout.isatty() and not args.json
    assemble(settings, args.max_seconds, stop, force_stop, at_terminal).run()


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-run", run, argv)


if __name__ == "__main__":
    sys.exit(main())

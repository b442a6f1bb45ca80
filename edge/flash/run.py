"""`edge-flash`: the technician's side, a command a step."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from edge.base import cli

# module, function, what it does
COMMANDS = {
    "ca": ("edge.flash.ca", "run", "the school's authority: certificates of nodes, broker, server"),
    "image": ("edge.flash.image", "run_image", "one node's SD card image from JetPack's"),
    "rootfs": ("edge.flash.image", "run_rootfs", "one node into Linux_for_Tegra/rootfs (NVMe)"),
    "fleet": ("edge.flash.fleet", "run", "a whole school's images from a table"),
    "write": ("edge.flash.write", "run", "an image onto a card, and read it back"),
    "wipe": ("edge.flash.wipe", "run", "a card that leaves the school: nothing stays on it"),
    "release": ("edge.flash.release", "run", "sign an update for the school's server to offer"),
}


def run(argv: Sequence[str] | None = None) -> None:
    listed = "\n".join(f"  {name:8} {text}" for name, (_, _, text) in COMMANDS.items())
    p = cli.parser(
        "edge-flash",
        f"From a blank card to a publishing node.\n\n{listed}\n\nEach has its own --help.",
        "edge-flash image --help",
    )
    p.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    command, words = cli.split_command(argv, COMMANDS)
    if command is None:
        p.parse_args(words[:1])  # help, or an error
    else:
        module, function, _ = COMMANDS[command]
        getattr(importlib.import_module(module), function)(words)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-flash", run, argv)


if __name__ == "__main__":
    sys.exit(main())

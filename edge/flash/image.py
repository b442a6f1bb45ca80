"""`edge-flash image` and `rootfs`: one node, into a card's disk image or into an unpacked root."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.base import cli
from edge.base.errors import UsageError
from edge.flash import ssh
from edge.flash.board import Board, check_board, inspect
from edge.flash.content import Site, check_name_free, host_name, node_settings, write_node
from edge.flash.ext4 import Ext4, content_sha256, root_partition
from edge.flash.network import Network, parse_network
from edge.flash.package import open_package
from edge.flash.progress import Progress
from edge.flash.tree import RootFolder, Tree
from edge.settings import Settings

BLOCK = 4 * 2**20
HOLE = b"\0" * BLOCK


def add_site_options(p: argparse.ArgumentParser) -> None:
    """Add the options that image, rootfs and fleet share."""
    p.add_argument("--node", type=Path, required=True, metavar="node.yaml", help="its settings")
    p.add_argument(
        "--package", type=Path, required=True, metavar="DEB", help="what `make deb` left"
    )
    p.add_argument("--ssh-key", type=Path, required=True, metavar="PUB", help="the technician's")
    p.add_argument(
        "--user", default="technician", metavar="NAME", help="with that key, no password"
    )
    p.add_argument(
        "--ca", type=Path, metavar="DIR", help="the school's authority, see edge-flash ca"
    )
    p.add_argument("--renew", action="store_true", help="the node's name has a certificate already")
    p.add_argument("--release-key", type=Path, metavar="PUB", help="updates must be signed with it")
    p.add_argument(
        "--nvidia", type=Path, metavar="DIR", help="NVIDIA's packages with TensorRT (.deb)"
    )
    p.add_argument("--cpu", action="store_true", help="any arm64 board, without TensorRT")
    p.add_argument(
        "--zone",
        metavar="NAME",
        help="the school's, such as Europe/Berlin; default: privacy.zone, else this machine's",
    )
    p.add_argument("--wifi", type=Path, metavar="FILE", help="two lines: its name, its passphrase")


def add_address_options(p: argparse.ArgumentParser) -> None:
    """Add the options of a fixed address."""
    p.add_argument(
        "--address", metavar="IP/BITS", help="fixed, such as 192.0.2.20/24; default: DHCP"
    )
    p.add_argument("--gateway", metavar="IP", help="of a fixed address")
    p.add_argument("--dns", action="append", default=[], metavar="IP", help="may be given twice")


def read_site(args: argparse.Namespace) -> Site:
    """Read the shared options; raises EdgeError where package or folder cannot be used."""
    if args.nvidia is not None and not args.nvidia.is_dir():
        raise UsageError(
            f"--nvidia {args.nvidia} is not a folder; give the one with NVIDIA's packages"
        )
    return Site(
        open_package(args.package),
        args.ssh_key,
        args.user,
        args.ca,
        args.release_key,
        args.nvidia,
        args.cpu,
        args.renew,
        args.zone,
    )


def inspect_base(tree: Tree, site: Site) -> Board:
    """Read the root file system's board; raises EdgeError where it cannot become a node."""
    board, package = inspect(tree), site.package
    pythons = list(package.pythons)
    check_board(tree, board, site.cpu, site.nvidia is not None, pythons, package.depends)
    return board


def flash(tree: Tree, node: Path, names: dict[str, str], network: Network, site: Site) -> Settings:
    """Write one node into a root file system; return its settings. What it cannot promise it prints."""
    board = inspect_base(tree, site)
    doubts = ssh.doubts(tree, board)
    settings = write_node(tree, board, node, names, network, site)
    for doubt in doubts:
        print(f"warning: SSH may take passwords: {doubt}; look at it on the base", file=sys.stderr)
    return settings


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a disk image; empty blocks become holes. The copy will hold a key, so that only its owner
    may read it, whatever an earlier run left under its name."""
    size = source.stat().st_size
    target.unlink(missing_ok=True)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with (
        source.open("rb") as reader,
        os.fdopen(handle, "wb") as writer,
        Progress(f"copying {source.name}", size) as progress,
    ):
        while block := reader.read(BLOCK):
            if block == HOLE[: len(block)]:
                writer.seek(len(block), os.SEEK_CUR)
            else:
                writer.write(block)
            progress.advance(len(block))
        writer.truncate(size)


def make_image(
    base: Path,
    out: Path,
    partition: str,
    node: Path,
    names: dict[str, str],
    network: Network,
    site: Site,
) -> Settings:
    """Make one disk image; the base is only read. Until it is whole it is called OUT.part."""
    if not base.is_file():
        raise UsageError(f"{base} is not a file; give a JetPack SD card image, unzipped")
    if out.exists():
        raise UsageError(f"{out} is there already; remove it, or give another --out")
    # What can be refused is, before a card's worth of bytes is copied.
    _, settings = node_settings(node, names, site)
    check_name_free(site, settings.node.path)
    inspect_base(Ext4(base, root_partition(base, partition)), site)
    part = out.with_name(f"{out.name}.part")
    if part.exists() and part.samefile(base):
        raise UsageError(f"{base} is in the place of what becomes {out}; give another --out")
    try:
        copy_sparse(base, part)
        settings = flash(Ext4(part, root_partition(part, partition)), node, names, network, site)
        os.replace(part, out)
    except BaseException:
        part.unlink(missing_ok=True)  # it may hold a key
        raise
    return settings


def _tell(settings: Settings, site: Site, where: Path) -> None:
    print(f"{where}: node {settings.node.path}, broker {settings.broker.shown}")
    print(f"  package {site.package.path.name}, sha256 {content_sha256(site.package.path)}")
    print(f"  time zone {settings.privacy.zone}, which hours go by; another: --zone")
    print(f"  ssh {site.user}@{host_name(settings)}")


def run_image(argv: Sequence[str] | None = None) -> None:
    """Run `edge-flash image`."""
    p = cli.parser(
        "edge-flash image",
        "Make one node's SD card image from NVIDIA's, offline and without root.",
        "edge-flash image jp62-orin-nano-sd.img --node node.yaml --out room-12.img --ca authority \\\n"
        "    --package dist/edge-node_*_arm64.deb --ssh-key ~/.ssh/id_ed25519.pub",
    )
    p.add_argument("base", type=Path, metavar="BASE.img", help="JetPack's SD card image, unzipped")
    p.add_argument("--out", type=Path, required=True, metavar="NODE.img", help="the image to write")
    p.add_argument("--partition", default="APP", metavar="NAME", help="of the root file system")
    add_site_options(p)
    add_address_options(p)
    args = p.parse_args(argv)
    site = read_site(args)
    network = parse_network(args.address, args.gateway, args.dns, args.wifi)
    settings = make_image(args.base, args.out, args.partition, args.node, {}, network, site)
    _tell(settings, site, args.out)
    print(f'next: sudo "$(command -v edge-flash)" write {args.out} DEVICE')


def run_rootfs(argv: Sequence[str] | None = None) -> None:
    """Run `edge-flash rootfs`."""
    p = cli.parser(
        "edge-flash rootfs",
        "Write one node into an unpacked root file system, for l4t_initrd_flash.sh and an NVMe disk.",
        'sudo "$(command -v edge-flash)" rootfs Linux_for_Tegra/rootfs --node node.yaml \\\n'
        "    --ca authority --package dist/edge-node_*_arm64.deb --ssh-key ~/.ssh/id_ed25519.pub",
    )
    p.add_argument("folder", type=Path, metavar="DIR", help="Linux_for_Tegra/rootfs")
    add_site_options(p)
    add_address_options(p)
    args = p.parse_args(argv)
    site = read_site(args)
    network = parse_network(args.address, args.gateway, args.dns, args.wifi)
    settings = flash(RootFolder(args.folder), args.node, {}, network, site)
    _tell(settings, site, args.folder)

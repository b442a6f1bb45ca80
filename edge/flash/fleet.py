"""`edge-flash fleet`: a whole school's images in one go, a row of a table each.

    site,room,name,address,gateway,dns,broker,camera
    north,room-13,cam-1,192.0.2.21/24,192.0.2.1,192.0.2.53,,
    north,room-14,cam-1,,,,,csi:0

site, room and name are needed; the rest may be left out, and what is empty is as in node.yaml. Every
row is checked before the first image is made; an image that is there already is kept, so that a run
that was interrupted resumes.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from edge.base import cli
from edge.base.errors import EdgeError, UsageError
from edge.base.strict_yaml import read_yaml
from edge.flash.content import check_name_free, node_settings
from edge.flash.image import add_site_options, make_image, read_site
from edge.flash.network import Network, parse_network

REQUIRED = ("site", "room", "name")
COLUMNS = (*REQUIRED, "address", "gateway", "dns", "broker", "camera")


@dataclass(frozen=True, slots=True)
class Row:
    """One node. changes: settings of node.yaml that its row replaces, by section and name."""

    line: int
    names: dict[str, str]
    changes: dict[tuple[str, str], str]
    network: Network

    @property
    def address(self) -> str:
        """Return its fixed address without the network's length, "" for DHCP."""
        return (self.network.address or "").partition("/")[0]

    @property
    def file(self) -> str:
        """Return the image's file name."""
        return "-".join(self.names.values()) + ".img"


def read_rows(table: Path, wifi: Path | None) -> list[Row]:
    """Read the table; raises UsageError naming the line that is wrong."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restkey="", strict=True)
            header = reader.fieldnames or []
            raw = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UsageError(f"{table} line {reader.reader.line_num} is not CSV: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{table} cannot be read as CSV in UTF-8: {error}") from error
    lacking, unknown = set(REQUIRED) - set(header), set(header) - set(COLUMNS)
    if lacking or unknown or len(set(header)) != len(header):
        raise UsageError(
            f"{table} line 1: the columns must be of {','.join(COLUMNS)} with the first three, not "
            f"{','.join(header)}"
        )
    rows: list[Row] = []
    for line, row in raw:
        if "" in row or None in row.values():
            raise UsageError(f"{table} line {line}: {len(header)} values are wanted, one a column")
        values = {key: value.strip() for key, value in row.items()}
        settings = {("broker", "url"): "broker", ("camera", "source"): "camera"}
        try:
            if "\0" in "".join(values.values()):
                raise UsageError("holds a null character")
            network = parse_network(
                values.get("address") or None,
                values.get("gateway") or None,
                values.get("dns", "").split(),
                wifi,
            )
        except UsageError as error:
            raise UsageError(f"{table} line {line}: {error}") from error
        changes = {path: values[name] for path, name in settings.items() if values.get(name)}
        rows.append(Row(line, {key: values[key] for key in REQUIRED}, changes, network))
    for number, node in enumerate(rows):
        for other in rows[:number]:
            if node.file == other.file:
                same = "node" if node.names == other.names else f"file {node.file}"
                raise UsageError(f"{table} line {node.line}: the same {same} as line {other.line}")
            if node.address and node.address == other.address:
                raise UsageError(f"{table} line {node.line}: the same address as line {other.line}")
    if not rows:
        raise UsageError(f"{table} names no node; a line each below the header")
    return rows


def _settings_file(base: Path, row: Row, folder: Path) -> Path:
    """Write node.yaml with the row's changes, under the base's name, which messages show."""
    data = read_yaml(base)
    for (section, key), value in row.changes.items():
        part = data.setdefault(section, {})
        if isinstance(part, dict):  # else the check that follows says what is wrong with it
            part[key] = value
    own = folder / str(row.line) / base.name
    own.parent.mkdir()
    own.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return own


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-flash fleet",
        "Make the images of a whole school from a table with the columns site, room, name and, where\n"
        "wanted, address, gateway, dns, broker, camera. What a row leaves empty is as in node.yaml;\n"
        "images that are there are kept.",
        "edge-flash fleet nodes.csv --base jp62-orin-nano-sd.img --out images --node node.yaml \\\n"
        "    --ca authority --package dist/edge-node_*_arm64.deb --ssh-key ~/.ssh/id_ed25519.pub",
    )
    p.add_argument(
        "table", type=Path, metavar="nodes.csv", help="a row a node, its first line the columns"
    )
    p.add_argument(
        "--base",
        type=Path,
        required=True,
        metavar="BASE.img",
        help="JetPack's SD card image, unzipped",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the images")
    p.add_argument("--partition", default="APP", metavar="NAME", help="of the root file system")
    add_site_options(p)
    args = p.parse_args(argv)
    rows = read_rows(args.table, args.wifi)
    site = read_site(args)
    with tempfile.TemporaryDirectory(prefix="edge-fleet-") as folder:
        files = {row.file: _settings_file(args.node, row, Path(folder)) for row in rows}
        for row in rows:
            try:
                _, settings = node_settings(files[row.file], row.names, site)
                if not (args.out / row.file).exists():
                    check_name_free(site, settings.node.path)
            except EdgeError as error:
                raise UsageError(f"{args.table} line {row.line}: {error}") from error
        args.out.mkdir(parents=True, exist_ok=True)
        wanted = [row for row in rows if not (args.out / row.file).exists()]
        _check_space(args.base, args.out, len(wanted))
        for number, row in enumerate(rows, start=1):
            out = args.out / row.file
            if row not in wanted:
                print(f"{number}/{len(rows)} {out}: is there, kept", flush=True)
                continue
            settings = make_image(
                args.base, out, args.partition, files[row.file], row.names, row.network, site
            )
            node, zone = settings.node.path, settings.privacy.zone
            print(f"{number}/{len(rows)} {out}: node {node}, zone {zone}", flush=True)


def _check_space(base: Path, out: Path, images: int) -> None:
    """Raise where the images cannot fit; blocks that are empty take no space in a sparse file."""
    if not base.is_file():
        raise UsageError(f"{base} is not a file; give a JetPack SD card image, unzipped")
    needed, free = base.stat().st_blocks * 512 * images, shutil.disk_usage(out).free
    if needed > free:
        raise EdgeError(
            f"{out} has {free / 2**30:.1f} GiB free, {images} images take {needed / 2**30:.1f}; give "
            f"another --out, or fewer rows"
        )

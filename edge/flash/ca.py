"""`edge-flash ca`: the school's certificate authority, from its set-up to revoking a certificate."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from edge.base import cli
from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.flash.authority import (
    AUTHORITY_DAYS,
    BROKER,
    DAYS,
    SERVER,
    Authority,
    Issued,
    create,
    program_name,
)
from edge.flash.certificates import common_name_of
from edge.flash.index import IndexEntry, State, node_name, write_file

WARN_DAYS = 60
# From then on the authority cannot sign a certificate of the usual length: time to plan the next one.
WARN_AUTHORITY_DAYS = DAYS + WARN_DAYS
# A line of `list` is 80 columns: name, serial 16, end 10, state 10, two spaces between.
NAME_WIDTH = 38


def build_parser() -> argparse.ArgumentParser:
    """Return the command line with its sub-commands."""
    p = cli.parser(
        "edge-flash ca",
        "The school's certificate authority: a folder (DIR) on the technician's machine whose key\n"
        "never leaves it. Nodes, broker and server trust what it signs until it ends or is revoked.",
        "edge-flash ca init authority --school 'Green Lane School'\n"
        "  edge-flash ca broker authority mqtt.school.example 192.0.2.10\n"
        "  edge-flash ca issue authority school/room-12/node-1",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=cli.EXIT_CODES,
            formatter_class=cli.Help,
            allow_abbrev=False,
        )
        made.add_argument("folder", type=Path, metavar="DIR", help="the authority")
        return made

    def issues(made: argparse.ArgumentParser, out: str) -> None:
        made.add_argument("--days", type=int, default=DAYS, help="of validity")
        made.add_argument("--out", type=Path, metavar="DIR", help=f"for the files; default: {out}")
        made.add_argument(
            "--renew",
            action="store_true",
            help="one more where one is valid, which stays so until it ends or is revoked",
        )

    init = command("init", "make the authority")
    init.add_argument("--school", required=True, metavar="NAME", help="in the authority's own name")
    init.add_argument("--days", type=int, default=AUTHORITY_DAYS, help="of validity")
    issue = command("issue", "a node's certificate: node.pem, node.key, ca.pem")
    issue.add_argument("name", metavar="SITE/ROOM/NODE", help="the node's, as in its node.yaml")
    issues(issue, "certificates/SITE/ROOM/NODE")
    broker = command("broker", "the broker's: broker.pem, broker.key, ca.pem, revoked.pem")
    broker.add_argument("hosts", nargs="+", metavar="HOST", help="names and addresses of it")
    issues(broker, "certificates/broker")
    server = command("server", "the recorder's: server.pem, server.key, ca.pem")
    server.add_argument(
        "--name",
        default=SERVER,
        help="which program's, as the broker's access list names it, such as home-assistant",
    )
    issues(server, "certificates/NAME")
    revoke = command("revoke", "take back all certificates of a name, or one; writes revoked.pem")
    revoke.add_argument(
        "what",
        metavar="NAME|SERIAL|FILE.pem",
        help="as `ca list` shows it, or a certificate's file",
    )
    command("crl", "write revoked.pem, mosquitto's crlfile, again")
    command("list", "every certificate, and what ends soon")
    return p


def output_folder(given: Path | None, usual: str, stem: str, name: str) -> Path:
    """Return a folder that takes the files, before anything is signed. Raises EdgeError."""
    out = given or Path("certificates") / usual
    there = out / f"{stem}.pem"
    try:
        out.mkdir(parents=True, exist_ok=True)
        owner = common_name_of(there.read_bytes()) if there.exists() else name
    except OSError as error:
        raise EdgeError(f"{out} cannot be used ({error.strerror}); give another --out") from error
    if owner != name:
        raise EdgeError(f"{there} is {owner or 'something else'}'s; give another --out")
    if not os.access(out, os.W_OK | os.X_OK):
        raise EdgeError(f"{out} takes no file; give another --out")
    return out


def write_issued(out: Path, stem: str, issued: Issued, more: dict[str, bytes]) -> None:
    """Write the files and say what they are. Raises EdgeError."""
    write_file(out / f"{stem}.key", issued.key)
    public = {f"{stem}.pem": issued.certificate, "ca.pem": issued.authority, **more}
    for name, data in public.items():
        write_file(out / name, data, 0o644)
    for name in (f"{stem}.key", *public):
        print(out / name)
    entry = issued.entry
    print(f"{entry.name}: serial {entry.serial}, ends {entry.ends:%Y-%m-%d}")


def print_superseded(authority: Authority, name: str) -> None:
    """Say which older certificates of a name are still valid."""
    for entry, state in authority.listed():
        if entry.name == name and state == "superseded":
            print(
                f"{entry.serial}, the one before, stays valid until {entry.ends:%Y-%m-%d}; end it "
                f"with: edge-flash ca revoke {authority.folder} {entry.serial}"
            )


def sign(args: argparse.Namespace) -> None:
    """Carry out `issue`, `broker` or `server`. Raises EdgeError."""
    authority = Authority.open(args.folder)
    more: dict[str, bytes] = {}
    if args.command == "issue":
        stem = "node"
        out = output_folder(args.out, node_name(args.name), stem, args.name)
        issued = authority.issue(args.name, args.days, args.renew)
    elif args.command == "broker":
        stem = BROKER
        out = output_folder(args.out, stem, stem, stem)
        issued = authority.issue_broker(args.hosts, args.days, args.renew)
        more["revoked.pem"] = authority.write_crl().read_bytes()
    else:
        stem = SERVER
        out = output_folder(args.out, program_name(args.name), stem, args.name)
        issued = authority.issue_server(args.days, args.renew, args.name)
    write_issued(out, stem, issued, more)
    print_superseded(authority, issued.entry.name)


def print_crl(authority: Authority, path: Path) -> None:
    """Say where the list of revoked certificates is, and where it belongs."""
    print(
        f"{path}, valid until the authority ends ({authority.ends:%Y-%m-%d}): put it where the "
        f"broker's crlfile is, and restart mosquitto"
    )


def revoke(authority: Authority, what: str) -> None:
    """Revoke a name, a serial, or the file of a certificate that the index lost. Raises EdgeError."""
    if what.endswith(".pem"):
        try:
            data = Path(what).read_bytes()
        except OSError as error:
            raise UsageError(f"{what} cannot be read ({error.strerror})") from error
        what = authority.adopt(data)
    for entry in authority.revoke(what):
        print(f"revoked {entry.name}: serial {entry.serial}")
    print_crl(authority, authority.folder / "revoked.pem")


def row(name: str, serial: str, ends: str, state: str) -> str:
    """Format one row of 80 columns at most; a longer name has a line of its own."""
    own = f"{name}\n{'':{NAME_WIDTH}}" if len(name) > NAME_WIDTH else f"{name:{NAME_WIDTH}}"
    return f"{own}  {serial:16}  {ends:10}  {state}".rstrip()


def lines(authority: Authority, moment: datetime) -> list[str]:
    """Return the table's lines: the authority, then every certificate by name."""
    listed = sorted(authority.listed(), key=lambda item: (item[0].name, item[0].ends))
    state = "valid" if moment < authority.ends else "ended"
    return [
        row("NAME", "SERIAL", "ENDS", "STATE"),
        row(authority.school, "the authority", f"{authority.ends:%Y-%m-%d}", state),
        *(row(e.name, e.serial, f"{e.ends:%Y-%m-%d}", state) for e, state in listed),
    ]


def warnings(authority: Authority, moment: datetime) -> list[str]:
    """Return what to renew: valid for 60 days or less, or ended with nothing valid after it."""
    listed = authority.listed()
    valid_names = {entry.name for entry, state in listed if state == "valid"}

    def expiring(entry: IndexEntry, state: State) -> bool:
        ended = state == "ended" and entry.name not in valid_names
        return ended or (state == "valid" and entry.ends - moment <= timedelta(days=WARN_DAYS))

    # Of several that have ended the last one counts.
    last = {entry.name: entry for entry, state in listed if expiring(entry, state)}
    found = [
        f"warning: {name} ended on {entry.ends:%Y-%m-%d}"
        if entry.ends <= moment
        else f"warning: {name} ends in {(entry.ends - moment).days} days"
        for name, entry in sorted(last.items())
    ]
    if found:
        found.append("renew: edge-flash ca issue (or broker, server) DIR ... --renew")
    left = (authority.ends - moment).days
    if left <= WARN_AUTHORITY_DAYS:
        found.append(
            f"warning: the authority itself has {max(left, 0)} days left, and its revoked.pem no more: "
            f"a broker then lets nobody in; plan a new one"
        )
    return found


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.command == "init":
        authority = create(args.folder, args.school, args.days)
        print(f"{authority.folder}: {authority.school}, ends {authority.ends:%Y-%m-%d}")
        print("back this folder up, encrypted: whoever has its key.pem can be any node")
        return
    if args.command in ("issue", "broker", "server"):
        sign(args)
        return
    authority = Authority.open(args.folder)
    if args.command == "revoke":
        revoke(authority, args.what)
    elif args.command == "crl":
        print_crl(authority, authority.write_crl())
    else:
        moment = utc_now()
        print("\n".join(lines(authority, moment)))
        for line in warnings(authority, moment):
            print(line, file=sys.stderr)

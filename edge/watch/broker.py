"""`edge-watch broker`: mosquitto's configuration for a school, with mutual TLS and an access list.

A client is who its certificate says (the common name): a node its `site/room/node`, the school's server
`server`. A node writes its own topics alone; the server hears all, acknowledges and commands; nobody
else anything. Whose certificate was revoked does not come in.

The list says who may send and be sent what. It cannot forbid to subscribe: mosquitto grants every
subscription, and checks each message on its way out (`secret_names` has what follows from that).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edge.base import cli
from edge.base.errors import EdgeError, UsageError
from edge.base.files import write_atomically
from edge.delivery.messages import PREFIX
from edge.watch.bridge import NODE_READS, NODE_WRITES, District, read_district
from edge.watch.home_assistant import COMMANDS, CONFIGURATIONS, USUAL_PREFIX, check_prefix

ANY_NODE = f"{PREFIX}/+/+/+"
HOME_ASSISTANT = "home-assistant"
HOME_ASSISTANT_READS = ("status", "counts", "health")

CONFIGURATION = """\
# mosquitto 2 for a school's nodes. Install as /etc/mosquitto/conf.d/edge.conf next to Debian's own
# mosquitto.conf, which switches persistence on; with another, say `persistence true` there.
per_listener_settings false
allow_anonymous false

listener {port}
cafile {folder}/ca.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
require_certificate true
# The certificate's common name is the user name that the access list speaks of.
use_identity_as_username true
tls_version tlsv1.2
acl_file {folder}/edge.acl
# Certificates that were taken back: `edge-flash ca broker` wrote the file, `edge-flash ca revoke`
# writes the next; restart after a change. mosquitto does not start without it, and lets nobody in once
# it has ended. Nothing may follow the name in its line: it would be part of the name.
crlfile {folder}/revoked.pem

# A recorder's session waits for it, and as much as comes meanwhile: for as long as an MQTT 5 client
# asks (the kit's a day), else a week.
autosave_interval 60
persistent_client_expiration 7d
max_queued_messages 0
max_queued_bytes 268435456
# A recorder acknowledges after it has stored, a batch at a time.
max_inflight_messages 1000
# A kit's message has 64 KiB at most.
message_size_limit 65536
max_packet_size 70000
"""

DROP_IN = """\
# /etc/systemd/system/mosquitto.service.d/edge.conf
[Service]
Restart=always
RestartSec=2
# A node each, and the server's
LimitNOFILE=65536
ProtectSystem=strict
StateDirectory=mosquitto
LogsDirectory=mosquitto
RuntimeDirectory=mosquitto
ProtectHome=true
PrivateTmp=true
NoNewPrivileges=true
"""


def access_list(server: str, home_assistant: str | None = None) -> str:
    """Write mosquitto's acl_file. server: common name of the school's server; home_assistant: its
    discovery prefix, None for none."""
    prefix, own, others = home_assistant, [], []
    if prefix is not None:
        own = [f"topic write {prefix}/{CONFIGURATIONS}"]
        others = [
            f"user {HOME_ASSISTANT}",
            *(f"topic read {ANY_NODE}/{kind}" for kind in HOME_ASSISTANT_READS),
            *(f"topic write {ANY_NODE}/cmd/{name}" for name in COMMANDS),
            f"topic readwrite {prefix}/#",
            "",
        ]
    lines = [
        "# Who is not named here may do nothing.",
        f"user {server}",
        *(f"topic read {ANY_NODE}/{kind}" for kind in NODE_WRITES),
        f"topic readwrite {ANY_NODE}/ack",
        f"topic write {ANY_NODE}/cmd/+",
        *own,
        "",
        *others,
        "# %u is the client's own name: site/room/node.",
        *(f"pattern write {PREFIX}/%u/{kind}" for kind in NODE_WRITES),
        *(f"pattern read {PREFIX}/%u/{kind}" for kind in NODE_READS),
    ]
    return "\n".join(lines) + "\n"


def files(folder: str, port: int, server: str, home_assistant: str | None = None) -> dict[str, str]:
    """Make the files' contents by name. folder: where the broker finds certificates and access list;
    home_assistant: as of `access_list`."""
    return {
        "edge.conf": CONFIGURATION.format(folder=folder, port=port),
        "edge.acl": access_list(server, home_assistant),
        "mosquitto.service.d-edge.conf": DROP_IN,
    }


def _tell_district(district: District, out: Path) -> None:
    """Say what the bridge wants beside what was written."""
    names = ("district-ca.pem", f"{district.name}.pem", f"{district.name}.key")
    if lacking := [name for name in names if not (out / name).exists()]:
        print(
            f"the bridge wants {', '.join(lacking)} beside these: `edge-flash ca server AUTHORITY "
            f"--name {district.name}` of the district's authority writes them (its ca.pem as "
            "district-ca.pem)",
            file=sys.stderr,
        )


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-watch broker",
        "Write mosquitto's configuration and access list for a school: mutual TLS, a node writes only\n"
        "its own topics, the server reads all, nobody else anything.",
        "edge-watch broker --out broker",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the files go; made where it is not",
    )
    p.add_argument(
        "--folder", default="/etc/mosquitto/edge", metavar="DIR", help="of its files on the broker"
    )
    p.add_argument("--port", type=int, default=8883, help="on which the broker listens")
    p.add_argument("--server", default="server", metavar="NAME", help="in its certificate")
    p.add_argument(
        "--home-assistant",
        nargs="?",
        const=USUAL_PREFIX,
        metavar="PREFIX",
        help="let the server tell Home Assistant of the nodes below this topic (without PREFIX "
        f"{USUAL_PREFIX}), and it hear and pause them, by the name {HOME_ASSISTANT} in its certificate",
    )
    p.add_argument(
        "--district",
        metavar="URL",
        help="of the district's broker, mqtts://host[:port]: hand everything on to it by mosquitto's "
        "bridge, and take its acknowledgements and commands; writes edge.district.conf and, for the "
        "access list there, district.acl",
    )
    p.add_argument(
        "--site",
        action="append",
        default=[],
        metavar="NAME",
        help="of the school's nodes, for --district; may be repeated",
    )
    args = p.parse_args(argv)
    if args.home_assistant is not None:
        check_prefix(args.home_assistant)
    if not 0 < args.port < 65536:
        raise UsageError("--port must be 1 to 65535")
    if not args.server.replace("-", "").isalnum():
        raise UsageError("--server must be letters, digits and '-'")
    if args.site and args.district is None:
        raise UsageError("--site goes with --district")
    contents = files(args.folder, args.port, args.server, args.home_assistant)
    district = None
    if args.district is not None:
        district = read_district(args.district, args.site)
        contents |= district.files(args.folder)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_atomically(args.out / name, text.encode())
            print(args.out / name)
        if not (args.out / "revoked.pem").exists():
            print(
                "mosquitto wants broker.pem, broker.key, ca.pem and revoked.pem beside these: "
                "`edge-flash ca broker` writes them",
                file=sys.stderr,
            )
        if district is not None:
            _tell_district(district, args.out)
    except OSError as error:
        raise EdgeError(
            f"{args.out} takes no file ({error.strerror}); give another --out"
        ) from error

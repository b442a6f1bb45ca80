"""A node's network: a fixed address or Wi-Fi, for NetworkManager (JetPack) or systemd-networkd.

Without either the base is left as it is: NetworkManager uses DHCP on a wire by itself.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge.base.errors import EdgeError, UsageError
from edge.flash.board import Board
from edge.flash.tree import Entry, File, Link, Tree

Parsed = TypeVar("Parsed")
KEYFILES = "/etc/NetworkManager/system-connections"
NETWORKD = "/lib/systemd/system/systemd-networkd.service"
WANTS = "/etc/systemd/system/multi-user.target.wants"


@dataclass(frozen=True, slots=True)
class Network:
    """address: such as "192.0.2.20/24", None for DHCP; gateway and dns go with it; wifi: SSID and
    passphrase."""

    address: str | None = None
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    wifi: tuple[str, str] | None = None

    @property
    def is_default(self) -> bool:
        """Tell whether it is DHCP on a wire."""
        return self.address is None and self.wifi is None


def read_wifi(path: Path) -> tuple[str, str]:
    """Read SSID and passphrase, a line each: a secret is never an argument. Raises UsageError."""
    try:
        # Notepad's mark at a file's start would be part of the name.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read; two lines: the Wi-Fi's name, its passphrase"
        ) from error
    name, passphrase = [*lines, "", ""][:2]
    # In bytes: NetworkManager would pass over the whole file, and the card over the network.
    fits = 1 <= len(name.encode()) <= 32 and 8 <= len(passphrase.encode()) <= 63
    if len(lines) != 2 or not fits or any(c < " " or c == "\x7f" for c in name + passphrase):
        raise UsageError(
            f"{path}: two lines: the Wi-Fi's name, its passphrase (8 to 63 characters, those beyond "
            f"ASCII count twice or more; no tab)"
        )
    return name, passphrase


def parse_network(
    address: str | None, gateway: str | None, dns: Sequence[str], wifi: Path | None
) -> Network:
    """Check the options; raises UsageError naming the one that is wrong."""
    if address is None:
        if gateway or dns:
            raise UsageError("a gateway and name servers go with an address, such as 192.0.2.20/24")
        return Network(wifi=read_wifi(wifi) if wifi else None)
    if "/" not in address:
        raise UsageError(f"address {address!r} needs its network's length, such as 192.0.2.20/24")
    own = _parsed("address", address, ipaddress.ip_interface)
    if not _is_host(own):
        raise UsageError(f"address {own} is no host's; give one within its network")
    way = _parsed("gateway", gateway, ipaddress.ip_address) if gateway else None
    if way == own.ip:
        raise UsageError(f"gateway {way} is the node's own address; give the router's")
    if way is not None and way not in own.network:
        raise UsageError(f"gateway {way} does not lie in the network of {own}")
    servers = tuple(str(_parsed("dns", server, ipaddress.ip_address)) for server in dns)
    secret = read_wifi(wifi) if wifi else None
    return Network(str(own), str(way) if way is not None else None, servers, secret)


def _is_host(own: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
    """Tell whether one machine can have it: not the network's own, not for all or many in it."""
    ends = own.network[0], own.network[-1]
    whole = own.version == 4 and own.network.prefixlen < 31 and own.ip in ends
    return not (whole or own.ip.is_multicast or own.ip.is_unspecified or own.ip.is_loopback)


def _parsed(what: str, value: str, kind: Callable[[str], Parsed]) -> Parsed:
    """Parse a value: files are written from the result, never from the text. A zone (%eth0) could be
    any text and is refused."""
    try:
        if "%" in value:
            raise ValueError("without a zone")
        return kind(value)
    except ValueError as error:
        raise UsageError(f"{what} {value!r}: {error}; such as 192.0.2.20/24") from error


def _escaped(value: str) -> str:
    """Escape a string as GLib's key files want it."""
    return value.replace("\\", "\\\\").replace(" ", "\\s")


def _keyfile(network: Network) -> bytes:
    kind = "wifi" if network.wifi else "ethernet"
    lines = ["[connection]", "id=edge-node", f"uuid={uuid.uuid4()}", f"type={kind}"]
    lines += ["autoconnect-priority=10", ""]
    if network.wifi:
        name, passphrase = network.wifi
        # A name is read as a list of bytes where it holds ";", unless that is escaped for the list too.
        ssid = _escaped(name.replace(";", "\\;"))
        lines += ["[wifi]", f"ssid={ssid}", "", "[wifi-security]", "key-mgmt=wpa-psk"]
        lines += [f"psk={_escaped(passphrase)}", ""]
    for family in (4, 6):
        own = ipaddress.ip_interface(network.address) if network.address else None
        lines.append(f"[ipv{family}]")
        if own is None or own.version != family:
            lines += ["method=auto", ""]
            continue
        gateway = f",{network.gateway}" if network.gateway else ""
        lines += ["method=manual", f"address1={network.address}{gateway}"]
        servers = [s for s in network.dns if ipaddress.ip_address(s).version == family]
        lines += [f"dns={';'.join(servers)};", ""] if servers else [""]
    return "\n".join(lines).encode()


def _networkd(network: Network) -> bytes:
    lines = ["[Match]", "Name=en* eth*", "", "[Network]"]
    if network.address is None:
        lines.append("DHCP=yes")
    else:
        lines.append(f"Address={network.address}")
        lines += [f"Gateway={network.gateway}"] if network.gateway else []
        lines += [f"DNS={server}" for server in network.dns]
    return ("\n".join(lines) + "\n").encode()


def entries(tree: Tree, board: Board, network: Network) -> list[Entry]:
    """Return the files that set it up; raises EdgeError where the base has nothing that reads them."""
    if "network-manager" in board.packages:
        if network.is_default:
            return []
        return [File(f"{KEYFILES}/edge-node.nmconnection", _keyfile(network), 0o600)]
    if tree.kind(f"/usr{NETWORKD}") is None:
        if network.is_default:
            return []
        raise EdgeError(
            f"{tree.name} has neither NetworkManager nor systemd-networkd; set up its network there"
        )
    if network.wifi:
        raise EdgeError(f"{tree.name} has no NetworkManager, which Wi-Fi needs; use a wire")
    return [
        File("/etc/systemd/network/10-edge-node.network", _networkd(network)),
        Link(f"{WANTS}/systemd-networkd.service", NETWORKD),
        *(
            [File("/etc/resolv.conf", "".join(f"nameserver {s}\n" for s in network.dns).encode())]
            if network.dns and tree.kind("/etc/resolv.conf") == "file"
            else []
        ),
    ]

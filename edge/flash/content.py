"""What goes into one node's root file system: package, settings, name, user, network, certificates.

What must differ between nodes (host keys, machine id) is removed; each node makes its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge.base.errors import EdgeError, SettingsError, UsageError
from edge.base.legal import is_reason, not_a_reason
from edge.base.setting_types import CREDENTIALS
from edge.base.strict_yaml import read_yaml, validate
from edge.flash import ssh
from edge.flash.accounts import add_user, public_keys
from edge.flash.authority import Authority
from edge.flash.board import SETTINGS, Board
from edge.flash.network import WANTS, Network
from edge.flash.network import entries as network_entries
from edge.flash.package import BOOTSTRAP, PROVISION, Package
from edge.flash.tree import Absent, Entry, File, Folder, Link, Tree
from edge.flash.zone import entries as zone_entries
from edge.flash.zone import own_zone
from edge.settings import Settings

SECRETS = "/etc/edge-node"
UPDATES = "/var/lib/edge-update"
UNITS = "/etc/systemd/system"
# JetPack's interactive first boot, and the desktop that nobody sits at.
INTERACTIVE = (
    "nv-oem-config.service",
    "nv-oem-config-gui.service",
    "nv-oem-config-debconf@.service",
)
# Made anew at the next boot; the base's would be the same on every card.
OF_ONE_MACHINE = (
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/NetworkManager/secret_key",
)
HEADER = (
    "# yaml-language-server: $schema=/usr/share/edge-node/node.yaml.json\n"
    "# Written by edge-flash. Every setting: /usr/share/doc/edge-node/examples/node.yaml\n"
)


@dataclass(frozen=True, slots=True)
class Site:
    """What all nodes of a school have in common.

    authority: the folder of `edge-flash ca`, None where the broker asks for no certificate;
    release_key: public key that verifies updates; nvidia: folder of packages; renew: a node's name
    may have a valid certificate already; zone: an IANA name, None for node.yaml's, or else this
    machine's.
    """

    package: Package
    ssh_key: Path
    user: str = "technician"
    authority: Path | None = None
    release_key: Path | None = None
    nvidia: Path | None = None
    cpu: bool = False
    renew: bool = False
    zone: str | None = None


def node_settings(file: Path, names: dict[str, str], site: Site) -> tuple[dict[str, Any], Settings]:
    """Return node.yaml as this node gets it, as data and checked.

    names: site, room and name, which replace the file's. Raises SettingsError, also for settings that
    only a node in a school may not have.
    """
    data = read_yaml(file)
    update = data.get("update")
    if site.release_key is not None and isinstance(update, dict) and update.get("url"):
        update["key"] = f"{SECRETS}/release.pub"
    written = validate(Settings, data, str(file))  # its own faults first
    defaults: dict[str, dict[str, object]] = {
        "node": dict(names),
        "detector": {"weights": "/usr/share/edge-node/weights"},
        "runtime": {"bundle": f"{UPDATES}/bundle"},
    }
    for section, values in defaults.items():
        for key, value in values.items():
            if section == "node" or data.get(section, {}).get(key) is None:
                data.setdefault(section, {})[key] = value
    privacy = data.setdefault("privacy", {})
    if site.zone is not None or privacy.get("zone") is None:
        privacy["zone"] = site.zone or own_zone()
    broker = data.setdefault("broker", {})
    if site.authority is not None and written.broker.secure:
        broker["tls"] = {
            "ca": f"{SECRETS}/ca.pem",
            "certificate": f"{SECRETS}/node.pem",
            "key": f"{CREDENTIALS}/node.key",
        }
    settings = validate(Settings, data, str(file))
    _check_settings(settings, data, file, site)
    return data, settings


def _check_settings(settings: Settings, data: dict[str, Any], file: Path, site: Site) -> None:
    if not settings.privacy.legal_basis.strip():
        raise SettingsError(
            f"{file}: 'privacy.legal_basis' is empty: no node is flashed without it (AI Act, Article "
            f"5); write the medical or safety reason"
        )
    if not is_reason(settings.privacy.legal_basis):
        raise SettingsError(f"{file}: {not_a_reason(settings.privacy.legal_basis)}")
    if not settings.broker.urls:
        raise SettingsError(
            f"{file}: 'broker.url' is -; a node needs its school's mqtts:// address"
        )
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", host_name(settings)):
        raise SettingsError(
            f"{file}: 'node.room' and 'node.name' become the host name, {host_name(settings)}: at most "
            f"63 of a-z, 0-9 and '-', not at an end"
        )
    for key in ("site", "room", "name"):
        if key not in data.get("node", {}):
            raise SettingsError(
                f"{file}: 'node.{key}' is missing; topics and certificate are named by it"
            )
    secure = settings.broker.secure
    if secure and site.authority is None and settings.broker.tls.certificate is None:
        raise SettingsError(
            f"{file}: 'broker.url' is mqtts://; give the school's authority with --ca DIR"
        )
    if site.authority is not None and not secure:
        raise SettingsError(
            f"{file}: 'broker.url' is not mqtts://, and --ca is for that; change one"
        )
    if data.get("update", {}).get("url") and site.release_key is None:
        raise SettingsError(
            f"{file}: 'update.url' is set; give the key that signs with --release-key"
        )


def host_name(settings: Settings) -> str:
    """Return ROOM-NAME: another room on the same network may use the same name."""
    return f"{settings.node.room}-{settings.node.name}"


def _text(data: dict[str, Any]) -> bytes:
    return (HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)).encode()


def _hosts(tree: Tree, name: str) -> bytes:
    old = tree.read("/etc/hosts") or b"127.0.0.1 localhost\n::1 localhost\n"
    lines = [line for line in old.splitlines() if not line.startswith(b"127.0.1.1")]
    return b"\n".join([*lines, f"127.0.1.1 {name}".encode()]) + b"\n"


def _first_boot(tree: Tree) -> list[Entry]:
    """Nobody is asked anything, no desktop is started, and nothing is the same on two nodes."""
    found: list[Entry] = [
        Link(f"{UNITS}/default.target", "/lib/systemd/system/multi-user.target"),
        Link(f"{WANTS}/edge-provision.service", PROVISION),
        File("/etc/machine-id", b"", 0o444),
    ]
    # systemd would take the id from here.
    if tree.kind("/var/lib/dbus/machine-id") == "file":
        found.append(Absent("/var/lib/dbus/machine-id"))
    for unit in INTERACTIVE:
        if tree.kind(f"/usr/lib/systemd/system/{unit}") or tree.kind(f"{UNITS}/{unit}"):
            found.append(Link(f"{UNITS}/{unit}", "/dev/null"))
    if tree.kind(f"{UNITS}/nv-oem-config.target") is not None:
        found.append(Absent(f"{UNITS}/nv-oem-config.target"))
    for path in OF_ONE_MACHINE:
        if tree.kind(path) is not None:
            found.append(Absent(path))
    for name in tree.names("/etc/ssh"):
        if name.startswith("ssh_host_"):
            found.append(Absent(f"/etc/ssh/{name}"))
    return [*found, *ssh.entries(tree)]


def _clock(settings: Settings, now: int) -> list[Entry]:
    """A board without a battery starts from here instead of 1970, and asks the school's servers."""
    found: list[Entry] = [File("/var/lib/systemd/timesync/clock", b"", mtime=now)]
    if settings.clock.servers:
        line = f"[Time]\nNTP={' '.join(settings.clock.servers)}\n"
        found.append(File("/etc/systemd/timesyncd.conf.d/edge-node.conf", line.encode()))
    return found


def _packages(site: Site) -> list[Entry]:
    own = site.package
    found: list[Entry] = [
        # Under the name by which bootstrap and updates look for it.
        File(f"{UPDATES}/packages/edge-node_{own.version}_arm64.deb", own.path),
        File(BOOTSTRAP, own.bootstrap, 0o755),
        File(PROVISION, own.provision),
    ]
    if site.nvidia is not None:
        files = sorted(site.nvidia.glob("*.deb"))
        if not files:
            raise UsageError(
                f"--nvidia {site.nvidia} holds no .deb; give the folder with the packages"
            )
        found += [File(f"{UPDATES}/nvidia/{file.name}", file) for file in files]
    return found


def check_name_free(site: Site, node: str) -> None:
    """Raise EdgeError where the authority cannot be used, or the name has a valid certificate."""
    if site.authority is None:
        return
    listed = Authority.open(site.authority).listed()
    if not site.renew and any(e.name == node and state == "valid" for e, state in listed):
        raise EdgeError(
            f"{node} has a valid certificate; say --renew for one more, or revoke it (edge-flash ca)"
        )


def _apply(tree: Tree, entries: Sequence[Entry], site: Site, node: str) -> None:
    """Issue the certificate and write everything; revoke it where writing fails, since its key is then
    lost."""
    if site.authority is None:
        tree.apply(entries)
        return
    authority = Authority.open(site.authority)
    issued = authority.issue(node, renew=site.renew)
    certificates = [
        File(f"{SECRETS}/ca.pem", issued.authority),
        File(f"{SECRETS}/node.pem", issued.certificate),
        File(f"{SECRETS}/node.key", issued.key, 0o600),
    ]
    try:
        tree.apply([*entries, *certificates])
    except BaseException:
        authority.revoke(issued.entry.serial)
        raise


def _public_key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read; give a public key file") from error


def write_node(
    tree: Tree,
    board: Board,
    settings_file: Path,
    names: dict[str, str],
    network: Network,
    site: Site,
) -> Settings:
    """Write everything of one node into its root file system; return its settings.

    names: as for `node_settings`. Raises EdgeError where it cannot be, or would not fit, before
    anything is written.
    """
    now = int(time.time())
    data, settings = node_settings(settings_file, names, site)
    entries: list[Entry] = [
        *_packages(site),
        Folder(SECRETS),
        # A camera's password may stand in it; the package lets its service read it.
        File(SETTINGS, _text(data), 0o600, mtime=now),
        File("/etc/hostname", f"{host_name(settings)}\n".encode()),
        File("/etc/hosts", _hosts(tree, host_name(settings))),
        *add_user(tree, site.user, public_keys(_public_key(site.ssh_key), str(site.ssh_key))),
        *network_entries(tree, board, network),
        *_first_boot(tree),
        *_clock(settings, now),
        *zone_entries(tree, str(settings.privacy.zone)),
    ]
    if site.release_key is not None:
        key = _public_key(site.release_key)
        if "BEGIN PUBLIC KEY" not in key:
            raise UsageError(
                f"--release-key {site.release_key} is not a public key (PEM); give release.pub"
            )
        entries.append(File(f"{SECRETS}/release.pub", key.encode()))
    for entry in entries:
        tree.kind(entry.path)  # refuses a path that it cannot write, while nothing is spent
    _check_space(tree, entries)
    _apply(tree, entries, site, settings.node.path)
    return settings


def _check_space(tree: Tree, entries: Sequence[Entry]) -> None:
    wanted = sum(entry.size for entry in entries if isinstance(entry, File)) + 2**20
    free = tree.free_bytes()
    if wanted > free:
        raise EdgeError(
            f"{tree.name} has {free / 2**20:.0f} MiB free, and the node needs {wanted / 2**20:.0f}; "
            f"give a base image with a larger root partition"
        )

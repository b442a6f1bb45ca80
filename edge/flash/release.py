"""`edge-flash release`: what a school's nodes shall run next, as a signed folder to serve over HTTPS.

`release key` makes the Ed25519 pair; release.pub goes into each image, release.key stays here. `release
make` writes bundle and package, release.json and, last of all, its signature; `edge-update` takes it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from edge.base import cli
from edge.base.clock import rfc3339
from edge.base.errors import EdgeError, UsageError
from edge.base.files import sha256, write_atomically
from edge.flash.ext4 import run_tool
from edge.inference.bundle import load_bundle
from edge.update.release import MANIFEST, SIGNATURE, File, Refused, Release, parse

PEM = serialization.Encoding.PEM


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that was not there, never readable more widely than it will be."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def make_key(folder: Path) -> None:
    """Write release.key (0600) and release.pub, PEM; raises EdgeError where one of them is there."""
    for name in ("release.key", "release.pub"):
        if (folder / name).exists():
            raise EdgeError(
                f"{folder / name} is there: every node that was flashed with it trusts it alone; give "
                f"another folder for another key"
            )
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(parents=True, exist_ok=True)
    _write_new(folder / "release.key", private, 0o600)
    _write_new(folder / "release.pub", public, 0o644)


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key; raises EdgeError where it is none, or others may read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise EdgeError(f"{path} can be read by others; say `chmod 600 {path}`")
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror}); make one with `edge-flash release key DIR`"
        ) from error
    except (ValueError, TypeError) as error:
        raise EdgeError(f"{path} is not a private key; restore its backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EdgeError(f"{path} is not an Ed25519 key; make one with `edge-flash release key DIR`")
    return key


def pack_bundle(folder: Path) -> tuple[bytes, str]:
    """Pack a bundle as .tar, always the same bytes; also its version. Raises BundleError."""
    bundle = load_bundle(folder)
    entries = [*bundle.description.files.values(), bundle.description.known_answers.inputs]
    names = {"bundle.json", *(entry.name for entry in entries)}
    if (folder / "MODEL_CARD.md").is_file():
        names.add("MODEL_CARD.md")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(names):
            data = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)  # of nobody, at no time
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue(), bundle.sha256[:12]


def package_version(path: Path) -> str:
    """Return the version of an edge-node package for arm64; raises EdgeError where it is none."""
    form = "--showformat=${Package} ${Architecture} ${Version}"
    done = run_tool("dpkg-deb", "--show", form, str(path))
    name, architecture, version = [*done.stdout.split(), "", "", ""][:3]
    if (name, architecture) != ("edge-node", "arm64") or not version:
        raise EdgeError(f"{path} is not an edge-node package for arm64; build one with `make deb`")
    return version


def _file(kind: str, name: str, data: bytes, version: str) -> File:
    try:
        return File.model_validate(
            {
                "kind": kind,
                "name": name,
                "bytes": len(data),
                "sha256": sha256(data),
                "version": version,
            }
        )
    except ValidationError as error:
        raise EdgeError(f"{name} cannot be released: {error.errors()[0]['msg'].lower()}") from error


def make(
    key: Ed25519PrivateKey, out: Path, bundle: Path | None, package: Path | None, serial: int
) -> Release:
    """Write a release's folder, signature last. Raises UsageError, BundleError or EdgeError."""
    try:
        before = parse((out / MANIFEST).read_bytes()).serial
    except (FileNotFoundError, Refused):
        before = 0
    if serial <= before:
        raise UsageError(
            f"--serial must be above {before}, which {out} holds: nodes refuse it else"
        )
    contents: dict[str, bytes] = {}
    files = []
    if bundle:
        data, version = pack_bundle(bundle)
        contents[f"bundle-{version}.tar"] = data
        files.append(_file("bundle", f"bundle-{version}.tar", data, version))
    if package:
        version = package_version(package)
        # Named for what is in it: a node finds its way back by this name.
        name, data = f"edge-node_{version}_arm64.deb", package.read_bytes()
        contents[name] = data
        files.append(_file("package", name, data, version))
    if not files:
        raise UsageError("give --bundle, --package or both")
    release = Release(serial=serial, made=rfc3339(time.time()), files=files)
    text = json.dumps(release.model_dump(by_alias=True), indent=1).encode() + b"\n"
    for name, data in contents.items():
        write_atomically(out / name, data)
    # Between these two, a node that looks sees a signature that does not fit, and comes again.
    write_atomically(out / MANIFEST, text)
    write_atomically(out / SIGNATURE, key.sign(text))
    return release


def build_parser() -> argparse.ArgumentParser:
    """Return the command line with its sub-commands."""
    p = cli.parser(
        "edge-flash release",
        "Sign what a school's nodes shall run next; serve the folder over HTTPS (update.url).",
        "edge-flash release key keys\n"
        "  edge-flash release make --key keys/release.key --out /srv/edge --bundle bundle --serial 7",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="key|make")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=cli.EXIT_CODES,
            formatter_class=cli.Help,
            allow_abbrev=False,
        )

    k = add("key", "make release.key and release.pub")
    k.add_argument("folder", type=Path, metavar="DIR", help="for both files")
    m = add("make", "write a signed release")
    m.add_argument(
        "--key", type=Path, required=True, metavar="DIR/release.key", help="what signs it"
    )
    m.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to serve")
    m.add_argument("--bundle", type=Path, metavar="DIR", help="what export-model wrote")
    m.add_argument(
        "--package", type=Path, metavar="edge-node_X_arm64.deb", help="what `make deb` left"
    )
    m.add_argument("--serial", type=int, required=True, metavar="N", help="above the last one's")
    return p


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.command == "key":
        make_key(args.folder)
        print(f"{args.folder / 'release.key'}: keep it here, and a copy under lock")
        print(f"{args.folder / 'release.pub'}: goes into each image, update.key")
        return
    if args.serial < 1:
        raise UsageError("--serial must be 1 or more")
    release = make(read_key(args.key), args.out, args.bundle, args.package, args.serial)
    for file in release.files:
        print(f"{args.out / file.name}  {file.kind} {file.version}  sha256 {file.sha256}")
    print(f"{args.out / SIGNATURE}: release {release.serial} is signed")

"""`secagg roster`: who takes part, with which keys; changes are counted, chained and signed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from secagg.cli.keygen import ask, passphrase_file, read_passphrase
from secagg.errors import KeyFileError, RosterError
from secagg.keyfile import ConsortiumKey, is_encrypted, load_public, load_signer
from secagg.rosterfile import RosterFile, load

_file = click.argument("file", metavar="ROSTER", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


def _public_key(_context: click.Context, _option: click.Parameter, text: str | None) -> bytes | None:
    if text is None:
        return None
    if re.fullmatch("[0-9a-fA-F]{64}", text) is None:
        raise click.BadParameter("a public key is 64 hex digits")
    return bytes.fromhex(text)


@click.group()
def roster() -> None:
    """Change, sign and show a roster.

    Every change raises the roster's sequence number by one and drops its signature. Sites take only a roster that the consortium key,
    which they have pinned, has signed.

    Exit codes: 0 done; 1 a file cannot be read, trusted or written, or the change is not allowed; 2 wrong usage.
    """


@roster.command()
@_file
@click.argument("keys", metavar="PUB.json...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="These are new keys of parties on the roster; the old ones are retired.")
@_json
def add(*, file: Path, keys: tuple[Path, ...], replace: bool, as_json: bool) -> None:
    """Put public halves that `secagg keygen` made on a roster, in one change; it is made if there is none.

    Example: secagg roster add roster.json keys/client-3.pub.json
    """
    halves = []
    for path in keys:
        half = load_public(path)
        if isinstance(half, ConsortiumKey):
            raise KeyFileError(f"{path}: the consortium's key comes on the roster when it signs")
        halves.append(half)
    before = load(file, pinned=None) if file.exists() else RosterFile.empty()
    _change(file, before, lambda: before.add(*halves, replace=replace), as_json=as_json)


@roster.command()
@_file
@click.argument("client", metavar="ID", type=int)
@click.option("--left", is_flag=True, help="The site went; nothing is wrong with its key.")
@_json
def revoke(*, file: Path, client: int, left: bool, as_json: bool) -> None:
    """Take a client off the rounds; its key can never come back.

    Example: secagg roster revoke roster.json 3
    """
    before = load(file, pinned=None)
    _change(file, before, lambda: before.revoke(client, left=left), as_json=as_json)


@roster.command()
@_file
@click.option("--key", required=True, type=click.Path(path_type=Path), help="The consortium's private file.")
@click.option("--replace", is_flag=True, help="This is a new consortium key; the old one is retired.")
@passphrase_file
@_json
def sign(*, file: Path, key: Path, replace: bool, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign a roster with the consortium key. Look at `secagg roster show` first.

    Example: secagg roster sign roster.json --key keys/consortium.pem
    """
    before = load(file, pinned=None)
    passphrase = read_passphrase(passphrase_file)
    if passphrase is None and is_encrypted(key):
        passphrase = ask(f"Passphrase of {key}", twice=False)
    signer = load_signer(key, passphrase=passphrase)
    _change(file, before, lambda: before.sign(signer, replace=replace), as_json=as_json)


@roster.command()
@_file
@click.option(
    "--pinned",
    metavar="HEX",
    callback=_public_key,
    help="The consortium's public key; a roster that it did not sign is refused.",
)
@click.option(
    "--at-least", default=0, type=click.IntRange(min=0), help="Refuse a roster with a smaller sequence number."
)
@_json
def show(*, file: Path, pinned: bytes | None, at_least: int, as_json: bool) -> None:
    """Who is on a roster, and the fingerprint to compare by telephone.

    Example: secagg roster show roster.json --pinned $(jq -r .public_key consortium.pub.json)
    """
    found = load(file, pinned=pinned, at_least=at_least)
    if as_json:
        content = msgspec.to_builtins(found)
        del content["previous"]
        click.echo(json.dumps({"fingerprint": found.digest().hex(), "pinned": pinned is not None, **content}))
        return
    click.echo(f"{file}: sequence {found.sequence}, {_trust(found, pinned)}")
    click.echo(f"fingerprint  {_grouped(found.digest().hex())}")
    if found.consortium is not None:
        click.echo(f"consortium   {found.consortium}")
    for server in found.servers:
        click.echo(f"server {server.suite:<14} active   since {server.since:<5} {server.verify_key}  {server.name}")
    for member in found.members:
        click.echo(
            f"client {member.id:<14} {member.status:<8} since {member.since:<5} {member.public_key}  {member.name}"
        )
    for old in found.retired:
        click.echo(f"{old.owner:<21} retired  since {old.since:<5} {old.key[:64]}")


def _change(file: Path, before: RosterFile, change: Callable[[], RosterFile], *, as_json: bool) -> None:
    """Make a change, write it, and say what the roster is now; an error names the file."""
    try:
        after = change()
    except RosterError as error:
        raise RosterError(f"{file}: {error}") from None
    after.save(file)
    _report(file, before, after, as_json=as_json)


def _trust(found: RosterFile, pinned: bytes | None) -> str:
    if found.signature is None:
        return "not signed"
    return (
        "signed by the pinned key"
        if pinned is not None
        else "signed by the consortium key below, which is not pinned here"
    )


def _grouped(text: str) -> str:
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _report(file: Path, before: RosterFile, after: RosterFile, *, as_json: bool) -> None:
    active = sum(member.status == "active" for member in after.members)
    dropped = before.signature is not None and after.signature is None
    if as_json:
        state = {"sequence": after.sequence, "active": active, "signed": after.signature is not None}
        fingerprint = after.digest().hex()
        click.echo(json.dumps({"file": str(file), **state, "signature_dropped": dropped, "fingerprint": fingerprint}))
        return
    signed = "signed" if after.signature is not None else "not signed"
    click.echo(f"{file}: sequence {after.sequence}, {active} active clients, {signed}")
    if dropped:
        click.echo("the change dropped the signature: sign it again with `secagg roster sign`")
    click.echo(f"fingerprint  {_grouped(after.digest().hex())}")

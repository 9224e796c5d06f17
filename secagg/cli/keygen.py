"""`secagg keygen`: private keys that only their owner can read, and public halves to hand over."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from secagg.crypto.sealing import SUITES
from secagg.errors import KeyFileError
from secagg.files import check_private
from secagg.keyfile import PublicKey, create_client, create_consortium, create_server, public_path

PASSPHRASE_VARIABLE = "SECAGG_PASSPHRASE"  # noqa: S105 - a name
_MAX_PASSPHRASE = 1024

_Command = Callable[..., None]


@click.group()
def keygen() -> None:
    """Make the keys of a client, the server, or the consortium that signs the roster.

    A private file has mode 0600 and is encrypted under a passphrase: from --passphrase-file, from SECAGG_PASSPHRASE, or asked for; without
    one only with --no-passphrase. Its public half is written beside it, as NAME.pub.json.

    Exit codes: 0 done; 1 a file exists, or cannot be written, read or trusted; 2 wrong usage.
    """


def _common(stem: str) -> Callable[[_Command], _Command]:
    """The options that every kind of key has."""
    options = (
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=".",
            show_default=True,
            help=f"The private file, or the folder for {stem}.pem.",
        ),
        passphrase_file,
        click.option("--no-passphrase", is_flag=True, help="Do not encrypt the private file."),
        click.option("--force", is_flag=True, help="Replace files of these names; a key that they hold is lost."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


passphrase_file = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="A file with the passphrase on its only line, readable by you alone; or a pipe.",
)


@keygen.command()
@click.option("--id", "client", required=True, type=int, help="The client id, below 2**64 - 1.")
@click.option("--name", required=True, help="What people call the site.")
@_common("client-ID")
def client(*, client: int, name: str, out: Path, **options: Any) -> None:  # noqa: ANN401 - the common options
    """A client's signing key.

    Example: secagg keygen client --id 3 --name "St. Mary" --out keys/
    """
    path = _target(out, f"client-{client}.pem")
    _report(path, lambda **how: create_client(path, client, name, **how), **options)


@keygen.command()
@click.option("--suite", type=click.Choice(sorted(SUITES)), default="hybrid", show_default=True)
@click.option("--name", default="server", show_default=True, help="What people call the server.")
@_common("server-SUITE")
def server(*, suite: Literal["hybrid", "classical"], name: str, out: Path, **options: Any) -> None:  # noqa: ANN401
    """The server's signing key and sealing key.

    Example: secagg keygen server --suite hybrid --out keys/
    """
    path = _target(out, f"server-{suite}.pem")
    _report(path, lambda **how: create_server(path, suite, name, **how), **options)


@keygen.command()
@click.option("--name", default="consortium", show_default=True, help="What people call the consortium.")
@_common("consortium")
def consortium(*, name: str, out: Path, **options: Any) -> None:  # noqa: ANN401
    """The key that signs rosters; every site pins its public half.

    Example: secagg keygen consortium --out keys/
    """
    path = _target(out, "consortium.pem")
    _report(path, lambda **how: create_consortium(path, name, **how), **options)


def _target(out: Path, name: str) -> Path:
    return out / name if out.is_dir() else out


def _report(
    path: Path,
    create: Callable[..., PublicKey],
    *,
    passphrase_file: Path | None,
    no_passphrase: bool,
    force: bool,
    as_json: bool,
) -> None:
    passphrase = None if no_passphrase else _new_passphrase(passphrase_file)
    public = create(passphrase=passphrase, overwrite=force)
    fields = {name: getattr(public, name) for name in public.__struct_fields__ if name != "format"}
    if as_json:
        kind = type(public).__struct_config__.tag
        files = {"private": str(path), "public": str(public_path(path)), "encrypted": passphrase is not None}
        click.echo(json.dumps({"kind": kind, **fields, **files}))
        return
    click.echo(f"private   {path} (mode 0600, {'not ' if passphrase is None else ''}encrypted)")
    click.echo(f"public    {public_path(path)}: what `secagg roster add` takes")
    click.echo(f"key       {fields.get('public_key') or fields['verify_key']}")


def read_passphrase(path: Path | None) -> bytes | None:
    """The passphrase from a file, else from the environment, else None.

    Raises:
        KeyFileError: The file cannot be read, others can read it, it has more than a line, or the passphrase is empty.
    """
    if path is None:
        text = os.environ.get(PASSPHRASE_VARIABLE)
        if text == "":
            raise KeyFileError(f"{PASSPHRASE_VARIABLE} is set, and empty")
        return None if text is None else os.fsencode(text)
    try:
        with path.open("rb") as source:
            found = os.fstat(source.fileno())
            if stat.S_ISREG(found.st_mode):  # a pipe has no mode that matters
                check_private(path, found, KeyFileError)
            data = source.read(_MAX_PASSPHRASE + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or b"\n" in line or len(line) > _MAX_PASSPHRASE:
        raise KeyFileError(f"{path}: a passphrase is one line of 1 to {_MAX_PASSPHRASE} bytes")
    return line


def at_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def ask(text: str, *, twice: bool) -> bytes | None:
    """The passphrase that somebody types at the terminal, unseen; None where nobody sits."""
    if not at_terminal():
        return None
    return os.fsencode(click.prompt(text, hide_input=True, confirmation_prompt=twice, err=True))


def _new_passphrase(path: Path | None) -> bytes:
    passphrase = read_passphrase(path) or ask("Passphrase for the new key", twice=True)
    if passphrase is None:
        raise click.UsageError(
            f"no terminal to ask at: give --passphrase-file, {PASSPHRASE_VARIABLE} or --no-passphrase"
        )
    return passphrase

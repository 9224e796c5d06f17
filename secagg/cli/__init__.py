"""The `secagg` command: one module a subcommand."""

import sys

import click

from secagg.cli.bench import bench
from secagg.cli.keygen import keygen
from secagg.cli.roster import roster
from secagg.errors import SecaggError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secagg", message="%(prog)s %(version)s")
def cli() -> None:
    """Secure aggregation: the sum of many vectors, and nothing about any of them."""


cli.add_command(bench)
cli.add_command(keygen)
cli.add_command(roster)


def main() -> None:
    """Entry point: errors of ours are one line on standard error, exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SecaggError as error:
        click.echo(f"secagg: {error}", err=True)
        sys.exit(1)

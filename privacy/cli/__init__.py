"""The `privacy` command: one module a subcommand.

Results go to stdout, errors to stderr. Exit codes: 0 done; 1 a question without an answer, or wrong usage; 2 a ledger
that somebody changed.
"""

from collections.abc import Sequence

import click

from privacy.cli.epsilon import epsilon_command, noise_command
from privacy.cli.ledger import ledger_group
from privacy.cli.plan import plan_command
from privacy.errors import PrivacyError
from privacy.ledger.chain import ChainError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secagg", prog_name="privacy")
def cli() -> None:
    """Differential privacy under secure aggregation."""


cli.add_command(epsilon_command)
cli.add_command(noise_command)
cli.add_command(ledger_group)
cli.add_command(plan_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        cli.main(args=None if argv is None else list(argv), prog_name="privacy", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return 1
    except click.ClickException as error:  # click itself would exit 2, which here means that somebody changed a ledger
        error.show()
        return 1
    except ChainError as error:
        click.echo(f"privacy: tampered: {error}", err=True)
        return 2
    except PrivacyError as error:
        click.echo(f"privacy: {error}", err=True)
        return 1
    return 0

import pytest

from privacy.cli import main


@pytest.fixture
def call(capsys):
    """Runs the command: its exit code, stdout and stderr."""

    def run(*arguments):
        code = main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run

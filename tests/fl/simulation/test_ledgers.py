import fcntl
import logging
import threading
from contextlib import ExitStack

import pytest

from fl.errors import RunError
from fl.experiment import prepare
from fl.simulation import ledger_folder, open_ledgers
from privacy.errors import LedgerError
from privacy.ledger import Ledger

LOGGER = "fl.simulation.ledgers"


@pytest.fixture(scope="module")
def private(toy):
    """Record-level privacy at four sites."""
    return prepare(toy(private=True), "run-1")


def test_where_ledgers_live(monkeypatch, tmp_path):
    """$SECAGG_LEDGERS, else the state folder of the user, else its default place in the home folder."""
    monkeypatch.setenv("SECAGG_LEDGERS", str(tmp_path / "mine"))
    assert ledger_folder() == tmp_path / "mine"
    monkeypatch.delenv("SECAGG_LEDGERS")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert ledger_folder() == tmp_path / "state" / "secagg" / "ledgers"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_folder() == tmp_path / ".local" / "state" / "secagg" / "ledgers"


def test_a_ledger_is_its_data_sets(private, tmp_path):
    """One file for each table, named by its fingerprint, open for as long as the stack stands; none without privacy."""
    with ExitStack() as stack:
        opened = open_ledgers(private, tmp_path / "a", stack)
        assert {name: ledger.path.stem for name, ledger in opened.items()} == {
            name: site.fingerprint for name, site in private.train.items()
        }
        with pytest.raises(LedgerError, match="open"):
            Ledger(opened["east"].path)
    Ledger(opened["east"].path).close()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_without_privacy_there_is_none(toy, tmp_path):
    """A run without a plan has nothing to book, and makes no folder for it."""
    with ExitStack() as stack:
        assert open_ledgers(prepare(toy(), "run-1"), tmp_path / "ledgers", stack) == {}
    assert not (tmp_path / "ledgers").exists()


def test_waiting_is_said_and_has_an_end(private, tmp_path, monkeypatch, caplog):
    """While another process holds a data set a run waits, says so, and goes on; after the time-out it names the lock."""
    with ExitStack() as stack:
        open_ledgers(private, tmp_path, stack)
    lock = min(tmp_path.glob("*.lock"))
    held = lock.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    class Release(logging.Handler):
        def emit(self, record):  # noqa: ARG002 - the interface's
            threading.Thread(target=held.close).start()

    release = Release()
    logging.getLogger(LOGGER).addHandler(release)
    try:
        with ExitStack() as stack:
            assert len(open_ledgers(private, tmp_path, stack)) == 4
    finally:
        logging.getLogger(LOGGER).removeHandler(release)
        held.close()
    assert f"waiting for another run on the same data set ({lock})" in caplog.text
    monkeypatch.setattr(f"{LOGGER}.TURN_TIMEOUT_S", 0.1)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with ExitStack() as stack, pytest.raises(RunError, match=rf"{lock.name}: another run has held this data set"):
            open_ledgers(private, tmp_path, stack)


def test_a_folder_that_cannot_be_made_is_named(private, tmp_path):
    """A file in the folder's place is an error that names it."""
    (tmp_path / "ledgers").write_text("x")
    with ExitStack() as stack, pytest.raises(RunError, match="ledgers: cannot be created"):
        open_ledgers(private, tmp_path / "ledgers", stack)

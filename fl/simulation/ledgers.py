"""The ledgers of the simulated sites' data sets: where they live, and whose turn it is to write them."""

import fcntl
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from fl.errors import RunError
from fl.experiment import Experiment
from privacy.ledger import Ledger

_LOG = logging.getLogger(__name__)
TURN_TIMEOUT_S = 600.0  # how long a run waits for another one on the same data


def ledger_folder() -> Path:
    """Where the data sets' ledgers live, outside any run: $SECAGG_LEDGERS, or secagg/ledgers in the user's state folder."""
    chosen = os.environ.get("SECAGG_LEDGERS")
    if chosen:
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "secagg" / "ledgers"


def open_ledgers(experiment: Experiment, folder: Path, stack: ExitStack) -> dict[str, Ledger]:
    """Open each site's ledger of its data set, by site name, for as long as the stack stands; none without privacy.

    A ledger has one writer. A run on the same data waits for its turn, in one order for all, so that nobody waits for
    each other. Sites that hold the same table have a ledger each, as they would in their own houses.

    Raises:
        LedgerError: a ledger cannot be trusted or opened.
        RunError: the folder cannot be created.
    """
    if experiment.agreement.plan is None or not experiment.parties:
        return {}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be created: {error.strerror}") from error
    stems: dict[str, str] = {}
    holders: Counter[str] = Counter()
    for name, site in experiment.train.items():
        holders[site.fingerprint] += 1
        stems[name] = site.fingerprint + (f"-{holders[site.fingerprint]}" if holders[site.fingerprint] > 1 else "")
    opened: dict[str, Ledger] = {}
    for name in sorted(stems, key=stems.__getitem__):
        stack.enter_context(_turn(folder / f"{stems[name]}.lock"))
        opened[name] = stack.enter_context(Ledger(folder / f"{stems[name]}.jsonl"))
    return opened


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for it if another process has it."""
    try:
        file = path.open("w")
    except OSError as error:
        raise RunError(f"{path}: cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("waiting for another run on the same data set (%s)", path)
            _wait_for(file, path)
        yield


def _wait_for(file: IO[str], path: Path) -> None:
    deadline = time.monotonic() + TURN_TIMEOUT_S
    while True:
        time.sleep(0.05)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunError(f"{path}: another run has held this data set for {TURN_TIMEOUT_S:.0f} s") from None
        else:
            return

"""A whole consortium in one process: the sites, the server, planned silences, and what only a simulation may look at."""

from fl.simulation.consortium import Consortium
from fl.simulation.ledgers import ledger_folder, open_ledgers
from fl.simulation.runs import RunResult, resume, run

__all__ = ["Consortium", "RunResult", "ledger_folder", "open_ledgers", "resume", "run"]

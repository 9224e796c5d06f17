"""What was spent, on which data set or in which run: canonical lines in a hash chain, reserved before and committed after."""

from privacy.ledger.book import Ledger, Reservation
from privacy.ledger.compare import Comparison, Finding, compare, witness
from privacy.ledger.spend import Difference, LedgerTotal
from privacy.ledger.totals import DataSetTotal, total_of
from privacy.ledger.verify import LedgerReport, Signature, read_entries, verify

__all__ = [
    "Comparison",
    "DataSetTotal",
    "Difference",
    "Finding",
    "Ledger",
    "LedgerReport",
    "LedgerTotal",
    "Reservation",
    "Signature",
    "compare",
    "read_entries",
    "total_of",
    "verify",
    "witness",
]

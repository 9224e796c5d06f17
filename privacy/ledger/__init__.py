"""What was spent, on which data set or in which run: canonical lines in a hash chain, reserved before and committed after."""

from privacy.ledger.book import Ledger, LedgerReport, Reservation, read_entries, verify
from privacy.ledger.replay import Difference, LedgerTotal

__all__ = ["Difference", "Ledger", "LedgerReport", "LedgerTotal", "Reservation", "read_entries", "verify"]

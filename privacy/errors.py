"""One exception tree: what was refused, and who must act."""


class PrivacyError(Exception):
    """Anything that this package refuses."""


class PlanError(PrivacyError):
    """A privacy plan that is contradictory or cannot be carried out; the message has the numbers."""


class InputError(PrivacyError):
    """Data that may not be clipped, encoded or noised; the message names the leaf or field."""


class AccountingError(PrivacyError):
    """A question to the accountant that has no sound answer, or routes that contradict each other."""


class BudgetExceededError(PrivacyError):
    """The next release would pass the budget; nothing was spent."""


class LedgerError(PrivacyError):
    """A ledger that cannot be trusted or written; the message names the file and line."""


class SamplerError(PrivacyError):
    """The noise sampler cannot give the law that was asked for."""

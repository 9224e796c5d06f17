"""One exception tree for the federated-learning side; each message names the file, key, row, leaf or site."""


class FlError(Exception):
    """Anything that this package refuses; the command line prints it without a traceback."""


class ConfigError(FlError):
    """A configuration that is unknown, mistyped or contradictory; the message names the key."""


class DataError(FlError):
    """A table that is not what its schema says; the message names file, row and column."""


class ModelError(FlError):
    """A model whose leaves cannot be exchanged, or that differs between parties; the message names the leaf."""


class RoundFailedError(FlError):
    """A round that could not be completed; what was committed before it stands."""


class RunStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM reached a run: what was committed stands, and `fl resume` goes on from it."""


class RunError(FlError):
    """A run folder that cannot be created, read or continued; the message names the path."""

"""A simulated network clock: the time that a round would take between organisations, from its bytes and seconds.

The model. Each client has a link (bits per second each way, and a latency) and a computer (times as fast as the one that
measured). A phase of the protocol is one exchange with all who are still there: the server sends, each client receives,
computes and answers, and the server goes on when the last answer is in, or at the deadline. So a client's phase takes

    latency · 2 + 8 · bytes down / download + seconds / speed · straggling + 8 · bytes up / upload,

and the exchange takes the largest of these, or the deadline, after which those that were late are gone. The server's own
seconds come on top. Straggling is log-normal, drawn anew for each client and phase: its median is 1.

What it leaves out. The server's link is not shared: all transfers run side by side at the client's own rate, so a server
with a narrow link is slower than this. No packet is lost, nothing is slow to start, frames are not pipelined, and bytes
and seconds are those that are given: bytes of the median client, where only sums over clients are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fl.errors import ConfigError

Floats: TypeAlias = npt.NDArray[np.float64]

_STREAM = 0x6E657477  # sets this stream apart from every other use of a seed


@dataclass(frozen=True)
class Consortium:
    """Links and computers of n clients; what is one number is the same for all.

    Attributes:
        upload: (n,) bit/s from a client.
        download: (n,) bit/s to a client.
        latency_s: (n,) seconds one way.
        speed: (n,) how many times as fast as the computer that measured the seconds.
        straggling: Sigma of the log-normal factor on a client's computing time; 0: none.
        deadline_s: Seconds after which a phase goes on without those that are late, or None: everybody is waited for.
        seed: Of the straggling.

    Raises:
        ConfigError: a number is out of range, or the arrays have different lengths.
    """

    upload: Floats
    download: Floats
    latency_s: Floats
    speed: Floats
    straggling: float = 0.0
    deadline_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("upload", False), ("download", False), ("latency_s", True), ("speed", False)):
            values = np.atleast_1d(np.asarray(getattr(self, name), np.float64))
            if (
                values.ndim != 1
                or not np.isfinite(values).all()
                or (values < 0).any()
                or (not least and (values == 0).any())
            ):
                raise ConfigError(
                    f"network.{name}: {'0 or more' if least else 'positive'} and finite, one for each client"
                )
            object.__setattr__(self, name, values)
        lengths = {len(each) for each in (self.upload, self.download, self.latency_s, self.speed)} - {1}
        if len(lengths) > 1:
            raise ConfigError(f"network: values for {' and for '.join(map(str, sorted(lengths)))} clients")
        if not 0 <= self.straggling < np.inf:
            raise ConfigError(f"network.straggling = {self.straggling} is not 0 or more")
        if self.deadline_s is not None and not 0 < self.deadline_s < np.inf:
            raise ConfigError(f"network.deadline_s = {self.deadline_s} is not positive")


@dataclass(frozen=True)
class Exchange:
    """What one phase of a round moves and computes.

    Attributes:
        down: Bytes to each client, one number or (n,).
        up: Bytes from each client, likewise.
        client_s: Seconds that a client computes, as measured, likewise.
        server_s: Seconds that the server computes.
    """

    down: npt.ArrayLike = 0
    up: npt.ArrayLike = 0
    client_s: npt.ArrayLike = 0.0
    server_s: float = 0.0


@dataclass(frozen=True)
class RoundTime:
    """How long a round takes.

    Attributes:
        seconds: In all.
        phases: Seconds of each phase, the server's own included.
        late: Client → the phase at whose deadline it was gone.
        slowest: Phase → the client that was waited for; None where the deadline ended it or nobody was left.
    """

    seconds: float
    phases: Mapping[str, float]
    late: Mapping[int, str]
    slowest: Mapping[str, int | None]


def round_time(
    consortium: Consortium, exchanges: Mapping[str, Exchange], clients: int, *, number: int = 0
) -> RoundTime:
    """The simulated time of a round.

    Args:
        consortium: Links and computers.
        exchanges: By phase, in order.
        clients: n.
        number: The round, which sets its straggling.

    Raises:
        ConfigError: the consortium, or an exchange, is described for another number of clients.

    Guarantees:
        A function of its arguments alone: the same seed and round straggle in the same way, whoever was late before.
        A client that was late is in no later phase.
    """
    stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([_STREAM, consortium.seed, number])))
    there = np.ones(clients, bool)
    phases: dict[str, float] = {}
    late: dict[int, str] = {}
    slowest: dict[str, int | None] = {}
    for phase, exchange in exchanges.items():
        factor = np.exp(consortium.straggling * stream.standard_normal(clients))
        seconds = _seconds(consortium, exchange, clients, factor)
        missed = np.zeros(clients, bool)
        if consortium.deadline_s is not None:
            missed = there & (seconds > consortium.deadline_s)
        waited = there & ~missed
        late |= dict.fromkeys(np.flatnonzero(missed).tolist(), phase)
        last = int(np.argmax(np.where(waited, seconds, -1.0))) if waited.any() else None
        slowest[phase] = None if missed.any() else last
        waiting = 0.0 if last is None else float(seconds[last])
        if missed.any() and consortium.deadline_s is not None:
            waiting = consortium.deadline_s
        phases[phase] = waiting + exchange.server_s
        there = waited
    return RoundTime(sum(phases.values()), phases, late, slowest)


def _seconds(consortium: Consortium, exchange: Exchange, clients: int, factor: Floats) -> Floats:
    """Seconds of each client's part in a phase (n,)."""
    download, upload, latency, speed = (
        _each(name, getattr(consortium, name), clients) for name in ("download", "upload", "latency_s", "speed")
    )
    down, up, computing = (_each(name, getattr(exchange, name), clients) for name in ("down", "up", "client_s"))
    return 2 * latency + 8 * down / download + computing / speed * factor + 8 * up / upload


def _each(name: str, values: npt.ArrayLike, clients: int) -> Floats:
    array = np.asarray(values, np.float64)
    if array.shape not in {(), (1,), (clients,)}:
        raise ConfigError(f"network: {name} has shape {list(array.shape)}, and there are {clients} clients")
    return np.broadcast_to(array, (clients,))

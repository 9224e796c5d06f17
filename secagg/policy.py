"""What a client agrees to: the limits within which it takes part in a round that a server proposes.

The server proposes `RoundParams`; whatever is in there is checked against the policy before the client draws its first secret. A policy is
the client's own: nothing in it comes from the server.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from secagg.crypto.sealing import SERVER_ID, SUITES
from secagg.errors import ParameterError, PolicyError, shown
from secagg.guard import Guard, RoundLimit, check_limits
from secagg.params import Block, RoundParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """Limits on the rounds that a client takes part in. None: no limit beyond what `RoundParams` itself refuses.

    Any collection that is not text does for a set, and a list for a tuple; they are copied.

    Attributes:
        min_cohort: Fewest clients in a cohort.
        known_peers: Client ids that this client has a reason to trust to be somebody else's; None: everybody on its roster.
        min_known_peers: Fewest of them in the cohort, this client not counted. A server can put its own clients beside it. None: as
            many as make the known ones and this client reach `min_cohort`.
        min_threshold: Smallest Shamir threshold t.
        min_survivors: Fewest vectors that a sum may contain; None: the round's own, which is at least its quorum.
        min_colluders: Fewest corrupt clients, c, that the round must withstand.
        suites: Allowed suites.
        adversaries: Allowed kinds of server that the round withstands.
        allow_sparse: Whether a sparse graph, experimental against a lying server, is allowed.
        blocks: Exactly the blocks that this client sums; None: any.
        max_rounds: Most rounds in this client's life, as its guard remembers them.
        max_rate: (rounds, seconds): most rounds in any stretch of time of that length.

    Raises:
        ParameterError: A limit that means nothing, or a value of another kind; has the field and the value.

    Guarantees:
        A round outside any one limit is refused, with the limit's name.
        A policy that was made has only values of the documented kinds.
    """

    min_cohort: int = 3
    known_peers: frozenset[int] | None = None
    min_known_peers: int | None = None
    min_threshold: int = 2
    min_survivors: int | None = None
    min_colluders: int = 0
    suites: frozenset[str] = frozenset({"hybrid"})
    adversaries: frozenset[str] = frozenset({"lying"})
    allow_sparse: bool = False
    blocks: tuple[Block, ...] | None = None
    max_rounds: int | None = None
    max_rate: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_cohort", 3), ("min_threshold", 2), ("min_colluders", 0)):
            _require_count(name, getattr(self, name), least)
        for name in ("min_known_peers", "min_survivors", "max_rounds"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name), 0)
        for name, known in (("suites", set(SUITES)), ("adversaries", {"lying", "curious"})):
            self._keep(name, _check_names(name, getattr(self, name), known))
        if not isinstance(self.allow_sparse, bool):
            raise ParameterError(f"policy allow_sparse must be True or False, not {self.allow_sparse!r}")
        if self.known_peers is not None:
            self._keep("known_peers", _check_peers(self.known_peers))
        if self.blocks is not None:
            self._keep("blocks", _check_blocks(self.blocks))
        if self.max_rate is not None:
            self._keep("max_rate", _check_rate(self.max_rate))

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def round_limits(self) -> tuple[RoundLimit, ...]:
        """`max_rounds` and `max_rate` as a guard checks them in the moment in which it counts a round."""
        limits = []
        if self.max_rounds is not None:
            limits.append(RoundLimit("max_rounds", self.max_rounds, math.inf))
        if self.max_rate is not None:
            limits.append(RoundLimit("max_rate", *self.max_rate))
        return tuple(limits)

    def check(self, params: RoundParams, client: int, roster: Mapping[int, bytes], guard: Guard | None = None) -> None:
        """Return if this client may take part in a round.

        Of the limits on rounds this is a first look: a session that was allowed here counts only once it starts, and gives
        `round_limits` to its guard then.

        Args:
            params: What the server proposes.
            client: This client's id.
            roster: Client id → identity key, as this client has pinned them.
            guard: What this client has done before; needed where the policy limits the number or the rate of rounds.

        Raises:
            PolicyError: It may not; `rule` names the limit, the message has the numbers.
            ParameterError: The policy limits rounds and there is no guard to count them.
        """
        self._check_cohort(params, client, roster)
        limits = (
            ("min_threshold", params.threshold, self.min_threshold),
            ("min_survivors", params.min_survivors, self.min_survivors or 0),
            ("min_colluders", params.colluders, self.min_colluders),
        )
        for rule, proposed, least in limits:
            if proposed < least:
                raise PolicyError(rule, f"{proposed} are proposed, at least {least} are needed")
        if params.suite not in self.suites:
            raise PolicyError("suites", f"suite {params.suite!r} is proposed, {sorted(self.suites)} are allowed")
        if params.adversary not in self.adversaries:
            message = f"a round against a {params.adversary} server is proposed, {sorted(self.adversaries)} are allowed"
            raise PolicyError("adversaries", message)
        if not params.complete and not self.allow_sparse:
            raise PolicyError("allow_sparse", f"a sparse graph of degree {params.degree} is proposed")
        self._check_blocks(params)
        self._check_frequency(guard)

    def _check_cohort(self, params: RoundParams, client: int, roster: Mapping[int, bytes]) -> None:
        if client not in params.cohort:
            raise PolicyError("cohort", f"client {client} is not in it")
        strangers = [i for i in params.cohort if i not in roster]
        if strangers:
            raise PolicyError("cohort", f"clients {shown(strangers)} are not on the roster")
        if len(params.cohort) < self.min_cohort:
            raise PolicyError(
                "min_cohort", f"{len(params.cohort)} clients are proposed, at least {self.min_cohort} are needed"
            )
        known = set(params.cohort) & (set(roster) if self.known_peers is None else self.known_peers) - {client}
        least = self.min_cohort - 1 if self.min_known_peers is None else self.min_known_peers
        if len(known) < least:
            raise PolicyError(
                "min_known_peers", f"{len(known)} known peers are in the cohort, at least {least} are needed"
            )

    def _check_blocks(self, params: RoundParams) -> None:
        if self.blocks is None or params.blocks == self.blocks:
            return
        agreed, proposed = {block.name: block for block in self.blocks}, {block.name: block for block in params.blocks}
        for name in [*agreed, *proposed]:
            if agreed.get(name) != proposed.get(name):
                message = f"block {name!r}: {proposed.get(name)} is proposed, {agreed.get(name)} is agreed"
                raise PolicyError("blocks", message)
        raise PolicyError("blocks", f"the order {list(proposed)} is proposed, {list(agreed)} is agreed")

    def _check_frequency(self, guard: Guard | None) -> None:
        limits = self.round_limits
        if limits and guard is None:
            raise ParameterError("a policy that limits rounds needs a guard that remembers them")
        if guard is not None:
            check_limits(guard, limits)


def _check_names(name: str, value: object, known: set[str]) -> frozenset[str]:
    names = _members(value)
    if not names or not all(isinstance(each, str) and each in known for each in names):
        raise ParameterError(f"policy {name}: a set of some of {sorted(known)} is needed, not {value!r}")
    return frozenset(map(str, names))


def _check_peers(value: object) -> frozenset[int]:
    members, peers = _members(value), set[int]()
    if members is None:
        raise ParameterError(f"policy known_peers: a set of client ids is needed, not {value!r}")
    for peer in members:
        if isinstance(peer, bool) or not isinstance(peer, int) or not 0 <= peer < SERVER_ID:
            raise ParameterError(f"policy known_peers: {peer!r} is not a client id, an integer in 0..{SERVER_ID - 1}")
        peers.add(peer)
    return frozenset(peers)


def _check_blocks(value: object) -> tuple[Block, ...]:
    members = None if isinstance(value, AbstractSet) else _members(value)  # their order matters
    blocks = tuple(block for block in members or () if isinstance(block, Block))
    if not blocks or len(blocks) != len(members or ()) or len({block.name for block in blocks}) != len(blocks):
        raise ParameterError(f"policy blocks: a sequence of blocks with different names is needed, not {value!r}")
    return blocks


def _check_rate(value: object) -> tuple[int, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ParameterError(f"policy max_rate: a pair (rounds, seconds) is needed, not {value!r}")
    rounds, seconds = value
    if not _is_count(rounds, 1):
        raise ParameterError(f"policy max_rate: rounds = {rounds!r} must be an integer of at least 1")
    # An integer may be beyond every float, and yet below infinity.
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= sys.float_info.max:
        raise ParameterError(f"policy max_rate: seconds = {seconds!r} must be a positive number")
    return rounds, float(seconds)


def _members(value: object) -> Sequence[object] | None:
    """What a collection has; None for what is none, text among it, whose members are its letters."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, AbstractSet | Sequence):
        return None
    return tuple(value)


def _require_count(name: str, value: object, least: int) -> None:
    if not _is_count(value, least):
        raise ParameterError(f"policy {name} must be an integer of at least {least}, not {value!r}")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

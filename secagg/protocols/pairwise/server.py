"""The server's side of one round: it buffers one frame a client and phase, and steps when the phase is closed."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from secagg.crypto import prg
from secagg.errors import DecodeError, DisputeError, ParameterError, PeerFault, SecaggError, StateError
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import advertise, confirm, mask, share, unmask
from secagg.protocols.pairwise.advertise import Advertisers
from secagg.protocols.pairwise.confirm import Confirmed
from secagg.protocols.pairwise.mask import MaskedSum
from secagg.protocols.pairwise.parties import Answers, Host, Redacted, Rejected
from secagg.protocols.pairwise.share import Sharers

_State = Host | Advertisers | Sharers | MaskedSum | Confirmed


@dataclasses.dataclass(frozen=True)
class Result:
    """How a round ended.

    Attributes:
        sums: `{block name: int64 (length,)}`: the exact sum over `survivors`.
        survivors: U3, the clients whose vectors are in the sum.
        dropped: Every client that fell silent or was rejected, with the phase from which it is missing.
        rejected: Why a client's answer was not taken, where one came.
        disputed: Clients taken out of the sum to end a dispute.
        transcript: T1, 32 bytes.
        signatures: The survivors' signatures over (T1, U2, U3), 64 bytes each.
        sharers: U2; with the transcript and the survivors, what was signed.
    """

    sums: dict[str, npt.NDArray[np.int64]]
    survivors: tuple[int, ...]
    dropped: dict[int, str]
    rejected: dict[int, SecaggError]
    disputed: tuple[int, ...]
    transcript: bytes
    signatures: dict[int, bytes]
    sharers: tuple[int, ...]


class ServerSession(Redacted):
    """The server in one round.

    Feed it with `receive`, close each phase with `close_phase`, deliver the answers; after the fifth, `result` has the sum.

    Args:
        params: The round.
        identity: The server's keys.
        roster: Everybody's public keys.

    Raises:
        ParameterError: The roster does not fit the identity, the cohort or the suite.
    """

    def __init__(self, params: RoundParams, identity: ServerIdentity, roster: Roster) -> None:
        prg.self_test()
        missing = [i for i in params.cohort if i not in roster.clients]
        if missing:
            raise ParameterError(f"clients {missing} of the cohort are not on the roster")
        if (roster.server_verify_key, roster.server_sealing_key) != (identity.verify_key, identity.sealing_key):
            raise ParameterError("the roster has other keys for the server than its own")
        self._params = params
        self._state: _State | None = Host(params, identity, roster)
        if len(identity.sealing_key) != self._state.suite.public_key_length:
            raise ParameterError(f"the server's key is not for suite {params.suite!r}")
        self._inbox: dict[int, bytes] = {}
        self._turned_away: Rejected = {}
        self._phase = 0
        self._expected: tuple[int, ...] = params.cohort
        self._dropped: dict[int, str] = {}
        self._rejected: Rejected = {}
        self._result: Result | None = None

    @property
    def phase(self) -> str | None:
        """The exchange whose client frames are awaited, or None when the round is over."""
        return None if self._state is None else PHASES[self._phase]

    @property
    def expected(self) -> tuple[int, ...]:
        """The clients that may still answer."""
        return self._expected

    def open(self) -> Answers:
        """What tells each client that the round begins: the canonical encoding of its parameters."""
        return dict.fromkeys(self._params.cohort, self._params.encode())

    def receive(self, sender: int, frame: bytes) -> None:
        """Buffers a frame for the current phase.

        Raises:
            StateError: The round is over.
            PeerFault: A second frame of one sender, or a frame of one that is not expected (any more).
            DecodeError: Not bytes, empty, or not a frame of this exchange, round and sender.
        """
        if self._state is None:
            raise StateError("the round is over")
        if sender not in self._expected:
            raise PeerFault(sender, f"is not expected in phase {self.phase}")
        if sender in self._inbox:
            raise PeerFault(sender, f"answered twice in phase {self.phase}")
        if not isinstance(frame, bytes) or not frame:
            raise DecodeError(f"client {sender} answered without content in phase {self.phase}")
        try:
            self._glance(self._state, sender, frame)
        except DecodeError as error:
            self._turned_away[sender] = error
            raise
        self._inbox[sender] = frame

    @staticmethod
    def _glance(state: _State, sender: int, frame: bytes) -> None:
        """A frame of another exchange or session is turned away at the door, where it would displace the right one."""
        match state:
            case Host():
                advertise.glance(state, sender, frame)
            case Advertisers():
                share.glance(state, sender, frame)
            case Sharers():
                mask.glance(state, sender, frame)
            case MaskedSum():
                confirm.glance(state, sender, frame)
            case Confirmed():
                unmask.glance(state, sender, frame)

    def close_phase(self) -> Answers:
        """Ends the phase with whoever answered; the answers to deliver, empty after the last.

        Raises:
            RoundError: The round cannot go on; the session is spent.
            PeerFault: A client is provably corrupt in a way that ends the round; the session is spent.
            StateError: The round is over.
        """
        state, self._state = self._state, None
        phase, inbox, self._inbox = PHASES[self._phase], self._inbox, {}
        answers: Answers
        rejected: Rejected
        match state:
            case Host():
                self._state, answers, rejected = advertise.collect(state, inbox)
            case Advertisers():
                self._state, answers, rejected = share.collect(state, inbox)
            case Sharers():
                masked, answers, rejected = mask.collect(state, inbox)
                rejected |= {
                    client: DisputeError((client, *others), "dropped the first to end the dispute between them")
                    for client, others in masked.disputed.items()
                }
                self._state = masked
            case MaskedSum():
                self._state, answers, rejected = confirm.collect(state, inbox)
            case Confirmed():
                unmasked, rejected = unmask.collect(state, inbox)
                answers = {}
                self._note(phase, tuple(i for i in inbox if i not in rejected), rejected)
                self._result = self._summary(state, unmasked)
                return answers
            case None:
                raise StateError("the round is over")
        self._note(phase, tuple(answers), rejected)
        self._phase += 1
        return answers

    def _note(self, phase: str, alive: tuple[int, ...], rejected: Mapping[int, SecaggError]) -> None:
        self._dropped |= dict.fromkeys((i for i in self._expected if i not in alive), phase)
        silent_but_heard = {i: error for i, error in self._turned_away.items() if i not in alive}
        self._rejected |= silent_but_heard | dict(rejected)
        self._turned_away = {}
        self._expected = alive

    def _summary(self, confirmed: Confirmed, unmasked: unmask.Unmasked) -> Result:
        masked = confirmed.masked
        return Result(
            sums=unmasked.sums,
            survivors=unmasked.survivors,
            dropped=dict(sorted(self._dropped.items())),
            rejected=dict(self._rejected),
            disputed=tuple(masked.disputed),
            transcript=masked.view.transcript,
            signatures=confirmed.signatures,
            sharers=masked.sharers.members,
        )

    @property
    def result(self) -> Result:
        """The sum and who is in it.

        Raises:
            StateError: The round has not ended with one.
        """
        if self._result is None:
            raise StateError("the round has no result (yet)")
        return self._result

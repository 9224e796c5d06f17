"""The server's side of one round: it takes each frame as it arrives, and steps when the phase is closed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secagg import messages
from secagg.crypto import prg
from secagg.errors import (
    DeclinedError,
    DecodeError,
    LocalError,
    ParameterError,
    PeerFault,
    RoundError,
    SecaggError,
    StateError,
    UnexpectedFrameError,
    shown,
)
from secagg.identity import Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise.advertise import CollectingAdvertisements
from secagg.protocols.pairwise.confirm import CollectingSignatures
from secagg.protocols.pairwise.mask import CollectingVectors, MaskedSum
from secagg.protocols.pairwise.parties import Answers, Host, Redacted, Rejected
from secagg.protocols.pairwise.share import CollectingShares
from secagg.protocols.pairwise.unmask import CollectingAnswers
from secagg.spool import FileSpool, Spool

_Phase = CollectingAdvertisements | CollectingShares | CollectingVectors | CollectingSignatures | CollectingAnswers


def _read(state: _Phase, phase: str, sender: int, frame: bytes) -> messages.Unverified[Any]:
    if not isinstance(frame, bytes) or not frame:
        raise DecodeError(f"client {sender} answered without content in phase {phase}")
    return state.read(sender, frame)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a round ended.

    Attributes:
        sums: `{block name: int64 (length,)}`: the exact sum over `survivors`.
        survivors: U3, the clients whose vectors are in the sum.
        dropped: Every client that fell silent or was rejected, with the phase from which it is missing.
        rejected: Why a client's answer was not taken, or its vector was taken out of the sum again, where one came.
        transcript: T1, 32 bytes.
        signatures: The survivors' signatures over (T1, U2, U3), 64 bytes each.
        sharers: U2; with the transcript and the survivors, what was signed.
    """

    sums: dict[str, npt.NDArray[np.int64]]
    survivors: tuple[int, ...]
    dropped: dict[int, str]
    rejected: dict[int, SecaggError]
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
        spool: Where masked vectors wait until U3 is fixed. None: a temporary file, so that memory does not grow with the cohort.

    Raises:
        ParameterError: The roster does not fit the identity, the cohort or the suite.

    Guarantees:
        A frame that is not provably its sender's changes nothing; the sender's right frame is still taken.
        No sum leaves that is not over exactly the survivors.
    """

    def __init__(
        self, params: RoundParams, identity: ServerIdentity, roster: Roster, *, spool: Spool | None = None
    ) -> None:
        prg.self_test()
        missing = [i for i in params.cohort if i not in roster.clients]
        if missing:
            raise ParameterError(f"clients {shown(missing)} of the cohort are not on the roster")
        if (roster.server_verify_key, roster.server_sealing_key) != (identity.verify_key, identity.sealing_key):
            raise ParameterError("the roster has other keys for the server than its own")
        self._host = Host(params, roster, identity)
        if len(identity.sealing_key) != self._host.suite.public_key_length:
            raise ParameterError(f"the server's key is not for suite {params.suite!r}")
        self._spool = FileSpool() if spool is None else spool
        self._state: _Phase | None = CollectingAdvertisements(self._host)
        self._taken: set[int] = set()
        self._gone: Rejected = {}
        self._turned_away: Rejected = {}
        self._phase = 0
        self._expected: dict[int, None] = dict.fromkeys(params.cohort)
        self._dropped: dict[int, str] = {}
        self._rejected: Rejected = {}
        self._masked: MaskedSum | None = None
        self._signatures: dict[int, bytes] = {}
        self._sums: dict[str, npt.NDArray[np.int64]] | None = None

    @property
    def phase(self) -> str | None:
        """The exchange whose client frames are awaited, or None when the round is over."""
        return None if self._state is None else PHASES[self._phase]

    @property
    def expected(self) -> tuple[int, ...]:
        """The clients that take part in the current phase."""
        return tuple(self._expected)

    @property
    def rejected(self) -> Mapping[int, SecaggError]:
        """Why clients that are missing now are missing, where it is known: wrong frames, and reasons that they gave."""
        return self._rejected | self._gone

    def open(self) -> Answers:
        """What tells each client that the round begins: the canonical encoding of its parameters."""
        return dict.fromkeys(self._host.params.cohort, self._host.params.encode())

    def receive(self, sender: int, frame: bytes) -> None:
        """Takes a client's frame of the current phase, or its word that it takes no further part.

        Raises:
            StateError: The round is over.
            UnexpectedFrameError: A second frame of one sender, or a frame of one that is not awaited (any more).
            DecodeError: Not provably a frame of this sender in this exchange and round. The right one may still come.
            PeerFault: It is, and something in it is wrong; the sender has had its turn in this round.
            LocalError: It could not be kept, through no fault of the sender. All is as it was.
        """
        for error in self.receive_many([(sender, frame)]):
            if error is not None:
                raise error

    def receive_many(self, frames: Sequence[tuple[int, bytes]]) -> list[SecaggError | None]:
        """`receive` for several (sender, frame), in their order, with the signatures checked on both cores.

        Returns:
            For each frame None where it was taken, else what `receive` would raise.

        Raises:
            StateError: The round is over.
        """
        state = self._state
        if state is None:
            raise StateError("the round is over")
        read: dict[int, messages.Unverified[Any]] = {}
        outcomes: list[Any] = [None] * len(frames)
        for place, (sender, frame) in enumerate(frames):
            try:
                self._check_awaited(sender)
                read[place] = _read(state, PHASES[self._phase], sender, frame)
            except (UnexpectedFrameError, DecodeError) as error:
                outcomes[place] = error
        for place, content in zip(read, messages.verify_each(tuple(read.values()), self._host.roster), strict=True):
            outcomes[place] = content
        errors = [self._take(state, *frame, found) for frame, found in zip(frames, outcomes, strict=True)]
        for kept in filter(None, errors):
            # The way that an error took through the code would keep the whole frame as long as the round keeps the reason.
            kept.__traceback__ = kept.__context__ = kept.__cause__ = None
        return errors

    def _check_awaited(self, sender: int) -> None:
        phase = PHASES[self._phase]
        if sender not in self._expected:
            raise UnexpectedFrameError(sender, phase, "is not awaited")
        if sender in self._gone:
            raise UnexpectedFrameError(sender, phase, "comes after the client's turn has ended")
        if sender in self._taken:
            raise UnexpectedFrameError(sender, phase, "is a second one")

    def _take(self, state: _Phase, sender: int, frame: bytes, found: Any) -> SecaggError | None:  # noqa: ANN401 - a phase's own
        """Books what a frame came to: `found` is its content, or what is wrong with its form or signature."""
        try:
            self._check_awaited(sender)  # again: a frame before it may have been of the same sender
            if isinstance(found, SecaggError):
                raise found
            state.take(sender, frame, found)
        except PeerFault as error:
            self._gone[sender] = error
            return error
        except DecodeError as error:
            declined = self._declined(sender, frame)
            if declined is None:
                self._turned_away[sender] = error
                return error
            self._gone[sender] = declined
            return None
        except (UnexpectedFrameError, LocalError) as error:
            return error
        self._taken.add(sender)
        return None

    def _declined(self, sender: int, frame: bytes) -> DeclinedError | None:
        host, phase = self._host, PHASES[self._phase]
        try:
            told = messages.unseal(frame, messages.Decline, binding=host.context, sender=sender, roster=host.roster)
        except DecodeError:
            return None
        return DeclinedError(sender, phase, told.rule, told.reason) if told.phase == phase else None

    def close_phase(self) -> Answers:
        """Ends the phase with whoever answered; the answers to deliver, empty after the last.

        Raises:
            RoundError: The round cannot go on; the session is spent. `rejected` has what was found about clients before.
            PeerFault: A client is provably corrupt in a way that ends the round; the session is spent. `rejected` likewise.
            LocalError: A vector cannot be read back, or our key gave no signature; the session is spent. `rejected` likewise.
            StateError: The round is over.
        """
        state, self._state = self._state, None
        if state is None:
            raise StateError("the round is over")
        self._rejected |= {i: error for i, error in self._turned_away.items() if i not in self._taken} | self._gone
        try:
            answers = self._close(state)
        except (RoundError, PeerFault) as error:
            # What was found about others on the way is not lost with the sum: the next round can do without them.
            self._rejected |= error.rejected
            error.rejected = dict(self._rejected)
            raise
        over = self.phase is None
        self._note(self._taken if over else answers)
        self._phase += not over
        return answers

    def _close(self, state: _Phase) -> Answers:
        answers: Answers = {}
        match state:
            case CollectingAdvertisements():
                advertisers, answers = state.close(self._rejected)
                self._state = CollectingShares(advertisers)
            case CollectingShares():
                sharers, answers = state.close(self._rejected)
                self._state = CollectingVectors(sharers, self._spool)
            case CollectingVectors():
                self._masked, answers = state.close(self._rejected)
                self._rejected |= self._masked.disputed
                self._state = CollectingSignatures(self._masked)
            case CollectingSignatures():
                confirmed, answers = state.close(self._rejected)
                self._signatures = confirmed.signatures
                self._state = CollectingAnswers(confirmed)
            case CollectingAnswers():
                self._sums = state.close(self._rejected)
        return answers

    def _note(self, alive: set[int] | Answers) -> None:
        self._dropped |= {i: PHASES[self._phase] for i in self._expected if i not in alive}
        self._expected = {i: None for i in self._expected if i in alive}
        self._taken, self._gone, self._turned_away = set(), {}, {}

    @property
    def result(self) -> Result:
        """The sum and who is in it.

        Raises:
            StateError: The round has not ended with one.
        """
        masked = self._masked
        if masked is None or self._sums is None:
            raise StateError("the round has no result (yet)")
        return Result(
            sums=self._sums,
            survivors=masked.survivors,
            dropped=dict(sorted(self._dropped.items())),
            rejected=dict(self._rejected),
            transcript=masked.view.transcript,
            signatures=self._signatures,
            sharers=masked.sharers.members,
        )

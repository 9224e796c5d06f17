"""A client's side of one round: bytes in, bytes out, each state used once."""

import os
from collections.abc import Callable

from secagg.crypto import prg
from secagg.crypto.kdf import Entropy
from secagg.errors import ParameterError, StateError
from secagg.identity import Identity, Roster
from secagg.params import RoundParams
from secagg.protocols.pairwise import advertise, confirm, mask, share, unmask
from secagg.protocols.pairwise.advertise import AwaitingAdvertised
from secagg.protocols.pairwise.confirm import AwaitingQuorum
from secagg.protocols.pairwise.mask import AwaitingSurvivors, Inputs
from secagg.protocols.pairwise.parties import Member, Redacted
from secagg.protocols.pairwise.share import AwaitingShared

_State = AwaitingAdvertised | AwaitingShared | AwaitingSurvivors | AwaitingQuorum


class ClientSession(Redacted):
    """One client in one round.

    `start` gives the first frame; `receive` takes the server's answer and gives the next one, None at the end. The session
    takes its state out before it steps, so an error, ours or a hook's, leaves it spent: it never answers a phase twice.

    Args:
        params: What this client agrees to; frames bound to other parameters are refused.
        identity: Its long-lived key.
        roster: Everybody's public keys, pinned out of band.
        inputs: `{block name: integer array (length,)}`, or a function that gives them when exchange 3 needs them.
        entropy: Source of every secret, `entropy(n) -> n bytes`.
        on_release: Called just before the masked vector leaves: from then on the input counts as released. It may raise
            to stop the session.
        on_survivors: Called with U3 (sorted client ids), after a quorum over it was checked and before any share is
            revealed. It may raise to withhold the shares.

    Raises:
        ParameterError: The identity is not on the roster or not in the cohort, or the roster is for another suite.
        InputError: The inputs are not the agreed blocks.

    Guarantees:
        Never emits both kinds of share of one neighbour; never signs two statements; nothing leaves after an error.
    """

    def __init__(
        self,
        params: RoundParams,
        identity: Identity,
        roster: Roster,
        inputs: Inputs | Callable[[], Inputs],
        *,
        entropy: Entropy = os.urandom,
        on_release: Callable[[], None] | None = None,
        on_survivors: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        prg.self_test()
        if identity.id not in params.cohort:
            raise ParameterError(f"client {identity.id} is not in the cohort {list(params.cohort)}")
        if roster.clients.get(identity.id) != identity.public_key:
            raise ParameterError(f"the roster has another key, or none, for client {identity.id}")
        missing = [i for i in params.cohort if i not in roster.clients]
        if missing:
            raise ParameterError(f"clients {missing} of the cohort are not on the roster")
        self._me = Member(params, identity, roster, entropy)
        if len(roster.server_sealing_key) != self._me.suite.public_key_length:
            raise ParameterError(f"the roster's server key is not for suite {params.suite!r}")
        if not callable(inputs):
            mask.check_inputs(params, inputs)
        self._inputs = inputs
        self._on_release = on_release or _nothing
        self._on_survivors = on_survivors or _nothing
        self._state: _State | None = None
        self._started = False
        self._transcript: bytes | None = None

    def start(self) -> bytes:
        """The advertisement.

        Raises:
            StateError: Called twice.
        """
        if self._started:
            raise StateError("this session has started already; a round needs a new one")
        self._started = True
        self._state, frame = advertise.send(self._me)
        return frame

    def receive(self, frame: bytes) -> bytes | None:
        """The answer to one frame of the server; None when the round is over for this client.

        Raises:
            ServerFault: The server broke the protocol.
            PeerFault: Other clients did, more than the round allows for.
            StateError: Not started, finished, or stopped by an earlier error.
        """
        state, self._state = self._state, None
        match state:
            case AwaitingAdvertised():
                view = advertise.accept(state, frame)
                self._transcript = view.transcript
                self._state, out = share.send(state, view)
            case AwaitingShared():
                after, out = mask.send(state, share.accept(state, frame), self._inputs)
                self._on_release()
                self._state = after
            case AwaitingSurvivors():
                self._state, out = confirm.send(mask.accept(state, frame))
            case AwaitingQuorum():
                agreed = confirm.accept(state, frame)
                self._on_survivors(agreed.survivors)
                return unmask.send(agreed)
            case None:
                raise StateError(
                    "this session is not waiting for a frame: not started, finished, or stopped by an error"
                )
        return out

    @property
    def waiting(self) -> bool:
        """Whether `receive` would take a frame."""
        return self._state is not None

    @property
    def transcript(self) -> bytes:
        """T1, 32 bytes: what binds the round that this client takes part in.

        Raises:
            StateError: Exchange 1 has not given it yet.
        """
        if self._transcript is None:
            raise StateError("the transcript exists only after exchange 1")
        return self._transcript


def _nothing(_survivors: tuple[int, ...] = ()) -> None:
    """The hook of an application that has none."""

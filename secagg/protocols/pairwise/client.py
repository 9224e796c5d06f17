"""A client's side of one round: bytes in, bytes out, each state used once."""

import os
from collections.abc import Callable
from typing import Self

from secagg import messages
from secagg.crypto import prg
from secagg.crypto.kdf import Entropy, Label, digest
from secagg.errors import DecodeError, LocalError, ParameterError, PolicyError, SecaggError, StateError, shown
from secagg.guard import Guard, MemoryGuard
from secagg.identity import Identity, Roster
from secagg.params import PHASES, RoundParams
from secagg.policy import ClientPolicy
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
    takes its state out before it steps, so an error, ours or a hook's, leaves it spent: it never answers a phase twice. To take part in
    what a server proposes, use `join`, which checks it against a policy.

    Args:
        params: What this client agrees to; frames bound to other parameters are refused.
        identity: Its long-lived key.
        roster: Everybody's public keys, pinned out of band.
        inputs: `{block name: integer array (length,)}`, or a function that gives them when exchange 3 needs them.
        policy: Limits that the parameters must keep to. None: they are this client's own, and were checked elsewhere.
        guard: Remembers what was answered, so that no step is taken twice. None: within this session only; whoever may be restarted
            passes a `FileGuard`.
        entropy: Source of every secret, `entropy(n) -> n bytes`.
        on_release: Called just before the masked vector leaves: from then on the input counts as released. It may raise
            to stop the session. What it returns names the application's reservation for this release: the guard lets a second vector
            under the same application context leave only under another one.
        on_survivors: Called with U3 (sorted client ids), after a quorum over it was checked and before any share is
            revealed. It may raise to withhold the shares.

    Raises:
        PolicyError: The policy does not allow the round.
        ParameterError: The identity is not on the roster or not in the cohort, or the roster is for another suite.
        InputError: The inputs are not the agreed blocks.

    Guarantees:
        Never emits both kinds of share of one neighbour; never signs two statements; nothing leaves after an error.
        Nothing leaves before the guard has it on record.
    """

    def __init__(
        self,
        params: RoundParams,
        identity: Identity,
        roster: Roster,
        inputs: Inputs | Callable[[], Inputs],
        *,
        policy: ClientPolicy | None = None,
        guard: Guard | None = None,
        entropy: Entropy = os.urandom,
        on_release: Callable[[], bytes | None] | None = None,
        on_survivors: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        prg.self_test()
        self._guard = MemoryGuard() if guard is None else guard
        self._limits = () if policy is None else policy.round_limits
        if policy is not None:
            policy.check(params, identity.id, roster.clients, guard)
        if identity.id not in params.cohort:
            raise ParameterError(f"client {identity.id} is not in the cohort {shown(params.cohort)}")
        if roster.clients.get(identity.id) != identity.public_key:
            raise ParameterError(f"the roster has another key, or none, for client {identity.id}")
        missing = [i for i in params.cohort if i not in roster.clients]
        if missing:
            raise ParameterError(f"clients {shown(missing)} of the cohort are not on the roster")
        self._me = Member(params, roster, identity, entropy)
        if len(roster.server_sealing_key) != self._me.suite.public_key_length:
            raise ParameterError(f"the roster's server key is not for suite {params.suite!r}")
        if not callable(inputs):
            mask.check_inputs(params, inputs)
        self._inputs = inputs
        self._on_release = on_release or _nothing
        self._on_survivors = on_survivors or _nothing
        self._state: _State | None = None
        self._started = False
        self._phase = PHASES[0]
        self._transcript: bytes | None = None

    @classmethod
    def join(
        cls,
        proposal: bytes,
        policy: ClientPolicy,
        identity: Identity,
        roster: Roster,
        inputs: Inputs | Callable[[RoundParams], Inputs],
        *,
        guard: Guard | None = None,
        entropy: Entropy = os.urandom,
        on_release: Callable[[], bytes | None] | None = None,
        on_survivors: Callable[[tuple[int, ...]], None] | None = None,
    ) -> Self:
        """A session in the round that a server proposes.

        Args:
            proposal: The canonical encoding of the parameters, as the server sent it.
            policy: What this client agrees to.
            identity: As for the constructor, and so on.
            roster: Everybody's public keys.
            inputs: `{block name: integer array (length,)}`, or a function of the parameters that gives them in exchange 3.
            guard: Remembers what was answered.
            entropy: Source of every secret.
            on_release: Called just before the masked vector leaves.
            on_survivors: Called before any share is revealed.

        Raises:
            PolicyError: The proposal cannot be read, is unsound, or is outside the policy; `rule` says which. `decline` tells the server.
            ParameterError: The identity or the roster does not fit.
        """
        try:
            params = RoundParams.decode(proposal)
        except (DecodeError, ParameterError) as error:
            raise PolicyError("parameters", str(error)) from None
        return cls(
            params,
            identity,
            roster,
            (lambda: inputs(params)) if callable(inputs) else inputs,
            policy=policy,
            guard=guard,
            entropy=entropy,
            on_release=on_release,
            on_survivors=on_survivors,
        )

    def start(self) -> bytes:
        """The advertisement.

        Raises:
            StateError: Called twice.
            GuardError: This client was in this round before.
            PolicyError: Other sessions began as many rounds as the policy allows since this one was made; `decline` tells the server.
        """
        if self._started:
            raise StateError("this session has started already; a round needs a new one")
        self._started = True
        self._record(PHASES[0])
        self._state, frame = advertise.send(self._me)
        self._phase = PHASES[1]
        return frame

    def receive(self, frame: bytes) -> bytes | None:
        """The answer to one frame of the server; None when the round is over for this client.

        Raises:
            ServerFault: The server broke the protocol.
            PeerFault: Other clients did, more than the round allows for.
            GuardError: This step was taken before.
            StateError: Not started, finished, or stopped by an earlier error.
        """
        state, self._state = self._state, None
        after: _State | None = None
        match state:
            case AwaitingAdvertised():
                view = advertise.accept(state, frame)
                self._transcript = view.transcript
                after, out = share.send(state, view)
                self._record(PHASES[1])
            case AwaitingShared():
                after, out = mask.send(state, share.accept(state, frame), self._inputs)
                self._record(PHASES[2], self._on_release() or b"")
            case AwaitingSurvivors():
                agreed = mask.accept(state, frame)
                self._record(PHASES[3])
                after, out = confirm.send(agreed)
            case AwaitingQuorum():
                agreed = confirm.accept(state, frame)
                self._on_survivors(agreed.survivors)
                self._record(PHASES[4])
                out = unmask.send(agreed)
            case None:
                raise StateError(
                    "this session is not waiting for a frame: not started, finished, or stopped by an error"
                )
        self._state = after
        self._phase = PHASES[min(PHASES.index(self._phase) + 1, len(PHASES) - 1)]
        return out

    def _record(self, phase: str, reservation: bytes = b"") -> None:
        params = self._me.params
        self._guard.record(params.session, params.round, phase, params.app_context, reservation, limits=self._limits)

    def decline(self, error: SecaggError) -> bytes:
        """The frame that tells the server, in place of the one that it waits for, why this client takes no further part.

        The session is spent then.

        Args:
            error: What stopped it.
        """
        self._state, self._started = None, True
        return _decline(self._me.context, self._me.identity, self._phase, error)

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


def decline(proposal: bytes, identity: Identity, error: SecaggError) -> bytes:
    """The frame that tells the server why a client does not join the round that it proposed.

    Args:
        proposal: What the server sent.
        identity: The client's.
        error: What `ClientSession.join` raised.
    """
    return _decline(digest(Label.CONTEXT, proposal), identity, PHASES[0], error)


def _decline(context: bytes, identity: Identity, phase: str, error: SecaggError) -> bytes:
    # Errors of our own can speak about our data or our disk, which is nothing that a server should learn.
    reason = "an error on this client's side" if isinstance(error, LocalError) else str(error)[:512]
    rule = (error.rule if isinstance(error, PolicyError) else type(error).__name__)[:64]
    told = messages.Decline(binding=context, sender=identity.id, phase=phase, rule=rule, reason=reason)
    return messages.seal(told, identity.sign)


def _nothing(_survivors: tuple[int, ...] = ()) -> None:
    """The hook of an application that has none."""

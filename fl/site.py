"""A site's side of a round: it checks what it is asked, trains, encodes, adds its noise, and books what leaves.

A site takes nothing on trust from the server. It rebuilds the round's parameters from its own agreement and refuses any
others, so the server chooses neither model, plan, threshold nor context alone; and it holds its own ledger.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import rfc8785

from fl.algorithms.base import Algorithm, Contribution
from fl.data import Records, SiteData
from fl.errors import ConfigError, DataError, FlError, ModelError, RoundFailedError
from fl.model import Adapter, Local, Vector
from privacy.budget import Budget
from privacy.errors import BudgetExceededError, PlanError, PrivacyError
from privacy.ledger import Ledger, Reservation
from privacy.noise import NoiseSource
from privacy.plan import Plan
from secagg.errors import PolicyError, SecaggError
from secagg.identity import Identity, Roster
from secagg.params import PHASES, Block, RoundParams, SlackWarning
from secagg.protocols.pairwise import ClientSession

Entropy = Callable[[int], bytes]


@dataclass(frozen=True)
class Agreement:
    """What all parties agreed on before the first round.

    Attributes:
        run: The run's name, unique among runs on the same data.
        sites: Names by client id.
        blocks: What each site sends.
        plan: The privacy plan, or None.
        experiment: Hex SHA-256 of model, algorithm, server step and seed.
        schema: Hex SHA-256 of the model's leaves, as `Adapter.fingerprint` computes it.
        threshold: Shares needed to open a secret, or None for the smallest sound one.
        suite: Public keys.
        secure: Whether the server only sees sums; False where a simulation leaves the protocol out.
        test_seed: Fixes noise and protocol secrets; None outside of bitwise tests.
    """

    run: str
    sites: Mapping[int, str]
    blocks: tuple[Block, ...]
    plan: Plan | None
    experiment: str
    schema: str
    threshold: int | None = None
    suite: str = "hybrid"
    secure: bool = True
    test_seed: int | None = None

    @property
    def private(self) -> bool:
        """Whether the plan's promise holds: there is one, only sums leave, and noise and secrets are real."""
        return self.plan is not None and self.secure and self.test_seed is None

    def app_context(self, round: int, model_hash: str, clip: float | None = None) -> bytes:  # noqa: A002 - the name of the thing everywhere else
        """32 bytes that bind everything that determines what a site sends in a round.

        The attempt is left out: it is the server's to choose, and a new one must not make a second release look like a
        different one to a site that guards against it.
        """
        bound = {
            "label": "fl/1 round",
            "run": self.run,
            "round": round,
            "model": model_hash,
            "schema": self.schema,
            "experiment": self.experiment,
            "plan": self.plan.hash if self.plan is not None else "none",
        }
        if clip is not None:
            bound["clip"] = clip.hex()
        return hashlib.sha256(rfc8785.dumps(bound)).digest()  # type: ignore[arg-type]  # str and int are JSON

    def round_params(
        self,
        round: int,  # noqa: A002 - as above
        model_hash: str,
        session: bytes | None = None,
        *,
        clip: float | None = None,
        quiet: bool = True,
    ) -> RoundParams:
        """The only parameters that a round may have; the session id apart, nothing in them is free.

        Args:
            round: Round number.
            model_hash: Of the model that the round starts from.
            session: 16 bytes, or None for fresh ones.
            clip: The clip norm that the round was announced with, where it adapts.
            quiet: Leave out the warnings, which are for the set-up and not for every round.

        Raises:
            ParameterError: the round is infeasible.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if quiet else "always", SlackWarning)
            return RoundParams(
                cohort=tuple(self.sites),
                blocks=self.blocks,
                threshold=self.threshold,  # type: ignore[arg-type]  # None: resolved on construction
                colluders=self.plan.colluders if self.plan is not None else 0,
                dropouts=self.plan.dropouts if self.plan is not None else None,  # type: ignore[arg-type]  # likewise
                suite=self.suite,
                session=session,  # type: ignore[arg-type]  # likewise
                round=round,
                app_context=self.app_context(round, model_hash, clip),
            )


@dataclass(frozen=True)
class Announcement:
    """What the server tells every site before a round.

    Attributes:
        round: From 0.
        attempt: From 0; each is a release of its own.
        model: (d,) the global model's shared parameters.
        model_hash: Their hash and that of `broadcast`, as `Adapter.hash` computes it.
        clip: The round's clip norm, where the plan's adapts; else None.
        broadcast: (d,) what the algorithm tells the sites beside the model, by name.
    """

    round: int
    attempt: int
    model: Vector
    model_hash: str
    clip: float | None = None
    broadcast: Mapping[str, Vector] = field(default_factory=dict)


def noise_source(agreement: Agreement) -> NoiseSource | None:
    """A source of noise for a plan: the system's, or that of the test seed where there is one; None without a plan."""
    if agreement.plan is None:
        return None
    return NoiseSource() if agreement.test_seed is None else NoiseSource.insecure_test(agreement.test_seed)


def stream_of(agreement: Agreement, announcement: Announcement, site: int) -> dict[str, Any]:
    """What tells a site's secret streams of an attempt apart from all others."""
    run = agreement.run if agreement.test_seed is None else "test"
    return {"run": run, "round": announcement.round, "attempt": announcement.attempt, "site": site}


def with_noise(
    values: Contribution, noise: NoiseSource | None, agreement: Agreement, announcement: Announcement, site: int
) -> Contribution:
    """A site's integers with its share of the plan's noise; as they are without a plan."""
    plan = agreement.plan
    if plan is None or noise is None:
        return values
    stream = stream_of(agreement, announcement, site)
    return {
        name: value + noise.share(plan.sigma_local, len(value), purpose=name, **stream)
        for name, value in values.items()
    }


def is_first(announcement: Announcement, begun: tuple[int, int]) -> bool:
    """Whether this is the first attempt at its round of a process that began with (round, attempt)."""
    number, attempt = begun
    return announcement.attempt == (attempt if announcement.round == number else 0)


def require_capacity(rows: SiteData, algorithm: Algorithm) -> None:
    """Check a site's rows against the public cap, since rows over it would have to be cut silently.

    Raises:
        DataError: there are more; the message names the site.
    """
    if len(rows.y) > algorithm.max_rows:
        raise DataError(f"site {rows.name}: {len(rows.y)} training rows, and the agreed cap is {algorithm.max_rows}")


def require_secure(site: str, agreement: Agreement) -> None:
    """Check what a site that takes part under secure aggregation only is about to agree to.

    Raises:
        ConfigError: the server would see more than sums; the message names the site.
    """
    if not agreement.secure:
        raise ConfigError(
            f'secagg.mode: site {site} takes part under secure aggregation only, and the mode of this run is not "secure"'
        )


@dataclass
class Site:
    """One site: its rows, keys, noise and ledger.

    Attributes:
        id: Client id.
        rows: Its training rows; they never leave this object.
        agreement: What it agreed to.
        algorithm: Its algorithm.
        adapter: Its model.
        local: Its own local state (personal parameters, batch statistics), which never leaves it.
        key: The key of its own random streams (shuffling, dropout layers); not secret.
        identity: Its signing key.
        roster: Everybody's public keys.
        noise: Its source of noise; needed with a plan.
        ledger: Its data set's ledger, outside any run and open; needed with a plan.
        budget: The lifetime budget of its data set, or None for none.
        entropy: The source of the protocol's secrets in (round, attempt).
        secure_only: Whether it takes part under secure aggregation only.

    Raises:
        DataError: more rows than the agreed public cap; the message names the site.
        ConfigError: it takes part under secure aggregation only, and that is not what was agreed.
        PlanError: a plan without noise source or ledger.
    """

    id: int
    rows: SiteData
    agreement: Agreement
    algorithm: Algorithm
    adapter: Adapter
    local: Local = field(repr=False)
    key: jax.Array
    identity: Identity
    roster: Roster
    noise: NoiseSource | None = None
    ledger: Ledger | None = None
    budget: Budget | None = None
    entropy: Callable[[int, int], Entropy] = lambda _round, _attempt: os.urandom
    secure_only: bool = False
    records: Records = field(init=False, repr=False)

    def __post_init__(self) -> None:
        slots = self.algorithm.slots(len(self.rows.y))
        require_capacity(self.rows, self.algorithm)
        if self.secure_only:
            require_secure(self.rows.name, self.agreement)
        if self.agreement.plan is not None and (self.noise is None or self.ledger is None):
            raise PlanError(f"site {self.rows.name}: a plan needs a noise source and a ledger")
        self.records = Records.place(self.rows.x, self.rows.y, slots)

    @property
    def name(self) -> str:
        """The site's name."""
        return self.rows.name

    def check_model(self, announcement: Announcement) -> None:
        """Compare the announced model with its hash, and this site's leaves with the agreed ones.

        Raises:
            ModelError: it is not the one of the announced hash, has the wrong shape, or is not finite; or so is what is told
                beside it.
        """
        model, beside = self.adapter.unravel(announcement.model), announcement.broadcast
        self.adapter.require_finite(model)
        if tuple(sorted(beside)) != tuple(sorted(self.algorithm.broadcast)):
            raise ModelError(
                f"round {announcement.round}: {sorted(beside)} is told beside the model, not {sorted(self.algorithm.broadcast)}"
            )
        for name, vector in beside.items():
            if vector.shape != announcement.model.shape or not np.isfinite(vector).all():
                raise ModelError(f"round {announcement.round}: {name} is not a finite vector of the model's length")
        known = self.adapter.fingerprint == self.agreement.schema
        if not known or self.adapter.hash(model, beside) != announcement.model_hash:
            raise ModelError(f"round {announcement.round}: the model is not the one that was announced")

    def check_clip(self, announcement: Announcement) -> None:
        """Hold the announced clip norm against the plan.

        Raises:
            RoundFailedError: there is one and the plan's does not adapt, there is none and it does, or the plan does not
                allow it.
        """
        plan, clip = self.agreement.plan, announcement.clip
        adapts = plan is not None and plan.adaptive is not None
        if adapts != (clip is not None):
            what = (
                "the plan's clip norm adapts, and none was announced" if adapts else f"clip norm {clip} was announced"
            )
            raise RoundFailedError(f"round {announcement.round}: {what}, which site {self.name} did not agree to")
        if plan is not None and clip is not None:
            try:
                plan.codec(clip)
            except PlanError as error:
                raise RoundFailedError(f"round {announcement.round}: site {self.name} refuses: {error}") from error

    def check(self, announcement: Announcement, params: RoundParams) -> None:
        """Compare the round that the server opens with the one that was agreed.

        Raises:
            ModelError: as for `check_model`.
            RoundFailedError: as for `check_clip`, or the parameters are not the agreed ones; the message names the field.
        """
        self.check_model(announcement)
        self.check_clip(announcement)
        agreed = self.agreement.round_params(
            announcement.round, announcement.model_hash, params.session, clip=announcement.clip
        )
        for entry in fields(RoundParams):
            if getattr(agreed, entry.name) != getattr(params, entry.name):
                raise RoundFailedError(
                    f"round {announcement.round}: {entry.name} is not what site {self.name} agreed to"
                )

    def train(self, announcement: Announcement) -> tuple[Any, Local]:
        """The algorithm's update, in floats, and the local state after training."""
        key = jax.random.fold_in(self.key, announcement.round)
        params = self.adapter.unravel(announcement.model)
        records = replace(self.records, present=self._drawn(announcement))
        return self.algorithm.client_update(params, self.local, records, key=key, broadcast=announcement.broadcast)

    def _drawn(self, announcement: Announcement) -> npt.NDArray[np.bool_]:
        """Which slots take part: all that hold a record, or those among them whose secret coin says so.

        The coin decides nothing else: every slot is computed, and an empty batch is sent like any other.
        """
        plan, noise, present = self.agreement.plan, self.noise, self.records.present
        if plan is None or noise is None or plan.sample_rate == 1:
            return present
        return present & noise.coins(plan.sample_rate, len(present), **stream_of(self.agreement, announcement, self.id))

    def contribution(self, announcement: Announcement) -> tuple[Contribution, Local]:
        """Train, encode, and add this site's noise: the integers that leave, and the local state after training.

        Raises:
            InputError: the update is not finite or does not fit; the message names the leaf.
        """
        update, local = self.train(announcement)
        values = self.algorithm.encode(update, announcement.clip)
        return with_noise(values, self.noise, self.agreement, announcement, self.id), local


_USED_UP = PolicyError("budget", "the budget of this site's own data set does not allow another release")


class Participation:
    """One site in one attempt at one round.

    The order is that of the protocol: `inputs`, `release` (the ledger reserves), then the vector leaves; `accept` (the
    noise floor), then the shares leave; `commit`.

    Attributes:
        refusal: Why the site stopped, or None.
    """

    def __init__(self, site: Site, announcement: Announcement) -> None:
        self.site = site
        self.refusal: Exception | None = None
        self._announcement = announcement
        self._session: ClientSession | None = None
        self._after: Local | None = None
        self._reservation: Reservation | None = None
        self._survivors: tuple[int, ...] = ()
        self._params: RoundParams | None = None

    def handle(self, phase: str, frame: bytes) -> bytes | None:
        """Answer one frame of the server; None when the site refuses, which to the others is silence.

        Where the budget of its own data set is used up it says so in place of its vector: the server learns that, and
        not what is in the site's ledger.
        """
        if self.refusal is not None:
            return None
        try:
            if phase == PHASES[0]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SlackWarning)  # said once, at set-up
                    params = RoundParams.decode(frame)
                self.open(params)
                return self._start()
            if self._session is None:
                return None
            answer = self._session.receive(frame)
            if phase == PHASES[-1]:
                self.commit()
        except BudgetExceededError as error:
            self.refusal = error
            return None if self._session is None else self._session.decline(_USED_UP)
        except (FlError, PrivacyError, SecaggError) as error:
            self.refusal = error
            return None
        return answer

    def open(self, params: RoundParams) -> None:
        """Check the round, and agree to it; raises what `Site.check` raises."""
        self.site.check(self._announcement, params)
        self._params = params

    def train(self) -> Any:  # noqa: ANN401 - what an update is, the algorithm says
        """The update in floats, for a mean without protocol and without privacy; raises what `Site.check_model` raises."""
        self.site.check_model(self._announcement)
        update, self._after = self.site.train(self._announcement)
        return update

    def inputs(self) -> Contribution:
        """The integers that this site sends."""
        values, self._after = self.site.contribution(self._announcement)
        return values

    def release(self) -> None:
        """Book the release at the plan's floor, before anything leaves.

        Raises:
            LedgerError: the ledger cannot be trusted or written.
            BudgetExceededError: the data set's budget does not allow it.
        """
        site, at = self.site, self._announcement
        plan, noise, ledger = site.agreement.plan, site.noise, site.ledger
        if plan is None or noise is None or ledger is None:
            return
        self._reservation = ledger.reserve(
            run=site.agreement.run,
            round=at.round,
            attempt=at.attempt,
            plan=plan,
            private=site.agreement.private and noise.private,
            data_set=site.rows.fingerprint,
            budget=site.budget,
        )

    def accept(self, survivors: tuple[int, ...]) -> None:
        """Agree to open the sum over the signed survivors.

        Raises:
            PlanError: too few of them are honest for the noise that the plan promises; the shares are withheld.
        """
        plan = self.site.agreement.plan
        if plan is not None:
            floor = plan.sites - plan.dropouts
            if len(survivors) < floor:
                raise PlanError(
                    f"site {self.site.name} withholds its shares: {len(survivors)} survivors, of whom {plan.colluders} may "
                    f"collude, have less noise than the plan's {floor}"
                )
        self._survivors = survivors

    def commit(self) -> None:
        """Keep the local state, and book the noise that the signed survivors really gave."""
        if self._after is not None:
            self.site.local = self._after
        ledger = self.site.ledger
        if self._reservation is not None and ledger is not None:
            # Without the protocol there is no transcript; the parameters' hash stands for the round then.
            bound = self._agreed().context if self._session is None else self._session.transcript
            ledger.commit(self._reservation, survivors=self._survivors, transcript=bound.hex())

    def _start(self) -> bytes:
        site, at = self.site, self._announcement
        self._session = ClientSession(
            self._agreed(),
            site.identity,
            site.roster,
            self.inputs,
            entropy=site.entropy(at.round, at.attempt),
            on_release=self.release,
            on_survivors=self.accept,
        )
        return self._session.start()

    def _agreed(self) -> RoundParams:
        if self._params is None:
            raise RoundFailedError(f"round {self._announcement.round}: site {self.site.name} has not agreed to it")
        return self._params

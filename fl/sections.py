"""The sections of an experiment's configuration, typed: what each key means, and what it is without being said."""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=64)]
Options = dict[str, float | bool]
Function = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; keys that it does not have are refused."""


class Data(Section, frozen=True, kw_only=True):
    """Where the sites' rows come from.

    Attributes:
        bundled: A table that ships with the package.
        path: A folder with one `site_<name>.csv` per site and the `schema` beside them.
        source: "package.module:function" of (seed) that gives {site: (x (rows, ...), y (rows, ...))} as NumPy arrays.
        population: "package.module:function" of (seed) that gives a `fl.simulation.GeneratedPopulation`, and held-out records as
            `source` does; for `simulation.engine = "cohort"` only.
        schema: The schema's file name in that folder.
        test_fraction: The part of each class of each site that is held out.
    """

    bundled: Literal["heart"] | None = None
    path: str | None = None
    source: Function | None = None
    population: Function | None = None
    schema: str = "schema.toml"
    test_fraction: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2


class Model(Section, frozen=True, kw_only=True):
    """What is trained.

    Attributes:
        kind: "logistic", "mlp", or "package.module:function", a function of (features, rngs) that gives an NNX or Linen module,
            a `Functional`, or a callable pytree.
        hidden: Widths of an MLP's hidden layers.
        outputs: Scores per record, of "logistic" and "mlp".
        loss: Per-record loss: "logistic", "squared", "softmax", or "package.module:function" of (outputs, y).
        metrics: "package.module:function" of (y, outputs) that gives named numbers; None: those of the loss.
        class_weights: Public factors of a record's loss by its label; empty: all alike.
        personal: Patterns of leaf paths (`head.*`): parameters that stay at their site and are trained there.
        frozen: Patterns of leaf paths: parameters that nobody trains.
        batch_stats: Batch statistics stay at their site, or are averaged like parameters.
    """

    kind: str = "logistic"
    hidden: tuple[Count, ...] = ()
    outputs: Count = 1
    loss: str = "logistic"
    metrics: Function | None = None
    class_weights: tuple[Positive, ...] = ()
    personal: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    batch_stats: Literal["local", "shared"] = "local"


class FixedPointLimits(Section, frozen=True, kw_only=True):
    """Limits of the integers that a site sends where there is no privacy section.

    Attributes:
        limit: Largest absolute value of an entry of what is uploaded.
        fraction_bits: Binary digits after the point.
        max_weight: The public cap on a site's number of records.
    """

    limit: Positive = 64.0
    fraction_bits: Annotated[int, msgspec.Meta(ge=1, le=52)] = 32
    max_weight: Annotated[int, msgspec.Meta(ge=1, le=2**22)] = 2**16


class FedAvg(FixedPointLimits, frozen=True, kw_only=True, tag_field="name", tag="fedavg"):
    """Federated averaging; with `proximal` it is FedProx, with an adaptive server optimiser FedAdam and its kin.

    Attributes:
        optimizer: Local Optax optimiser.
        learning_rate: Its learning rate.
        options: Its further arguments.
        batch_size: Rows per local step, or "all".
        local_epochs: Passes over the rows per round, or None when `local_steps` is given.
        local_steps: Mini-batches per round.
        proximal: FedProx's mu; 0: none.
        upload: What a site sends: the change of the parameters, the sum of its steps' gradients, or the parameters.
    """

    optimizer: str = "sgd"
    learning_rate: Positive = 0.1
    options: Options = {}
    batch_size: Count | Literal["all"] = 32
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=2**12)] | None = None
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=2**16)] | None = None
    proximal: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    upload: Literal["delta", "gradient", "parameters"] = "delta"


class FedSgd(FixedPointLimits, frozen=True, kw_only=True, tag_field="name", tag="fedsgd"):
    """One gradient over all rows of each site a round; the server's optimiser takes the step.

    Attributes:
        learning_rate: Of personal parameters, which the server never sees.
    """

    learning_rate: Positive = 0.1


class Scaffold(FixedPointLimits, frozen=True, kw_only=True, tag_field="name", tag="scaffold"):
    """SCAFFOLD: plain local gradient descent, corrected by control variates.

    Attributes:
        learning_rate: Of the local steps.
        batch_size: Rows per local step, or "all".
        local_epochs: Passes over the rows per round, or None when `local_steps` is given.
        local_steps: Mini-batches per round.
    """

    learning_rate: Positive = 0.1
    batch_size: Count | Literal["all"] = 32
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=2**12)] | None = None
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=2**16)] | None = None


class DpFedSgd(Section, frozen=True, kw_only=True, tag_field="name", tag="dp_fedsgd"):
    """Full-batch gradient descent with record-level privacy: one gradient per record and round."""


class Server(Section, frozen=True, kw_only=True):
    """What the server does with the mean.

    Attributes:
        optimizer: Any Optax optimiser.
        learning_rate: Its learning rate.
        options: Its further arguments.
        average: Publish the last iterate, or the mean of the iterates of the last half.
        strategy: How the sites' updates become one. Only the mean is a sum; the others need every site's own update, and so
            `secagg.mode = "plain"`.
    """

    optimizer: str = "sgd"
    learning_rate: Positive = 1.0
    options: Options = {}
    strategy: Literal["mean", "median", "trimmed_mean"] = "mean"
    average: Literal["last", "last_half"] = "last"


class Adaptive(Section, frozen=True, kw_only=True):
    """A clip norm that follows a quantile of the norms; `privacy.AdaptiveClip` says what each key means.

    Attributes:
        quantile: The part of contributions whose norm shall be within the clip norm.
        learning_rate: How fast it moves.
        bit_noise: Noise in the count of those within it, in contributions.
        expected: Public number of contributions in a sum.
        min_clip: Least clip norm.
        max_clip: Largest clip norm.
    """

    quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2
    bit_noise: Positive
    expected: Positive
    min_clip: Positive
    max_clip: Positive


class Privacy(Section, frozen=True, kw_only=True):
    """The budget of one run; the noise follows from it.

    Attributes:
        epsilon: The budget.
        delta: The probability that the bound does not cover.
        unit: Who is protected: one record, or one site (client).
        relation: Neighbouring data sets; None: add-remove for records, zero-out for clients.
        clip: The largest norm of one unit's contribution, at one site; where it adapts, in the first round. 1 where neither
            it nor `total_clip` is given.
        total_clip: In its place: the largest norm of everything of one person, over all `silos`.
        silos: Sites that may hold a record of the same person, one at each.
        adaptive: How the clip norm moves; None: it does not.
        records_per_site: The public cap on records per site; for the record unit only.
        sample_rate: Below 1, each record takes part in a round with this probability, by a secret coin of its own (Poisson
            batches); for the record unit and add-remove.
        divisor: The public constant that the sum is divided by; about the number of records that take part in a round.
        colluders: Sites that may collude with the server.
        dropouts: Sites that may go silent in a round.
        bits: Ring width of an entry.
    """

    epsilon: Positive
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    unit: Literal["record", "client"] = "record"
    relation: Literal["add-remove", "replace-one", "zero-out"] | None = None
    clip: Positive | None = None
    total_clip: Positive | None = None
    silos: Count = 1
    adaptive: Adaptive | None = None
    records_per_site: Annotated[int, msgspec.Meta(ge=1, le=2**22)] | None = None
    sample_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    divisor: Positive
    colluders: Natural = 0
    dropouts: Natural = 0
    bits: Annotated[int, msgspec.Meta(ge=8, le=64)] = 32


class Secagg(Section, frozen=True, kw_only=True):
    """How the sum is taken.

    Attributes:
        mode: "secure": the protocol. "ideal": the integers that it yields, without it. "plain": a float mean.
        suite: Public keys.
        threshold: Shares needed to open a secret; None: the smallest sound one.
        attempts: How often a round is tried before the run ends; each try is booked.
    """

    mode: Literal["secure", "ideal", "plain"] = "secure"
    suite: Literal["hybrid", "classical"] = "hybrid"
    threshold: Count | None = None
    attempts: Count = 3


class Simulation(Section, frozen=True, kw_only=True):
    """What a simulation on one machine makes happen.

    Attributes:
        drop_rate: The part of the rounds in which one site goes silent; for the engine "cohort", the part of each round's
            clients that do before their vectors leave.
        drop_site: Which; None: chosen by the seed.
        baselines: Also train without privacy, centralised, alone and federated, for comparison.
        lifetime_epsilon: What each site allows on its data set over all runs; None: no limit. It stands in for a site's
            own policy, which no researcher sets.
        lifetime_delta: What it is at. The policy's, and no run's: a run that asks for a larger delta gets no more.
        secure_only: Sites that take part under secure aggregation only. It stands in for their policies too.
        engine: "parties": each site has its own keys, ledger and policy, as between organisations. "cohort": one compiled
            program trains many clients, who have none of these.
        cohort: Clients of a round, drawn by the seed; None: all. For the engine "cohort".
        chunk: Clients trained side by side; None: one on a CPU, measured elsewhere. For the engine "cohort".
        evaluate_every: Rounds between evaluations on held-out records; the last round is always evaluated.
    """

    drop_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    drop_site: str | None = None
    baselines: bool = False
    lifetime_epsilon: Positive | None = None
    lifetime_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    secure_only: tuple[str, ...] = ()
    engine: Literal["parties", "cohort"] = "parties"
    cohort: Count | None = None
    chunk: Count | Literal["measure"] | None = None
    evaluate_every: Count = 1


class Checkpoint(Section, frozen=True, kw_only=True):
    """When a run's state is put on disk, for `fl resume`.

    Attributes:
        every: Rounds between checkpoints; None: 1, but a twentieth of the rounds for `simulation.engine = "cohort"`. Under a
            privacy plan it is 1: a round that is done again is released, and booked, again.
    """

    every: Count | None = None


class Network(Section, frozen=True, kw_only=True):
    """A consortium's links and computers, for the time that a round would take there; `fl.simulation.network` has the model.

    Attributes:
        upload_mbit: Megabits per second from a client.
        download_mbit: Megabits per second to a client.
        latency_ms: One way.
        speed: How many times as fast as this machine a client computes.
        straggling: Sigma of a log-normal factor on each client's computing time; 0: none.
        deadline_s: Seconds after which an exchange goes on without those that are late; None: everybody is waited for.
    """

    upload_mbit: Annotated[float, msgspec.Meta(ge=1e-3, le=1e9)]
    download_mbit: Annotated[float, msgspec.Meta(ge=1e-3, le=1e9)]
    latency_ms: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    speed: Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)] = 1.0
    straggling: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.0
    deadline_s: Annotated[float, msgspec.Meta(ge=1e-3, le=1e9)] | None = None


class Config(Section, frozen=True, kw_only=True):
    """One experiment.

    Attributes:
        name: For people, and for the run folder's name.
        seed: Sets the split, the initial model and the planned dropouts; never noise or masks.
        rounds: How many.
        mode: "federated", or what it is compared with: "centralized" (all rows in one place), "local" (each site alone). These
            have no privacy, and everything they write says so.
        network: Absent: no simulated clock.
        privacy: Absent: no differential privacy, and every result says so.
    """

    name: Name
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    rounds: Count
    mode: Literal["federated", "centralized", "local"] = "federated"
    data: Data
    model: Model = Model()
    algorithm: FedAvg | FedSgd | Scaffold | DpFedSgd
    server: Server = Server()
    privacy: Privacy | None = None
    secagg: Secagg = Secagg()
    simulation: Simulation = Simulation()
    checkpoint: Checkpoint = Checkpoint()
    network: Network | None = None

"""An experiment as TOML, strictly typed: every key is known, every value checked, every error names its key."""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fl.errors import ConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=64)]
Options = dict[str, float | bool]
Phase = Literal["advertise", "share", "mask", "confirm", "unmask"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; keys that it does not have are refused."""


class Data(_Section, frozen=True, kw_only=True):
    """Where the sites' rows come from.

    Attributes:
        bundled: A table that ships with the package, or None when `path` is given.
        path: A folder with one `site_<name>.csv` per site and the `schema` beside them.
        schema: The schema's file name in that folder.
        test_fraction: The part of each class of each site that is held out.
    """

    bundled: Literal["heart"] | None = None
    path: str | None = None
    schema: str = "schema.toml"
    test_fraction: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2


class Model(_Section, frozen=True, kw_only=True):
    """What is trained.

    Attributes:
        kind: "logistic", "mlp", or "package.module:function", a function of (features, rngs) that gives an nnx.Module.
        hidden: Widths of an MLP's hidden layers.
        loss: Per-record loss of the model's one output.
    """

    kind: str = "logistic"
    hidden: tuple[Count, ...] = ()
    loss: Literal["logistic", "squared"] = "logistic"


class FedAvg(_Section, frozen=True, kw_only=True, tag_field="name", tag="fedavg"):
    """Federated averaging; fixed-point limits apply when there is no privacy section.

    Attributes:
        optimizer: Local Optax optimiser.
        learning_rate: Its learning rate.
        options: Its further arguments.
        batch_size: Rows per local step.
        local_epochs: Passes over the rows per round, or None when `local_steps` is given.
        local_steps: Mini-batches per round.
        limit: Largest absolute change of a parameter in a round.
        fraction_bits: Binary digits after the point.
        max_weight: The public cap on a site's number of records.
    """

    optimizer: str = "sgd"
    learning_rate: Positive = 0.1
    options: Options = {}
    batch_size: Count = 32
    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=2**12)] | None = None
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=2**16)] | None = None
    limit: Positive = 64.0
    fraction_bits: Annotated[int, msgspec.Meta(ge=1, le=52)] = 32
    max_weight: Annotated[int, msgspec.Meta(ge=1, le=2**22)] = 2**16


class DpFedSgd(_Section, frozen=True, kw_only=True, tag_field="name", tag="dp_fedsgd"):
    """Full-batch gradient descent with record-level privacy: one gradient per record and round."""


class Server(_Section, frozen=True, kw_only=True):
    """What the server does with the mean.

    Attributes:
        optimizer: Any Optax optimiser.
        learning_rate: Its learning rate.
        options: Its further arguments.
        average: Publish the last iterate, or the mean of the iterates of the last half.
    """

    optimizer: str = "sgd"
    learning_rate: Positive = 1.0
    options: Options = {}
    average: Literal["last", "last_half"] = "last"


class Adaptive(_Section, frozen=True, kw_only=True):
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


class Privacy(_Section, frozen=True, kw_only=True):
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
        divisor: The public constant that the sum is divided by.
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
    divisor: Positive
    colluders: Natural = 0
    dropouts: Natural = 0
    bits: Annotated[int, msgspec.Meta(ge=8, le=64)] = 32


class Secagg(_Section, frozen=True, kw_only=True):
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


class Simulation(_Section, frozen=True, kw_only=True):
    """What a simulation on one machine makes happen.

    Attributes:
        drop_rate: The part of the rounds in which one site goes silent.
        drop_site: Which; None: chosen by the seed.
        baselines: Also train without privacy, centralised, alone and federated, for comparison.
        lifetime_epsilon: What each site allows on its data set over all runs; None: no limit. It stands in for a site's
            own policy, which no researcher sets.
        lifetime_delta: What it is at. The policy's, and no run's: a run that asks for a larger delta gets no more.
        secure_only: Sites that take part under secure aggregation only. It stands in for their policies too.
    """

    drop_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    drop_site: str | None = None
    baselines: bool = False
    lifetime_epsilon: Positive | None = None
    lifetime_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    secure_only: tuple[str, ...] = ()


class Config(_Section, frozen=True, kw_only=True):
    """One experiment.

    Attributes:
        name: For people, and for the run folder's name.
        seed: Sets the split, the initial model and the planned dropouts; never noise or masks.
        rounds: How many.
        privacy: Absent: no differential privacy, and every result says so.
    """

    name: Name
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    rounds: Count
    data: Data
    model: Model = Model()
    algorithm: FedAvg | DpFedSgd
    server: Server = Server()
    privacy: Privacy | None = None
    secagg: Secagg = Secagg()
    simulation: Simulation = Simulation()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment.

    Args:
        path: A TOML file.
        overrides: "a.b=value" entries that replace what the file says; the value is TOML, or else a plain string.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, mistyped or contradictory; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: {error}") from error
    base = Path(path).parent
    try:
        config = build_config(table, overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.data.path is None:
        return config
    return msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, path=str((base / config.data.path).resolve()))
    )


def build_config(table: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """An experiment from a nested table.

    Raises:
        ConfigError: a key is unknown, mistyped or contradictory; the message names it by its full path.
    """
    merged = _copy(table)
    for entry in overrides:
        _override(merged, entry)
    _refuse_unknown(merged, Config, "")
    try:
        config = msgspec.convert(merged, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_with_path(str(error))) from error
    _check(config)
    return config


def dump_config(config: Config) -> str:
    """The experiment as TOML, defaults written out; `build_config` of it gives the same experiment."""
    return msgspec.toml.encode(_without_none(msgspec.to_builtins(config))).decode()


def _check(config: Config) -> None:
    data, privacy, algorithm = config.data, config.privacy, config.algorithm
    if (data.bundled is None) == (data.path is None):
        raise ConfigError("data: needs exactly one of data.bundled and data.path")
    if config.model.hidden and config.model.kind != "mlp":
        raise ConfigError(f'model.hidden: only the "mlp" has hidden layers, not "{config.model.kind}"')
    if isinstance(algorithm, FedAvg) and (algorithm.local_epochs is None) == (algorithm.local_steps is None):
        raise ConfigError("algorithm: needs exactly one of algorithm.local_epochs and algorithm.local_steps")
    if privacy is None:
        if isinstance(algorithm, DpFedSgd):
            raise ConfigError('algorithm.name: "dp_fedsgd" needs a [privacy] section')
        return
    _check_privacy(config, privacy)


def _check_privacy(config: Config, privacy: Privacy) -> None:
    if config.simulation.drop_rate > 0 and privacy.dropouts == 0:
        raise ConfigError(
            "simulation.drop_rate: sites go silent, and privacy.dropouts = 0 has no noise to spare for it"
        )
    if config.secagg.mode == "plain":
        raise ConfigError('secagg.mode: "plain" is a float mean, and privacy is proved for integer sums only')
    if privacy.clip is not None and privacy.total_clip is not None:
        raise ConfigError(
            "privacy.total_clip: stands in place of privacy.clip, the norm at one site; give one of the two"
        )
    unit = "record" if isinstance(config.algorithm, DpFedSgd) else "client"
    if privacy.unit != unit:
        name = "dp_fedsgd" if unit == "record" else "fedavg"
        raise ConfigError(f'privacy.unit: "{name}" protects a {unit}, not a {privacy.unit}')
    if (privacy.records_per_site is None) == (unit == "record"):
        raise ConfigError(
            "privacy.records_per_site: the public cap on records per site; needed for the record unit, and for that only"
        )


def _override(table: dict[str, Any], entry: str) -> None:
    key, separator, text = entry.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f'"{entry}": an override is written section.key=value')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for index, part in enumerate(parts[:-1]):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{'.'.join(parts[: index + 1])}: is a value, not a section")
    table[parts[-1]] = value


def _refuse_unknown(table: Mapping[str, Any], kind: Any, path: str) -> None:  # noqa: ANN401 - a type of any form
    struct = _struct_for(kind, table, path)
    for key, value in table.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}{key}: {value} is not a finite number")
    if struct is None:
        return
    hints = typing.get_type_hints(struct)
    known = [field.name for field in msgspec.structs.fields(struct)]
    tag = struct.__struct_config__.tag_field
    for key, value in table.items():
        if key == tag:
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            known += [tag] if tag else []
            hint = f"; did you mean {path}{near[0]}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{path}{key}: no such key{hint}")
        if isinstance(value, Mapping):
            _refuse_unknown(value, hints[key], f"{path}{key}.")


def _struct_for(kind: Any, table: Mapping[str, Any], path: str) -> type[_Section] | None:  # noqa: ANN401 - see above
    """The section type that a table is read as: the one in an optional, or the one that the tag names."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    sections = [option for option in options if isinstance(option, type) and issubclass(option, _Section)]
    if len(sections) <= 1:
        return sections[0] if sections else None
    config = sections[0].__struct_config__
    tags = {option.__struct_config__.tag: option for option in sections}
    tag = table.get(config.tag_field or "")
    if tag not in tags:
        raise ConfigError(f"{path}{config.tag_field}: must be one of {', '.join(map(str, tags))}, not {tag!r}")
    return tags[tag]


def _with_path(message: str) -> str:
    """Turn "Expected `int` - at `$.a.b`" into "a.b: expected `int`"."""
    text, separator, where = message.rpartition(" - at `$")
    if not separator:
        return message[0].lower() + message[1:]
    path = where.rstrip("`").lstrip(".")
    return f"{path + ': ' if path else ''}{text[0].lower()}{text[1:]}"


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }

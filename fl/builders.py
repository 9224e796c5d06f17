"""From the sections of a configuration to model, plan and algorithm."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax  # type: ignore[import-untyped]  # it ships no types
from flax import linen, nnx
from flax.errors import ModifyScopeVariableError, ScopeCollectionNotFound, ScopeVariableNotFoundError

from fl import algorithms, model
from fl.algorithms import Algorithm, ClippedEncoding, LocalTraining, Server, WeightedEncoding
from fl.algorithms.fedavg import MAX_ROWS
from fl.algorithms.training import Upload
from fl.data import SiteData
from fl.errors import ConfigError, DataError, FlError, ModelError
from fl.model import Adapter, Functional, Leaf, Local, Params
from fl.scoring import kind_of
from fl.sections import Config, DpFedSgd, FedAvg, FedSgd, Scaffold
from privacy.adaptive import AdaptiveClip
from privacy.codec import FixedPoint
from privacy.plan import Plan


def unprotected(config: Config) -> Config:
    """The same experiment without privacy, protocol and what belongs to them: what centralised and local training are."""
    private = isinstance(config.algorithm, DpFedSgd)
    return msgspec.structs.replace(
        config,
        privacy=None,
        algorithm=FedSgd() if private else config.algorithm,
        secagg=msgspec.structs.replace(config.secagg, mode="plain", threshold=None),
        simulation=msgspec.structs.replace(
            config.simulation, drop_rate=0.0, drop_site=None, baselines=False, lifetime_epsilon=None, secure_only=()
        ),
    )


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """The server's optimiser."""
    chosen = config.server
    return algorithms.optimizer("server", chosen.optimizer, chosen.learning_rate, chosen.options)


def example_of(train: Mapping[str, SiteData]) -> jax.Array:
    """A record of zeros (1, ...) of the data's shape and dtype.

    Raises:
        DataError: a site's records or labels have another shape or dtype than the first one's; the message names the site.
    """
    first = next(iter(train.values()))
    for name, site in train.items():
        for what, mine, other in (("records", site.x, first.x), ("labels", site.y, first.y)):
            if mine.shape[1:] != other.shape[1:] or mine.dtype != other.dtype:
                raise DataError(
                    f"site {name}: {what} are {mine.dtype}{list(mine.shape[1:])}, those of the first site are "
                    f"{other.dtype}{list(other.shape[1:])}"
                )
    return jnp.zeros((1, *first.x.shape[1:]), first.x.dtype)


def require_fit(config: Config, adapter: Adapter, train: Mapping[str, SiteData]) -> None:
    """Check that model, loss and labels go together, before anything is trained.

    Raises:
        ConfigError: the model cannot take the records, or its code or the loss's raises anything.
        ModelError: the loss cannot take the model's outputs, or a training pass leaves another state than it found; the
            message names the leaf.
        DataError: a label is none that the loss, the outputs or the class weights know; the message names the site.
    """
    kind, weights = kind_of(config.model, train), config.model.class_weights
    loss = model.loss_function(config.model.loss, weights)
    first = next(iter(train.values()))

    def outputs_of(x: jax.Array) -> jax.Array:
        return adapter.forward(adapter.params, adapter.local, x, key=jax.random.key(0), train=False)[0]

    example, label = (np.zeros((1, *part.shape[1:]), part.dtype) for part in (first.x, first.y))
    try:
        outputs = jax.eval_shape(outputs_of, example)
    except FlError:
        raise
    except Exception as error:  # of whatever code the model is
        raise ConfigError(
            f'model.kind: "{config.model.kind}" does not take records {example.dtype}{list(example.shape[1:])}: {error}'
        ) from error
    jax.eval_shape(loss, outputs, label)
    _require_steady(config.model.kind, adapter, np.zeros((2, *first.x.shape[1:]), first.x.dtype))
    limits = [("outputs", outputs.shape[-1])] * (kind == "classes") + [("class weights", len(weights))] * bool(weights)
    for name, site in train.items():
        for what, limit in limits:
            if site.y.dtype != np.int32 or (site.y.size and not 0 <= site.y.min() <= site.y.max() < limit):
                raise DataError(f"site {name}: labels that are no class numbers below the number of {what}, {limit}")


def _require_steady(kind: str, adapter: Adapter, x: np.ndarray[Any, Any]) -> None:
    """Check that a training pass over x (batch, ...) leaves the leaves that it found, of the same shapes and dtypes."""
    built = adapter.merge(adapter.params, adapter.local)
    known: dict[str, Any] = {**adapter.frozen, **adapter.local, **adapter.params}
    # With what is no leaf of the adapter: keys, and what is wider than JAX computes.
    if isinstance(built, Functional):
        known = _named(built.state, "state") | known
    elif isinstance(built, linen.Module):
        known = _named(linen.unbox(built.variables)) | known
    try:
        moved, found = _after_training(adapter, built, x)
    except FlError:
        raise
    except (ModifyScopeVariableError, ScopeCollectionNotFound, ScopeVariableNotFoundError) as error:
        raise ModelError(f'model.kind: "{kind}" has a variable that only a training pass makes: {error}') from error
    except Exception as error:  # of whatever code the model is
        raise ConfigError(
            f'model.kind: "{kind}" cannot make a training pass: {type(error).__name__}: {error}'
        ) from error
    for name in sorted(moved.keys() | found):
        if name not in known:
            raise ModelError(f'model.kind: "{kind}": leaf {name} is there only after a training pass')
        if name in moved and Leaf.of(name, moved[name]) != Leaf.of(name, known[name]):
            old, new = (f"{each.dtype}{list(each.shape)}" for each in (known[name], moved[name]))
            raise ModelError(f'model.kind: "{kind}": leaf {name} is {old}, and after a training pass {new}')


def _after_training(adapter: Adapter, built: Any, x: np.ndarray[Any, Any]) -> tuple[dict[str, Any], set[str]]:  # noqa: ANN401 - a model
    """Shapes and dtypes by name after a training pass; the names of all variables that a Linen module has in it."""
    found: set[str] = set()

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:  # noqa: ANN401 - an interceptor of Flax
        outputs = call(*args, **kwargs)
        if not context.module.path and type(context.module) is type(built):
            found.update(_named(linen.unbox(context.module.variables)))
        return outputs

    def after(params: Params, local: Local, batch: jax.Array) -> dict[str, Any]:
        key = jax.random.key(0)
        if isinstance(built, Functional):
            return _named(built.apply(built.params, built.state, batch, key=key, train=True)[1], "state")
        _, params, local = adapter.forward(params, local, batch, key=key, train=True)
        return params | local

    with linen.intercept_methods(watch):
        return jax.eval_shape(after, adapter.params, adapter.local, x), found


def _named(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 - any pytree
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): value for path, value in paths if hasattr(value, "dtype")}


def build_adapter(config: Config, example: jax.Array) -> Adapter:
    """The model at its initial parameters; whatever keeps it from being built is the configuration's fault."""
    kind = config.model.kind
    shape = example.shape[1:]
    # A function of one's own is told an image's shape; the models of the package see it flattened.
    features = shape if ":" in kind and len(shape) != 1 else math.prod(shape)
    try:
        built = model.factory(kind, config.model.hidden, config.model.outputs)(features, nnx.Rngs(config.seed))
        return Adapter.of(
            built,
            example=example,
            key=jax.random.key(config.seed),
            personal=config.model.personal,
            frozen=config.model.frozen,
            batch_stats=config.model.batch_stats,
        )
    except FlError:
        raise
    except Exception as error:  # whatever a module's first pass raises, in its own code or its framework's
        raise ConfigError(f'model.kind: "{kind}" cannot be built for {features} features: {error}') from error


def build_plan(config: Config, sites: int, dimension: int) -> Plan | None:
    """The privacy plan that the budget asks for, or None without one."""
    privacy = config.privacy
    if privacy is None:
        return None
    return Plan.solve(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        unit=privacy.unit,
        relation=privacy.relation or ("add-remove" if privacy.unit == "record" else "zero-out"),
        sites=sites,
        dropouts=privacy.dropouts,
        colluders=privacy.colluders,
        clip=1.0 if privacy.clip is None and privacy.total_clip is None else privacy.clip,
        total_clip=privacy.total_clip,
        silos=privacy.silos,
        adaptive=AdaptiveClip(**msgspec.structs.asdict(privacy.adaptive)) if privacy.adaptive is not None else None,
        records_per_site=privacy.records_per_site or 1,
        dimension=dimension,
        bits=privacy.bits,
        rounds=config.rounds,
        divisor=privacy.divisor,
        sample_rate=privacy.sample_rate,
    )


def build_algorithm(
    config: Config,
    server: Server,
    plan: Plan | None,
    sites: int,
    example: jax.Array,
    *,
    everybody: int | None = None,
) -> Algorithm:
    """The algorithm that the configuration names.

    Args:
        config: The experiment.
        server: The server's half.
        plan: Its privacy plan.
        sites: Those in a round.
        example: (1, ...) a record of the data's shape and dtype.
        everybody: All sites, where a round has only some of them.
    """
    loss, chosen = model.loss_function(config.model.loss, config.model.class_weights), config.algorithm
    if isinstance(chosen, DpFedSgd):
        if plan is None:
            raise ConfigError('algorithm.name: "dp_fedsgd" needs a [privacy] section')
        return algorithms.dp_fedsgd(server, loss, plan, example=example)
    layout, dimension = server.adapter.schema.layout, server.adapter.schema.dimension
    values = FixedPoint(chosen.limit, chosen.fraction_bits, dimension)
    plain = config.secagg.mode == "plain"  # in floats nothing can wrap, so there is no cap on rows
    heaviest = 1 if plain else chosen.max_weight
    if isinstance(chosen, Scaffold):
        descent = algorithms.optimizer("algorithm", "sgd", chosen.learning_rate, {})
        training = LocalTraining(descent, _size(chosen.batch_size), chosen.local_epochs, chosen.local_steps)
        exact = WeightedEncoding(layout, values, heaviest, extra=("control",), uniform=True)
        made = algorithms.scaffold(
            server, loss, training, exact, sites=sites, everybody=everybody, learning_rate=chosen.learning_rate
        )
        return replace(made, max_rows=MAX_ROWS) if plain else made
    upload: Upload = "gradient" if isinstance(chosen, FedSgd) else chosen.upload
    encoding: ClippedEncoding | WeightedEncoding = WeightedEncoding(layout, values, heaviest, upload)
    if plan is not None:
        encoding = ClippedEncoding(layout, plan, upload)
    made = algorithms.fedavg(server, loss, _training(chosen), encoding, sites, strategy=config.server.strategy)
    return replace(made, max_rows=MAX_ROWS) if plain else made


def _training(chosen: FedAvg | FedSgd) -> LocalTraining:
    if isinstance(chosen, FedSgd):
        descent = algorithms.optimizer("algorithm", "sgd", chosen.learning_rate, {})
        return LocalTraining(descent, None, epochs=None, steps=1)
    local = algorithms.optimizer("algorithm", chosen.optimizer, chosen.learning_rate, chosen.options)
    return LocalTraining(local, _size(chosen.batch_size), chosen.local_epochs, chosen.local_steps, chosen.proximal)


def _size(batch_size: int | str) -> int | None:
    return None if isinstance(batch_size, str) else batch_size

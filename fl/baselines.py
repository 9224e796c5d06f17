"""What the same model reaches on the same split without privacy: centralised, each site alone, federated.

Simulation only: these see every row, or every site's own gradient, and no ε covers them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax  # type: ignore[import-untyped]  # it ships no types

from fl.algorithms import Records, Server
from fl.data import SiteData
from fl.errors import ConfigError
from fl.metrics import SiteReport, site_report
from fl.model import Adapter, Local, Loss, Params

Alive = npt.NDArray[np.bool_]


class Baseline(TypedDict):
    """A baseline's metrics on the held-out rows of all sites."""

    auc: float | None
    accuracy: float | None
    auc_site_mean: float | None


def scorer(
    adapter: Adapter, loss: str, test: Mapping[str, SiteData]
) -> Callable[[Sequence[Params], Sequence[Local]], SiteReport]:
    """A function of (parameters for each site, local state for each site) that reports on the held-out rows.

    Args:
        adapter: The model.
        loss: "logistic": outputs are logits. "squared": they are probabilities, clamped to [0, 1].
        test: Held-out rows by site.
    """
    longest = max(len(site.y) for site in test.values())
    padded = [np.pad(site.x, ((0, longest - len(site.y)), (0, 0))) for site in test.values()]

    @jax.jit
    def score(params: Params, local: Local, x: jax.Array) -> jax.Array:
        outputs = adapter.forward(params, local, x, train=False)[0].reshape(-1)
        return jax.nn.sigmoid(outputs) if loss == "logistic" else jnp.clip(outputs, 0, 1)

    def report(params: Sequence[Params], local: Sequence[Local]) -> SiteReport:
        scored = {}
        for (name, site), p, s, x in zip(test.items(), params, local, padded, strict=True):
            scored[name] = (site.y, np.asarray(score(p, s, x), np.float64)[: len(site.y)])
        return site_report(scored)

    return report


def baselines(
    server: Server,
    loss: Loss,
    train: Mapping[str, SiteData],
    score: Callable[[Sequence[Params]], SiteReport],
    alive: Alive,
) -> dict[str, Baseline]:
    """Full-batch gradient descent with the run's own model, start, server optimiser and learning rate.

    Args:
        server: The run's server.
        loss: Per-record loss.
        train: Training rows by site.
        score: Reports on one set of parameters for each site.
        alive: (rounds, sites) whether a site is in the run's round: the federated baseline misses the same ones.

    Returns:
        "centralized": one model on all rows. "local": each site's own model on its own rows, scored on its own held-out
        rows. "federated": one model, missing the sites that the run misses, without clip and noise. All take the
        run's number of steps and its average, which stops early enough to serve the baselines well.

    Raises:
        ConfigError: the model has batch statistics, which full-batch descent over sites does not define.
    """
    adapter, sites = server.adapter, len(train)
    coupled = adapter.coupled_leaves(jnp.zeros((1, next(iter(train.values())).x.shape[1]), jnp.float32))
    if coupled:
        raise ConfigError(
            f"simulation.baselines: the model has batch statistics ({coupled[0]}), baselines need one without"
        )
    descend = _descent(server, loss, train)

    def final(members: Alive) -> Params:
        iterates = descend(members)
        return adapter.unravel(iterates[len(iterates) // 2 :].mean(axis=0) if halved else iterates[-1])

    halved = server.average == "last_half"
    everybody = np.ones_like(alive)
    centralized, federated = final(everybody), final(alive)
    local = [final(everybody & (np.arange(sites) == index)) for index in range(sites)]
    return {
        "centralized": _metrics(score([centralized] * sites)),
        "local": _metrics(score(local)),
        "federated": _metrics(score([federated] * sites)),
    }


def _descent(server: Server, loss: Loss, train: Mapping[str, SiteData]) -> Callable[[Alive], npt.NDArray[np.float64]]:
    """A function from who takes part in each step (steps, sites) to the iterates (steps, d)."""
    adapter = server.adapter
    slots = max(1, *(len(site.y) for site in train.values()))
    records = [Records.place(site.x, site.y, slots) for site in train.values()]
    x, y, present = (jnp.stack([getattr(r, name) for r in records]) for name in ("x", "y", "present"))

    def total_loss(params: Params, members: jax.Array) -> jax.Array:
        def of_site(x: jax.Array, y: jax.Array, present: jax.Array) -> jax.Array:
            outputs, _ = adapter.forward(params, adapter.local, x, train=False)
            return jnp.sum(jnp.where(present, loss(outputs, y), 0.0))

        counts = jnp.maximum(jnp.sum(present, axis=1) @ members, 1)
        return jax.vmap(of_site)(x, y, present) @ members / counts

    @jax.jit
    def descend(alive: jax.Array) -> tuple[jax.Array, ...]:
        def step(
            carry: tuple[Params, optax.OptState], members: jax.Array
        ) -> tuple[tuple[Params, optax.OptState], Params]:
            params, opt_state = carry
            updates, opt_state = server.optimizer.update(jax.grad(total_loss)(params, members), opt_state, params)
            after: Params = optax.apply_updates(params, updates)
            return (after, opt_state), after

        start = (adapter.params, server.optimizer.init(adapter.params))
        _, iterates = jax.lax.scan(step, start, alive)
        return tuple(jax.tree.leaves(iterates))

    def run(alive: Alive) -> npt.NDArray[np.float64]:
        leaves = descend(jnp.asarray(alive, jnp.float32))
        return np.concatenate([np.asarray(leaf, np.float64).reshape(len(alive), -1) for leaf in leaves], axis=1)

    return run


def _metrics(report: SiteReport) -> Baseline:
    pooled = report["pooled"]
    return Baseline(auc=pooled["auc"], accuracy=pooled["accuracy"], auc_site_mean=report["auc_site_mean"])

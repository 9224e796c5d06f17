"""Models that come with the package, and how a configuration names one of its own."""

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from flax import nnx

from fl.errors import ConfigError
from fl.plugins import blame, import_function

ModelFactory: TypeAlias = Callable[[Any, nnx.Rngs], Any]


def logistic(features: int, rngs: nnx.Rngs) -> nnx.Module:
    """Logistic regression: one linear unit."""
    return nnx.Linear(features, 1, rngs=rngs)


class MLP(nnx.Module):
    """A perceptron with ReLU layers of the given widths; records of any shape are flattened."""

    def __init__(self, features: int, hidden: tuple[int, ...], rngs: nnx.Rngs, *, outputs: int = 1) -> None:
        widths = (features, *hidden, outputs)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """X (batch, ...) → (batch, outputs)."""
        x = x.reshape(len(x), -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def factory(kind: str, hidden: tuple[int, ...] = (), outputs: int = 1) -> ModelFactory:
    """The function that builds a model: "logistic", "mlp", or "package.module:function" of (features, rngs).

    Args:
        kind: As above. A function of one's own is given the number of features, or a record's shape where records are not
            vectors, and `nnx.Rngs`; it gives an NNX or Linen module, a `Functional`, or a callable pytree.
        hidden: Widths of the MLP's hidden layers.
        outputs: Scores per record, for "logistic" and "mlp".

    Raises:
        ConfigError: there is no such function, or, when it is called, it raises anything; the message names the key
            `model.kind` and the function.
    """
    if kind == "logistic" and outputs == 1:
        return logistic
    if kind in {"logistic", "mlp"}:
        return lambda features, rngs: MLP(features, hidden, rngs, outputs=outputs)
    if ":" not in kind:
        raise ConfigError(f'model.kind: "{kind}" is not "logistic", "mlp" or "package.module:function"')
    function = import_function("model.kind", kind)

    def build(features: Any, rngs: nnx.Rngs) -> Any:  # noqa: ANN401 - a number or a shape, and any model
        with blame("model.kind", kind, f"cannot be built for {features} features"):
            return function(features, rngs)

    return build

"""Models of any framework behind one adapter: named leaves, of which some leave a site and the others never do."""

from fl.model.adapter import Adapter, Local, Params, Vector
from fl.model.losses import LOSSES, Loss, loss_function
from fl.model.pytree import Functional
from fl.model.schema import Leaf, Leaves, Schema
from fl.model.zoo import MLP, ModelFactory, factory, logistic

__all__ = [
    "LOSSES",
    "MLP",
    "Adapter",
    "Functional",
    "Leaf",
    "Leaves",
    "Local",
    "Loss",
    "ModelFactory",
    "Params",
    "Schema",
    "Vector",
    "factory",
    "logistic",
    "loss_function",
]

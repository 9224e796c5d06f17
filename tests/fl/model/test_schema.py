import pytest
from flax import nnx

from fl.errors import ModelError
from fl.model import MLP, Adapter, Schema


def test_schema_order_matters():
    """Schemas with the same leaves in another order are different, since the vector would be permuted."""
    schema = Adapter.of(MLP(3, (4,), nnx.Rngs(0))).schema
    with pytest.raises(ModelError, match="another order"):
        schema.require(Schema(schema.leaves[::-1]))

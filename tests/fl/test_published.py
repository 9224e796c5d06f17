import dataclasses
import json
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from fl.errors import RunError
from fl.model import Adapter
from fl.published import read_description, read_leaves, read_params, write_model


class Small(nnx.Module):
    """Leaves of several dtypes, a batch statistic, and one that is frozen."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 1, rngs=rngs)])
        self.half = nnx.Param(jnp.array([1.5, -0.25], jnp.bfloat16))
        self.mean = nnx.BatchStat(jnp.float32(0.5))


@pytest.fixture
def written(toy, tmp_path):
    """A model on disk: its folder, adapter and parameters."""
    adapter = Adapter.of(Small(nnx.Rngs(0)), frozen=["layers.0.*"])
    config = toy()
    params = {name: value + jnp.asarray(0.125, value.dtype) for name, value in adapter.params.items()}
    write_model(tmp_path, adapter, params, config=config, table=None, rounds=7, private=False)
    return tmp_path, adapter, params


def test_every_leaf_comes_back_bitwise(written):
    """Shared, local and frozen leaves, bfloat16 included, by name and in their own dtypes."""
    folder, adapter, params = written
    description = read_description(folder)
    assert (description.rounds, description.private, description.hash) == (7, False, adapter.hash(params))
    leaves = read_leaves(folder, description)
    assert leaves.keys() == params.keys() | adapter.local.keys() | adapter.frozen.keys()
    for name, value in {**adapter.frozen, **adapter.local, **params}.items():
        assert leaves[name].dtype == value.dtype
        assert leaves[name].tobytes() == np.asarray(value).tobytes()
    shared, local = read_params(folder, description, adapter)
    assert adapter.hash(shared) == description.hash
    assert local.keys() == adapter.local.keys()
    kinds = {leaf.name: leaf.kind for leaf in description.leaves}
    assert set(kinds.values()) == {"shared", "local", "frozen"}


def test_numpy_alone_reads_it_without_pickle(written):
    """As model.json says: plain arrays by name, and bfloat16 as the bits of unsigned integers."""
    folder, _, params = written
    told = json.loads((folder / "model.json").read_text())
    with np.load(folder / "model.npz", allow_pickle=False) as file:
        for leaf in told["leaves"]:
            array = file[leaf["name"]]
            assert str(array.dtype) == leaf["stored"]
            if leaf["name"] == "['half']":
                assert (leaf["dtype"], leaf["stored"]) == ("bfloat16", "uint16")
                expected = np.asarray(params["['half']"]).astype(float)
                assert np.array_equal(array.view(ml_dtypes.bfloat16).astype(float), expected)


def test_the_same_model_gives_the_same_bytes(written, toy, tmp_path):
    """Nothing of time or place is in the files."""
    folder, adapter, params = written
    again = tmp_path / "again"
    again.mkdir()
    write_model(again, adapter, params, config=toy(), table=None, rounds=7, private=False)
    for name in ("model.npz", "model.json"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_what_does_not_fit_is_refused_by_name(written, toy):
    """No model, a leaf that is missing, values of another model, and a file that is none."""
    folder, adapter, params = written
    description = read_description(folder)
    other = dataclasses.replace(adapter)
    moved = {name: value * 2 for name, value in params.items()}
    whole = (folder / "model.npz").read_bytes()
    write_model(folder, other, moved, config=toy(), table=None, rounds=7, private=False)
    with pytest.raises(RunError, match="has the hash of"):
        read_params(folder, description, adapter)
    with zipfile.ZipFile(folder / "model.npz", "w") as file:
        file.writestr("nothing.txt", "")
    with pytest.raises(RunError, match=r"leaf .* is not what model\.json says"):
        read_leaves(folder, description)
    (folder / "model.npz").write_bytes(whole[:100])
    with pytest.raises(RunError, match=r"model\.npz: cannot be read"):
        read_leaves(folder, description)
    (folder / "model.json").write_text("{}")
    with pytest.raises(RunError, match=r"model\.json"):
        read_description(folder)
    (folder / "model.json").unlink()
    with pytest.raises(RunError, match="has published no model yet"):
        read_description(folder)


def test_where_the_records_lay_is_not_told(written, toy_folder):
    """A model that is given away says nothing of the computer that it was trained on."""
    text = (written[0] / "model.json").read_text()
    assert "data" not in json.loads(text)["config"]
    assert str(toy_folder) not in text


@pytest.mark.parametrize("dtype", ["junk", "float64"])
def test_a_dtype_that_was_changed_is_named(written, dtype):
    """One that there is not, and one that does not fit the bits: the file and the leaf."""
    folder = written[0]
    told = json.loads((folder / "model.json").read_text())
    told["leaves"] = [leaf | ({"dtype": dtype} if leaf["name"] == "['half']" else {}) for leaf in told["leaves"]]
    (folder / "model.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"model\.json: leaf \['half'\]"):
        read_leaves(folder, read_description(folder))

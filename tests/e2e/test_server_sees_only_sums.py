"""What the server receives during a run, searched byte by byte for anything of a single site."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fl import model
from fl.config import build_config
from fl.simulation import Consortium, run
from fl.site import Site
from secagg import ring
from secagg.crypto import prg

SCHEMA = """
name = "secret"
[label]
column = "sick"
positive = ["1"]
negative = ["0"]
"""
COLUMN = '[[columns]]\nname = "{}"\nkind = "number"\nlow = -1\nhigh = 1\nlowest = -1\nhighest = 1\n'
FEATURES = 64  # as many as a packed block has lanes, so that no padding can look like a small count
ROWS = {"east": 1, "north": 17, "south": 23, "west": 2}  # east has one record, so that its gradient is the row


class Zero(nnx.Module):
    """Linear regression from zero weights: with label 1 and rate 1, one step moves them by the row itself."""

    def __init__(self, features, rngs):  # noqa: ARG002 - what every factory takes
        self.weight = nnx.Param(jnp.zeros(features))

    def __call__(self, x):
        """(batch, features) → (batch,)."""
        return x @ self.weight.get_value()


@pytest.fixture
def config(tmp_path):
    """One round of one full-batch least-squares step at rate 1, over secret rows."""
    rng = np.random.default_rng(7)
    (tmp_path / "schema.toml").write_text(SCHEMA + "".join(COLUMN.format(f"c{i}") for i in range(FEATURES)))
    for name, count in ROWS.items():
        lines = [",".join([*(f"c{i}" for i in range(FEATURES)), "sick"])]
        lines += [",".join([*(f"{v:.9f}" for v in rng.uniform(-1, 1, FEATURES)), "1"]) for _ in range(count)]
        (tmp_path / f"site_{name}.csv").write_text("\n".join(lines) + "\n")
    return build_config(
        {
            "name": "secret",
            "rounds": 1,
            "data": {"path": str(tmp_path), "test_fraction": 0.01},
            "model": {"loss": "squared"},
            "algorithm": {"name": "fedavg", "local_steps": 1, "batch_size": 64, "learning_rate": 1.0},
        }
    )


def forms(values, block=None):
    """Every way in which numbers could be written: integers and floats of all widths, ring words, packed ring words."""
    values = np.atleast_1d(values)
    wide = values.astype(np.int64) if values.dtype.kind in "iu" else None
    out = {"float64": values.astype("<f8"), "float32": values.astype("<f4"), "big-endian": values.astype(">f8")}
    if wide is not None:
        out |= {"int64": wide.astype("<i8"), "int64 big-endian": wide.astype(">i8")}
    found = {name: array.tobytes() for name, array in out.items()}
    if wide is not None and block is not None:
        words = ring.encode(wide, block.bits)
        found |= {"words": words.tobytes(), "packed": bytes(ring.pack(words, block.bits))}
    return found


def secrets_of(parts, updates):
    """What must not be found: {(site, what): {form: bytes}}."""
    found = {}
    for client, part in parts.items():
        site, update = part.site, updates[client]
        blocks = {block.name: block for block in site.agreement.blocks}
        for name, block in blocks.items():
            found[site.name, name] = forms(part.sent[name], block)
        found[site.name, "change"] = forms(update.delta)
        found[site.name, "mean loss"] = forms(update.loss)
        for index, row in enumerate(site.rows.x):
            codes = np.rint(np.ldexp(row.astype(float), 32)).astype(np.int64)
            found[site.name, f"row {index}"] = forms(codes, blocks["update"]) | forms(row)
    return found


@pytest.fixture
def captured(config, tmp_path, monkeypatch):
    """A function that runs the experiment and gives (every byte that reached the server, the secrets)."""
    monkeypatch.setattr(model, "factory", lambda *_: Zero)
    updates, seen = {}, {}
    train = Site.train

    def watched(site, announcement):
        update, local = train(site, announcement)
        updates[site.id] = update
        return update, local

    class Watched(Consortium):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen["consortium"] = self

    monkeypatch.setattr(Site, "train", watched)
    monkeypatch.setattr("fl.simulation.runs.Consortium", Watched)

    def capture(out):
        frames = []
        run(config, out=tmp_path / out, tap=lambda phase, sender, frame: frames.append((phase, sender, bytes(frame))))
        return frames, secrets_of(seen["consortium"]._parts, updates)

    return capture


def pieces(phase, frame):
    """A frame without the zeros between header and body of a vector, which after a byte of a signature look like a small number."""
    if phase != "mask":
        return (frame,)
    end = 4 + int.from_bytes(frame[:4], "big")
    start = end + -end % 16
    assert not any(frame[end:start])
    return frame[:end], frame[start:]


def search(frames, secrets):
    """Which secrets are in the captured bytes, and in which form."""
    return {
        (what, form)
        for what, shapes in secrets.items()
        for form, data in shapes.items()
        for phase, _, frame in frames
        for piece in pieces(phase, frame)
        if data in piece
    }


def test_nothing_of_a_single_site_reaches_the_server(captured):
    """No site's vector, count, loss or row is among the bytes that the server receives, in any form of writing."""
    frames, secrets = captured("masked")
    assert {phase for phase, _, _ in frames} == {"advertise", "share", "mask", "confirm", "unmask"}
    assert {sender for _, sender, _ in frames} == {0, 1, 2, 3}
    assert search(frames, secrets) == set()


def test_the_search_finds_them_without_masks(captured, monkeypatch):
    """The same search finds every site's vector, count and loss, and the one-record site's row, when masks are off."""
    prg.self_test()
    monkeypatch.setattr(prg, "add_streams", lambda _words, keys: list(keys) and None)
    frames, secrets = captured("open")
    found = {what for what, _ in search(frames, secrets)}
    for name in ROWS:
        assert {(name, "update"), (name, "weight"), (name, "loss")} <= found
    assert ("east", "row 0") in found
    assert ("north", "row 0") not in found


def test_the_run_folder_holds_sums_only(captured, tmp_path):
    """What the server wrote has no site's count or loss; totals over sites are all there is."""
    captured("masked")
    line = json.loads((tmp_path / "masked" / "metrics.jsonl").read_text())
    assert line["weight"] == sum(ROWS.values())  # at this seed no record is in the held-out hundredth
    assert set(line) == {
        "round", "attempt", "survivors", "dropped", "seconds", "bytes", "sigma_eff", "epsilon", "transcript",
        "update_norm", "loss", "weight", "clip", "within", "refused",
    }  # fmt: skip

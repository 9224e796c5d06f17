"""One compiled program for a whole cohort: train, encode and add up client after client, in the memory of one.

The loop has dynamic bounds over a padded list of client ids. So one executable gives the whole sum (all positions) and
any one client's own contribution (a range of one), and the sum is that of the contributions by construction. Sums, flags
and the clients' local state are the loop's carry. On several devices the list is split, and the integer sums are added, which has no order.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fl.algorithms import Algorithm, ClippedEncoding, LocalResult, WeightedEncoding
from fl.data import Arrays
from fl.data.population import Ids, Population
from fl.errors import ConfigError, DataError, ModelError
from fl.model import Leaves
from fl.simulation import device

Sums: TypeAlias = dict[str, npt.NDArray[Any]]
Tree: TypeAlias = Any  # a pytree of arrays
Chunk: TypeAlias = int | Literal["measure"] | None

CANDIDATES = (1, 4, 16, 64)  # chunks that are timed
_AXIS = "clients"
_SPLIT, _SAME = PartitionSpec(_AXIS), PartitionSpec()  # type: ignore[no-untyped-call]  # JAX's own
_MEASURED = 64  # clients per timing


@dataclass(frozen=True)
class Plainly:
    """Float sums without an encoding: what a client sends, times its number of records.

    Attributes:
        layout: (leaf name, entries) in vector order.
        uniform: Every client that has records counts as one.
        extra: Names of further vectors (d,).
    """

    layout: tuple[tuple[str, int], ...]
    uniform: bool = False
    extra: tuple[str, ...] = ()

    def contribution(self, result: LocalResult, *, checked: bool) -> tuple[dict[str, device.Pieces], jax.Array]:
        """float32 vectors in pieces, by name, and the int32 weight; and bool (): everything is finite, if that is checked."""
        vectors = {"update": result.delta, **{name: result.extra[name] for name in self.extra}}
        blocks = {name: device.pieces(self.layout, vector) for name, vector in vectors.items()}
        blocks["loss"] = (result.loss.reshape(1),)
        weight = jnp.minimum(result.weight, 1) if self.uniform else result.weight
        ok = jnp.bool_(True)
        if checked:
            ok = jnp.all(jnp.array([device.finite(piece) for found in blocks.values() for piece in found]))
            weight = jnp.where(ok, weight, 0)
            blocks = {name: tuple(jnp.where(ok, piece, 0) for piece in found) for name, found in blocks.items()}
        scaled = {name: tuple(piece * weight.astype(piece.dtype) for piece in found) for name, found in blocks.items()}
        return scaled | {"weight": (weight.reshape(1),)}, ok


@dataclass(frozen=True)
class Outcome:
    """What a pass over some positions of a cohort gave.

    Attributes:
        sums: By block name; int64 under an encoding.
        ok: (n,) bool: whose update is in the sums. False where a client was not in the pass, or refused its update.
        local: (n, ...) the clients' local leaves; trained where they are in the sums, else as they were.
    """

    sums: Sums
    ok: npt.NDArray[np.bool_]
    local: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """What the clients of a round are told.

    Attributes:
        params: The global model's shared leaves.
        told: (d,) float32, what the algorithm tells beside it.
        number: The round.
        clip: The round's clip norm; not read where nothing is clipped.
    """

    params: Mapping[str, Any]
    told: Mapping[str, jax.Array]
    number: int
    clip: float = 1.0


class _Shape(NamedTuple):
    """What a program is compiled for, beside the shapes of its arguments."""

    slots: int
    chunk: int
    checked: bool


@dataclass(eq=False)
class Cohort:
    """The compiled programs of an algorithm over a population.

    Args:
        algorithm: One with a traceable `local_update`.
        population: Its clients.
        encoding: The algorithm's encoding, or how to add up in floats.
        seed: Of all clients' random streams: a client's key in a round is that of a `Site` with this id and seed.
        chunk: Clients that are trained side by side. None: 1 on a CPU, measured elsewhere. "measure": time a few on the
            first cohort and keep the best; a client's floats may round differently in another chunk, so a run that must be
            repeated bit for bit names its chunk.
        devices: Over which a cohort is split; by default all of the local ones.

    Attributes:
        chunks: The chunks that were measured, by number of slots.

    Raises:
        ModelError: the algorithm has no traceable update, or it keeps local state and the clients are generated; the
            message names the leaf.
        DataError: a client has more rows than the agreed public cap; the message names it.
        ConfigError: the chunk is not positive.

    Guarantees:
        Under an encoding, the sums of a pass over all positions are, bit for bit, the sum of the passes over one each, on
        any number of devices.
        Memory is that of a few models, n ids and n flags, beside the population's own and the local leaves of the cohort.
        A client whose update is refused adds nothing, and its local leaves stay.
    """

    algorithm: Algorithm
    population: Population
    encoding: WeightedEncoding | ClippedEncoding | Plainly
    seed: int
    chunk: Chunk = None
    devices: Sequence[jax.Device] | None = None
    _programs: dict[_Shape, Callable[..., Any]] = field(init=False, repr=False, default_factory=dict)
    chunks: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.algorithm.local_update is None:
            raise ModelError("the algorithm has no traceable local update: it cannot run as one compiled program")
        if self.algorithm.local and not self.population.stateful:
            raise ModelError(
                f"leaf {min(self.algorithm.local)} stays at the client from round to round, which generated clients "
                "cannot keep: share it, freeze it, or take clients with arrays"
            )
        name, rows = self.population.largest
        if rows > self.algorithm.max_rows:
            raise DataError(f"client {name}: {rows} training rows, and the agreed cap is {self.algorithm.max_rows}")
        if isinstance(self.chunk, int) and self.chunk < 1:
            raise ConfigError(f"a chunk of {self.chunk} clients: at least 1 is needed")
        self.update = self.algorithm.local_update
        self._wide = jax.dtypes.canonicalize_dtype(np.int64) == np.int64  # what training sees, here as at a site

    @property
    def exact(self) -> bool:
        """Whether the sums are integers."""
        return not isinstance(self.encoding, Plainly)

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices, in a row."""
        devices = jax.local_devices() if self.devices is None else list(self.devices)
        return jax.make_mesh((len(devices),), (_AXIS,), (AxisType.Auto,), devices=devices)

    @cached_property
    def data(self) -> Tree:
        """The population's arrays, on every device."""
        return self.placed(self.population.data, _SAME)

    def passes(self, task: Task, ids: Ids, local: Mapping[str, npt.NDArray[Any]]) -> "Passes":
        """Lay out the clients `ids` (n,), ascending, with local leaves (n, ...), for passes over them."""
        slots = self.population.slots(ids)
        chosen = [(int(size), np.flatnonzero(slots == size)) for size in np.unique(slots)]
        parts = []
        for size, places in chosen:
            rows = {name: leaf[places] for name, leaf in local.items()}
            chunk = self._chunk(task, ids[places], rows, size)
            parts.append((places, _Part(self, task, ids[places], rows, slots=size, chunk=chunk, most=len(ids))))
        return Passes(self, len(ids), local, parts)

    def key(self, client: int | jax.Array, number: int | jax.Array) -> jax.Array:
        """The key of a client's training in a round."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), client), number)

    def records(self, client: int) -> Arrays:
        """A client's records."""
        slots = int(self.population.slots(np.array([client]))[0])
        found: Arrays = jax.jit(self.population.gather, static_argnums=2)(self.data, jnp.int32(client), slots)
        return found

    def call(self, part: "_Part", bounds: tuple[Ids, Ids], *, checked: bool = True) -> Tree:
        """Run the executable for a part's shapes, which is compiled at first: sums, flags and local leaves."""
        shape = _Shape(part.slots, part.chunk, checked or self.exact)
        if shape not in self._programs:
            self._programs[shape] = self._program(shape)
        with jax.enable_x64(self.exact or self._wide):
            edges = self.placed(tuple(edge.astype(np.int32) for edge in bounds), _SPLIT)
            return self._programs[shape]((part.ids, *edges), part.local, part.told)

    def _program(self, shape: _Shape) -> Callable[..., Any]:
        loop = partial(self._loop, shape)
        if self.mesh.size > 1:
            loop = jax.shard_map(
                loop,
                mesh=self.mesh,
                in_specs=(_SPLIT, _SPLIT, _SAME),
                out_specs=(_SPLIT, _SPLIT, _SPLIT),
                check_vma=False,  # the carry starts the same everywhere and ends different
            )
        return jax.jit(loop)

    def placed(self, tree: Tree, spec: PartitionSpec) -> Tree:
        """Arrays where the programs want them; a single device takes them as they come, which is faster."""
        return tree if self.mesh.size == 1 else jax.device_put(tree, NamedSharding(self.mesh, spec))

    def _chunk(self, task: Task, ids: Ids, local: Mapping[str, npt.NDArray[Any]], slots: int) -> int:
        """The chunk for clients of that many slots; measured once where it is to be."""
        if isinstance(self.chunk, int):
            return min(self.chunk, len(ids))
        if self.chunk is None and self.mesh.devices.flat[0].platform == "cpu":
            return 1
        if slots not in self.chunks:
            some = ids[:_MEASURED]
            rows = {name: leaf[:_MEASURED] for name, leaf in local.items()}
            seconds = {
                chunk: _seconds(self, _Part(self, task, some, rows, slots=slots, chunk=chunk, most=len(some)))
                for chunk in CANDIDATES
                if chunk == 1 or chunk <= len(some)
            }
            self.chunks[slots] = min(seconds, key=seconds.__getitem__)
        return self.chunks[slots]

    def _loop(
        self, shape: _Shape, where: tuple[jax.Array, jax.Array, jax.Array], local: Leaves, told: Tree
    ) -> tuple[dict[str, device.Pieces], jax.Array, Leaves]:
        """Positions start to stop - 1 of this device's ids: `where` is (ids (k,), start (1,), stop (1,))."""
        ids, (start,), (stop,) = where
        one, chunk = partial(self._one, shape, told), shape.chunk

        def step(index: jax.Array, carry: Tree) -> Tree:
            sums, flags, local = carry
            at = index * chunk
            clients = jax.lax.dynamic_slice_in_dim(ids, at, chunk)
            before = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at, chunk), local)
            if chunk == 1:  # an axis of one client, and a mask over it, would cost time on a CPU
                vectors, ok, after = one(clients[0], _first(before))
                used, after = ok.reshape(1), jax.tree.map(lambda leaf: leaf[jnp.newaxis], after)
                sums = jax.tree.map(jnp.add, sums, vectors)
            else:
                vectors, ok, after = jax.vmap(one)(clients, before)
                position = at + jnp.arange(chunk, dtype=jnp.int32)
                used = ok & (position >= start) & (position < stop)
                sums = jax.tree.map(lambda total, rows: total + _sum_where(used, rows), sums, vectors)
            kept = jax.tree.map(lambda new, old: jnp.where(_spread(used, new), new, old), after, before)
            local = jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, at, 0), local, kept)
            return sums, jax.lax.dynamic_update_slice_in_dim(flags, used, at, 0), local

        shapes = jax.eval_shape(one, ids[0], _first(local))[0]
        zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        carry = (zeros, jnp.zeros(ids.shape, bool), local)
        sums, flags, local = jax.lax.fori_loop(start // chunk, -(-stop // chunk), step, carry)
        # Each device's own sums: to add a few of them here is quicker than to let the devices wait for each other.
        return jax.tree.map(lambda total: total[jnp.newaxis], sums), flags, local

    def _one(
        self, shape: _Shape, told: Tree, client: jax.Array, local: Leaves
    ) -> tuple[dict[str, device.Pieces], jax.Array, Leaves]:
        """One client: its vectors by block name, whether they may be used, and its local leaves after training."""
        params, beside, number, clip, data = told
        # Sums need 64-bit integers; training must not notice, or it would draw and compute in other types than at a site.
        with jax.enable_x64(self._wide):
            records = self.population.gather(data, client, shape.slots)
            result, after = self.update(params, local, records, key=self.key(client, number), broadcast=beside)
            if isinstance(self.encoding, Plainly):
                vectors, ok = self.encoding.contribution(result, checked=shape.checked)
                return vectors, ok, after
        vectors, ok = device.contribution(self.encoding, result, clip)
        return vectors, ok, after


class Passes:
    """A round's cohort, laid out: the whole sum, or a client's part of it, from the same executables.

    Args:
        cohort: Its programs.
        size: n.
        local: (n, ...) the clients' local leaves.
        parts: The positions of the clients of as many slots, and their layout.
    """

    def __init__(
        self,
        cohort: Cohort,
        size: int,
        local: Mapping[str, npt.NDArray[Any]],
        parts: Sequence[tuple[Ids, "_Part"]],
    ) -> None:
        self._cohort, self._size, self._local, self._parts = cohort, size, local, parts

    def all(self) -> Outcome:
        """Everybody. Float sums are checked when they are there, since a value that is not finite shows in the end."""
        whole = [(places, part, 0, len(places)) for places, part in self._parts]
        outcome = self._run(whole, checked=self._cohort.exact)
        if self._cohort.exact or all(np.isfinite(total).all() for total in outcome.sums.values()):
            return outcome
        return self._run(whole, checked=True)

    def only(self, position: int) -> Outcome:
        """The client at one position of the ids."""
        for places, part in self._parts:
            at = int(np.searchsorted(places, position))
            if at < len(places) and places[at] == position:
                return self._run([(places, part, at, at + 1)], checked=True)
        raise IndexError(f"position {position} of a cohort of {self._size}")

    def _run(self, chosen: Sequence[tuple[Ids, "_Part", int, int]], *, checked: bool) -> Outcome:
        sums: Sums = {}
        ok, local = np.zeros(self._size, bool), {name: leaf.copy() for name, leaf in self._local.items()}
        for places, part, start, stop in chosen:
            found, flags, after = jax.device_get(self._cohort.call(part, part.bounds(start, stop), checked=checked))
            for name, pieces in found.items():
                total = np.concatenate([piece.sum(axis=0, dtype=piece.dtype) for piece in pieces])
                sums[name] = sums[name] + total if name in sums else total
            ok[places] = part.flat(flags)
            for name, leaf in after.items():
                local[name][places] = part.flat(leaf)
        return Outcome(sums, ok, local)


class _Part:
    """Clients of the same number of slots on the devices: each has a stretch of them, padded to a power of two.

    Args:
        cohort: Their programs.
        task: What they are told.
        ids: (n,) ascending.
        local: (n, ...) their local leaves.
        slots: Of each.
        chunk: Clients side by side.
        most: In all parts of the round together, which sets the padding: a round's parts change in size, its cohort does not.
    """

    def __init__(
        self,
        cohort: Cohort,
        task: Task,
        ids: Ids,
        local: Mapping[str, npt.NDArray[Any]],
        *,
        slots: int,
        chunk: int,
        most: int,
    ) -> None:
        self.slots, self.chunk, self.size, self._rows = slots, chunk, len(ids), cohort.mesh.size
        self._per = -(-len(ids) // self._rows)
        each = -(-most // self._rows)
        chunks = -(-each // chunk)
        self._capacity = chunk << max(chunks - 1, 0).bit_length()  # few shapes, so few compilations
        self.ids = cohort.placed(self._padded(ids.astype(np.int32)), _SPLIT)
        self.local = {name: cohort.placed(self._padded(leaf), _SPLIT) for name, leaf in local.items()}
        with jax.enable_x64(True):  # else placing would cut the clip norm to 32 bits
            numbers = cohort.placed((np.int32(task.number), np.float64(task.clip)), _SAME)
        self.told = (*cohort.placed((task.params, dict(task.told)), _SAME), *numbers, cohort.data)

    def bounds(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """Positions start to stop - 1 as a range on each device."""
        offsets = np.arange(self._rows) * self._per
        return tuple(np.clip(edge - offsets, 0, self._per) for edge in (start, stop))  # type: ignore[return-value]

    def flat(self, found: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A value for each position as one for each client (n, ...)."""
        by_device = found.reshape(self._rows, self._capacity, *found.shape[1:])
        return by_device[:, : self._per].reshape(-1, *found.shape[1:])[: self.size]

    def _padded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rest = values.shape[1:]
        full = np.zeros((self._rows * self._per, *rest), values.dtype)
        full[: self.size] = values
        padded = np.zeros((self._rows, self._capacity, *rest), values.dtype)
        padded[:, : self._per] = full.reshape(self._rows, self._per, *rest)
        return padded.reshape(-1, *rest)


def _first(rows: Leaves) -> Leaves:
    return {name: leaf[0] for name, leaf in rows.items()}


def _spread(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _sum_where(flags: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(_spread(flags, rows), rows, jnp.zeros((), rows.dtype)), axis=0, dtype=rows.dtype)


def _seconds(cohort: Cohort, part: _Part) -> float:
    """Time of a pass over a part, compiled before."""
    bounds = part.bounds(0, part.size)
    jax.device_get(cohort.call(part, bounds))  # compiles
    start = time.perf_counter()
    jax.device_get(cohort.call(part, bounds))
    return time.perf_counter() - start

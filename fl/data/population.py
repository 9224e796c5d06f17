"""Clients of a simulated cohort: resident arrays, or a function that makes a client's records when they are needed."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fl.data.loaders import SiteData
from fl.data.records import Arrays
from fl.errors import ConfigError, DataError

Ids: TypeAlias = npt.NDArray[np.int64]
Generate: TypeAlias = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array, jax.Array]]

MAX_CLIENTS = 2**31 - 1  # ids are int32 on the device
_SAMPLING = 0x636F686F7274  # sets the cohort's stream apart from every other use of the seed
_RECORDS = 0x64617461  # the same for generated records


class Population(Protocol):
    """Clients 0 to size - 1."""

    @property
    def size(self) -> int:
        """The number of clients."""
        ...

    @property
    def names(self) -> Mapping[int, str]:
        """Client id → name."""
        ...

    @property
    def largest(self) -> tuple[str, int]:
        """Name and rows of a client that has the most."""
        ...

    @property
    def data(self) -> Any:  # noqa: ANN401 - any pytree
        """Arrays on the device that `gather` reads, as a pytree; given to the compiled program as an argument."""
        ...

    @property
    def stateful(self) -> bool:
        """Whether a client may keep local state from round to round."""
        ...

    def slots(self, ids: Ids) -> Ids:
        """The number of slots that each client's records are padded to: few different ones, each a compilation."""
        ...

    def gather(self, data: Any, client: jax.Array, slots: int) -> Arrays:  # noqa: ANN401 - as above
        """The records of client () int32 in that many slots; traced."""
        ...


class ArrayPopulation:
    """Clients whose rows are in memory, on the device, one after the other: clients of any size without padding.

    Args:
        clients: Name → `SiteData`, or (x (rows, ...), y (rows, ...)); the i-th is client i.
        slots: Maps a number of rows to the number of slots: an algorithm's `slots`.

    Raises:
        DataError: there are no clients, or a client's arrays do not fit each other or the others'; the message names it.

    Guarantees:
        `gather` gives a client's records as `Records.place` does, apart from the tags, which count the slots: an
        algorithm that is keyed by record has no traced update.
    """

    stateful = True

    def __init__(
        self, clients: Mapping[str, SiteData | tuple[npt.ArrayLike, npt.ArrayLike]], slots: Callable[[int], int]
    ) -> None:
        parts = {name: _rows(name, rows) for name, rows in clients.items()}
        if not parts:
            raise DataError("a population needs at least one client")
        first = next(iter(parts))
        for name, pair in parts.items():
            for what, mine, other in zip("xy", pair, parts[first], strict=True):
                if mine.shape[1:] != other.shape[1:] or mine.dtype != other.dtype:
                    raise DataError(
                        f"client {name}: {what} is {mine.dtype}{list(mine.shape)}, which does not go with "
                        f"{other.dtype}{list(other.shape)} of client {first}"
                    )
        self.names: Mapping[int, str] = dict(enumerate(parts))
        counts = np.array([len(y) for _, y in parts.values()])
        self.largest = (self.names[int(counts.argmax())], int(counts.max()))
        self._slots = _few([slots(int(count)) for count in counts])
        spare = int(self._slots.max())  # so that no slice ends beyond the rows, where it would be moved
        self.data = (
            *(
                jnp.asarray(np.concatenate([*(pair[i] for pair in parts.values()), _blank(parts[first][i], spare)]))
                for i in range(2)
            ),
            jnp.asarray((np.cumsum(counts) - counts).astype(np.int32)),
            jnp.asarray(counts.astype(np.int32)),
        )

    @property
    def size(self) -> int:
        """The number of clients."""
        return len(self.names)

    def slots(self, ids: Ids) -> Ids:
        """The number of slots of each client."""
        return self._slots[ids]

    def gather(self, data: Any, client: jax.Array, slots: int) -> Arrays:  # noqa: ANN401 - a pytree
        """The records of a client; absent slots are zero."""
        *columns, starts, counts = data
        positions = jnp.arange(slots, dtype=jnp.int32)
        present = positions < counts[client]
        x, y = (
            jnp.where(
                present.reshape(slots, *(1,) * (column.ndim - 1)),
                jax.lax.dynamic_slice_in_dim(column, starts[client], slots),
                jnp.zeros((), column.dtype),
            )
            for column in columns
        )
        return Arrays(x, y, present, positions.astype(jnp.uint32))


@dataclass(frozen=True)
class GeneratedPopulation:
    """Clients whose records are a function of their id: any number of them in the memory of one.

    Args:
        size: The number of clients.
        rows: Slots of every client.
        generate: A traced function of (key, client () int32, data) → x (rows, ...), y (rows, ...), present (rows,) bool.
            The key is a function of the seed and the client alone, so a client has the same records in every round.
        seed: Public.
        data: What `generate` reads beside them, as a pytree of arrays on the device; closed-over arrays would become constants of
            the program.

    Raises:
        ConfigError: the size or the number of rows is out of range.
    """

    size: int
    rows: int
    generate: Generate
    seed: int
    data: Any = None
    stateful = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_CLIENTS:
            raise ConfigError(f"a population of {self.size} clients: 1 to {MAX_CLIENTS} are possible")
        if self.rows < 1:
            raise ConfigError(f"a generated client has {self.rows} rows: at least 1 is needed")

    @property
    def largest(self) -> tuple[str, int]:
        """All are alike."""
        return self.names[0], self.rows

    @functools.cached_property
    def names(self) -> Mapping[int, str]:
        """`client-<id>`, made when they are looked up."""
        return _Numbered(self.size)

    def slots(self, ids: Ids) -> Ids:
        """The number of slots of each client: the same for all."""
        return np.full(len(ids), self.rows)

    def gather(self, data: Any, client: jax.Array, slots: int) -> Arrays:  # noqa: ANN401 - a pytree
        """The records of a client."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), _RECORDS), client)
        x, y, present = self.generate(key, client, data)
        return Arrays(x, y, present, jnp.arange(slots, dtype=jnp.uint32))


class _Numbered(Mapping[int, str]):
    """Names of numbered clients, none of them stored."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __getitem__(self, client: int) -> str:
        if not 0 <= client < self._size:
            raise KeyError(client)
        return f"client-{client}"

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._size))

    def __len__(self) -> int:
        return self._size


def sample(size: int, count: int, *, seed: int, number: int) -> Ids:
    """A uniform cohort of `count` different clients of `size`, for round `number`.

    Returns:
        int64 (count,), ascending.

    Raises:
        ConfigError: there are fewer clients than that, or none are asked for.

    Guarantees:
        A function of (size, count, seed, number) alone, in every version of NumPy: seed sequences and raw streams are fixed.
        The time is that of the cohort, not of the population, for a cohort of up to half of it.
    """
    if not 1 <= count <= size:
        raise ConfigError(f"a cohort of {count} clients out of {size}: 1 to {size} are possible")
    if 2 * count > size:  # fewer are left out than chosen: draw those
        rest = sample(size, size - count, seed=seed, number=number) if count < size else np.zeros(0, np.int64)
        return np.setdiff1d(np.arange(size), rest, assume_unique=True)
    stream = np.random.Philox(np.random.SeedSequence([_SAMPLING, seed, number]))
    drawn = np.zeros(0, np.int64)
    while len(drawn) < count:
        fresh = stream.random_raw(count).astype(np.uint64) % np.uint64(size)  # off by size / 2**64 from uniform
        drawn = np.concatenate([drawn, fresh.astype(np.int64)])
        _, places = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(places)]  # what was drawn first stays, so the last draw is cut fairly
    return np.sort(drawn[:count])


def _rows(name: str, rows: SiteData | tuple[npt.ArrayLike, npt.ArrayLike]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    x, y = (rows.x, rows.y) if isinstance(rows, SiteData) else map(np.asarray, rows)
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
        raise DataError(f"client {name}: x {list(x.shape)} and y {list(y.shape)} are not rows and their labels")
    return x, y


def _few(slots: list[int]) -> npt.NDArray[np.int64]:
    """Sizes from few: the largest, a quarter of it, and so on. A slot costs little, a compilation seconds."""
    most = max(slots)
    return np.array([most >> (((most // size).bit_length() - 1) // 2 * 2) for size in slots])


def _blank(like: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    return np.zeros((rows, *like.shape[1:]), like.dtype)

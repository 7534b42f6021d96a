"""A ring buffer of rows, as arrays: it lives inside compiled programs and is saved with a run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree


class Replay(NamedTuple):
    """The latest rows, up to a capacity C.

    Attributes:
        rows: a tree of arrays `[C, ...]`; those beyond `size` are zeros.
        size: number of rows held.
        position: where the next row goes.
    """

    rows: Any
    size: Int[Array, ""]
    position: Int[Array, ""]


def init_replay(row: PyTree, capacity: int) -> Replay:
    """Returns an empty buffer.

    Args:
        row: one row, a tree of arrays or of `jax.ShapeDtypeStruct`s; only shapes and dtypes matter.
        capacity: C.
    """
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), row)
    return Replay(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def add_rows(replay: Replay, rows: PyTree[Array]) -> Replay:
    """Returns the buffer with N rows `[N, ...]` in the place of its oldest ones.

    Of more rows than the capacity, the last ones are kept.
    """
    capacity = _length(replay.rows)
    rows = jax.tree.map(lambda x: x[-capacity:], rows)
    added = _length(rows)
    places = (replay.position + jnp.arange(added)) % capacity
    return Replay(
        rows=jax.tree.map(lambda held, new: held.at[places].set(new), replay.rows, rows),
        size=jnp.minimum(replay.size + added, capacity),
        position=(replay.position + added) % capacity,
    )


def sample_rows(key: PRNGKeyArray, replay: Replay, number: int) -> PyTree[Array]:
    """Returns `number` rows, each drawn uniformly from those held, with replacement."""
    places = jax.random.randint(key, (number,), 0, replay.size)
    return jax.tree.map(lambda x: x[places], replay.rows)


def _length(rows: PyTree[Array]) -> int:
    return jax.tree.leaves(rows)[0].shape[0]

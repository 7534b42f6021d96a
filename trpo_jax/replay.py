"""A ring buffer of rows. Compiled programs can use its arrays, and it is saved with a run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree


class Replay(NamedTuple):
    """The latest rows, at most C of them.

    Attributes:
        rows: a tree of arrays `[C, ...]`. Rows that were never filled are zeros.
        size: number of rows that were filled.
        position: index of the row that is filled next.
    """

    rows: Any
    size: Int[Array, ""]
    position: Int[Array, ""]


def init_replay(row: PyTree, capacity: int) -> Replay:
    """Returns an empty buffer.

    Args:
        row: one row, a tree of arrays or of `jax.ShapeDtypeStruct`s. Only shapes and dtypes matter.
        capacity: C.

    Examples:
        >>> replay = init_replay({"reward": jnp.zeros(())}, capacity=3)
        >>> replay = add_rows(replay, {"reward": jnp.array([1.0, 2.0])})
        >>> replay.rows, replay.size
        ({'reward': Array([1., 2., 0.], dtype=float32)}, Array(2, dtype=int32))
        >>> sample_rows(jax.random.key(0), replay, number=5)["reward"].shape
        (5,)
    """
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), row)
    return Replay(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def add_rows(replay: Replay, rows: PyTree[Array]) -> Replay:
    """Returns the buffer with N rows `[N, ...]` in place of its oldest rows.

    If there are more rows than the capacity, the last ones are kept.
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
    """Returns `number` rows, drawn uniformly and with replacement from the filled rows."""
    places = jax.random.randint(key, (number,), 0, replay.size)
    return jax.tree.map(lambda x: x[places], replay.rows)


def _length(rows: PyTree[Array]) -> int:
    return jax.tree.leaves(rows)[0].shape[0]

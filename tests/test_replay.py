import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.replay import add_rows, init_replay, sample_rows

pytestmark = pytest.mark.xdist_group("replay")  # one worker, to share compiled programs

EMPTY = init_replay((jnp.zeros(2), jnp.zeros((), bool)), capacity=5)


def rows(first, number):
    index = jnp.arange(first, first + number)
    return jnp.stack([index, 10 * index], axis=1).astype(jnp.float32), index % 2 == 0


add = jax.jit(add_rows)


def test_new_rows_replace_the_oldest_rows():
    replay = EMPTY
    for first, number, held in [
        (1, 3, {1, 2, 3}),
        (4, 3, {2, 3, 4, 5, 6}),
        (7, 4, {6, 7, 8, 9, 10}),
    ]:
        replay = add(replay, rows(first, number))
        assert replay.size == len(held)
        values, even = replay.rows
        assert set(np.asarray(values[: replay.size, 0]).tolist()) == held
        np.testing.assert_array_equal(values[:, 1], 10 * values[:, 0])
        np.testing.assert_array_equal(even[: replay.size], values[: replay.size, 0] % 2 == 0)
    assert replay.position == 10 % 5


def test_the_last_rows_are_kept_if_more_rows_are_added_than_fit():
    replay = add(add(EMPTY, rows(1, 2)), rows(3, 12))
    assert set(np.asarray(replay.rows[0][:, 0]).tolist()) == {10, 11, 12, 13, 14}
    assert replay.size == 5
    replay = add(replay, rows(15, 1))
    assert set(np.asarray(replay.rows[0][:, 0]).tolist()) == {11, 12, 13, 14, 15}


@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_all_rows_that_were_added_are_drawn_equally_often(number):
    replay = add(EMPTY, rows(1, number))
    values, even = jax.jit(lambda k: sample_rows(k, replay, 3000))(jax.random.key(0))
    drawn, counts = np.unique(np.asarray(values[:, 0]), return_counts=True)
    held = np.arange(1, number + 1)[-5:]
    np.testing.assert_array_equal(drawn, held)
    deviation = np.sqrt(3000 / len(held))
    assert np.all(np.abs(counts - 3000 / len(held)) < 4 * deviation)
    np.testing.assert_array_equal(even, values[:, 0] % 2 == 0)


def test_rows_keep_their_dtypes():
    values, even = add(EMPTY, rows(1, 2)).rows
    assert values.dtype == jnp.float32
    assert even.dtype == jnp.bool_

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.line_search import backtracking

PARAMS = {"w": jnp.array([0.1, 0.7], jnp.float32), "b": jnp.array(1 / 3, jnp.float32)}
STEP = {"w": jnp.array([1.0, 0.0], jnp.float32), "b": jnp.array(0.0, jnp.float32)}


def moved(params):
    return params["w"][0] - PARAMS["w"][0]


def search(evaluate, step=STEP, max_kl=1.0, num_steps=10):
    return jax.jit(lambda p, s: backtracking(evaluate, p, s, max_kl, 0.5, num_steps))(PARAMS, step)


def test_an_acceptable_full_step_is_taken():
    result = search(lambda p: (moved(p), moved(p) ** 2 / 2))
    assert result.accepted
    assert result.fraction == 1
    assert result.evaluations == 1
    chex.assert_trees_all_close(result.params["w"], jnp.array([1.1, 0.7]))


def test_the_step_shrinks_until_the_kl_is_small_enough():
    result = search(lambda p: (moved(p), moved(p) ** 2), max_kl=0.07)
    assert result.accepted
    assert result.fraction == 0.25
    assert result.evaluations == 3


def test_the_step_shrinks_until_the_surrogate_improves():
    result = search(lambda p: (moved(p) * (0.3 - moved(p)), jnp.zeros(())))
    assert result.fraction == 0.25


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda p: (moved(p), jnp.array(2.0)),
        lambda p: (-moved(p), jnp.array(0.0)),
        lambda p: (0 * moved(p), jnp.array(0.0)),
        lambda p: (jnp.nan * moved(p), jnp.array(0.0)),
        lambda p: (jnp.inf * moved(p), jnp.array(0.0)),
        lambda p: (moved(p), jnp.array(jnp.nan)),
    ],
    ids=["kl too large", "no gain", "zero gain", "nan gain", "infinite gain", "nan kl"],
)
def test_parameters_stay_exactly_the_same_if_no_candidate_is_acceptable(evaluate):
    result = search(evaluate)
    assert not result.accepted
    assert result.fraction == 0
    assert result.evaluations == 10
    chex.assert_trees_all_equal(result.params, PARAMS)


def test_parameters_stay_exactly_the_same_if_the_step_is_not_finite():
    step = jax.tree.map(lambda s: s * jnp.nan, STEP)
    result = search(lambda p: (moved(p), jnp.zeros(())), step, num_steps=3)
    chex.assert_trees_all_equal(result.params, PARAMS)


def test_each_search_under_vmap_has_its_own_result():
    evaluate = lambda p: (moved(p), moved(p) ** 2)
    radii = jnp.array([2.0, 0.07, 1e-9])
    batch = jax.vmap(lambda r: backtracking(evaluate, PARAMS, STEP, r, 0.5, 6))(radii)
    np.testing.assert_array_equal(batch.accepted, [True, True, False])
    np.testing.assert_array_equal(batch.fraction, [1.0, 0.25, 0.0])

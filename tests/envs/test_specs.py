import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.envs.specs import Box, Discrete, MultiDiscrete, to_environment_action, to_space_action


def test_bounded_components_are_clipped_and_mapped_onto_the_bounds():
    box = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    actions = [([0.0, 0.0], [0.0, 5.0]), ([0.5, -0.5], [1.0, 2.5]), ([3.0, -9.0], [2.0, 0.0])]
    for action, expected in actions:
        result = to_environment_action(box, jnp.array(action))
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_unbounded_components_and_shapes_are_kept():
    box = Box(np.full((2, 1), -np.inf, np.float32), np.array([[np.inf], [1.0]], np.float32))
    result = to_environment_action(box, jnp.array([7.0, -3.0]))
    np.testing.assert_allclose(result, [[7.0], [-3.0]])


@pytest.mark.parametrize("action", [0, 3])
def test_discrete_actions_are_kept(action):
    assert to_environment_action(Discrete(4), jnp.array(action)) == action


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, np.inf, [0.0, 0.0, 0.5, 3.0]),  # clipped on the bounded side
        (-1.0, np.inf, [-1.0, 0.0, 0.5, 3.0]),
        (5.0, np.inf, [5.0, 5.0, 5.5, 8.0]),  # 0 is outside, so an action of 0 means the bound
        (-np.inf, -5.0, [-7.0, -5.0, -5.0, -5.0]),
        (-LARGEST, LARGEST, [-2.0, 0.0, 0.5, 3.0]),  # bounds that mean no bounds
        (-LARGEST, 1.0, [-2.0, 0.0, 0.5, 1.0]),
        (-1e300, 1e300, [-2.0, 0.0, 0.5, 3.0]),
        (3.0, 3.0, [3.0] * 4),
        (-1e17, 1e17, [-1e17, 0.0, 5e16, 1e17]),
    ],
)
def test_components_with_one_bound_no_bound_and_far_bounds(low, high, expected):
    box = Box(np.array([low]), np.array([high]))
    given = [to_environment_action(box, jnp.array([x])) for x in (-2.0, 0.0, 0.5, 3.0)]
    np.testing.assert_allclose(np.ravel(given), np.float32(expected), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_actions_are_inside_their_space_in_its_own_precision(dtype):
    low, high = np.array([-0.7, 0.1], dtype), np.array([0.1, 0.3], dtype)
    box = Box(low, high)
    for x in (-9.0, -1.0, 0.3, 1.0, 9.0):
        action = to_space_action(box, to_environment_action(box, jnp.full(2, x)))
        assert action.dtype == dtype
        assert ((low <= action) & (action <= high)).all()


def test_discrete_actions_begin_at_the_start_of_the_environment():
    assert to_environment_action(Discrete(3, -1), jnp.array(2)) == 1
    several = MultiDiscrete((2, 3), (-4, 7), np.dtype(np.int8))
    given = to_environment_action(several, (jnp.array(1), jnp.array(0)))
    np.testing.assert_array_equal(given, [-3, 7])
    assert to_space_action(several, given).dtype == np.int8

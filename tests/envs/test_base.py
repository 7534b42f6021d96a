import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.envs.base import Box, Discrete, to_environment_action


def test_bounded_components_are_clipped_and_mapped_onto_the_bounds():
    box = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    actions = [([0.0, 0.0], [0.0, 5.0]), ([0.5, -0.5], [1.0, 2.5]), ([3.0, -9.0], [2.0, 0.0])]
    for action, expected in actions:
        result = to_environment_action(box, jnp.array(action))
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_unbounded_components_and_shapes_go_through():
    box = Box(np.full((2, 1), -np.inf, np.float32), np.array([[np.inf], [1.0]], np.float32))
    result = to_environment_action(box, jnp.array([7.0, -3.0]))
    np.testing.assert_allclose(result, [[7.0], [-3.0]])


@pytest.mark.parametrize("action", [0, 3])
def test_discrete_actions_pass(action):
    assert to_environment_action(Discrete(4), jnp.array(action)) == action

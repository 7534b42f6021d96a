"""Compares the classic control of gymnax with Gymnasium, from the same random states.

The results are equal up to rounding. There is one difference, after the end of an episode: a step
from a terminated state of CartPole has the reward 0 in gymnax, and 1 the first time in Gymnasium.
The tests draw states in which the episode is not over.
"""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import envs

NUM_STATES = 300
PI = np.pi
RANGES = {
    "CartPole-v1": [(-2.4, 2.4), (-2, 2), (-0.209, 0.209), (-2, 2)],
    "Pendulum-v1": [(-PI, PI), (-8, 8)],
    "MountainCar-v0": [(-1.2, 0.6), (-0.07, 0.07)],
    "Acrobot-v1": [
        (-np.pi, np.pi),
        (-np.pi, np.pi),
        (-4 * np.pi, 4 * np.pi),
        (-9 * np.pi, 9 * np.pi),
    ],
}
FIELDS = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Pendulum-v1": ("theta", "theta_dot"),
    "MountainCar-v0": ("position", "velocity"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
}


@pytest.mark.parametrize("name", RANGES)
def test_dynamics_rewards_and_terminations_match_gymnasium(name):
    rng = np.random.default_rng(0)
    env, reference = envs.make(name), gymnasium.make(name).unwrapped
    reference.reset(seed=0)
    low, high = np.array(RANGES[name]).T
    states = rng.uniform(low, high, size=(NUM_STATES, len(low)))
    if isinstance(reference.action_space, gymnasium.spaces.Discrete):
        actions = rng.integers(reference.action_space.n, size=NUM_STATES)
    else:
        actions = rng.uniform(-2, 2, size=(NUM_STATES, 1)).astype(np.float32)

    template, _ = env.reset(jax.random.key(0))
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (NUM_STATES, *x.shape)), template)
    columns = dict(zip(FIELDS[name], jnp.asarray(states.T, jnp.float32), strict=True))
    _, results = jax.vmap(env.step, (None, 0, 0))(
        jax.random.key(0), batch.replace(**columns), jnp.asarray(actions)
    )
    for i in range(NUM_STATES):
        reference.state = states[i].copy()
        if name == "CartPole-v1":
            reference.steps_beyond_terminated = None
        observation, reward, terminated, _, _ = reference.step(actions[i])
        np.testing.assert_allclose(results.observation[i], observation, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(results.reward[i], reward, rtol=1e-4, atol=1e-4)
        assert results.terminated[i] == terminated, (states[i], actions[i])


@pytest.mark.parametrize("name", RANGES)
def test_time_limits_match_gymnasium(name):
    assert envs.make(name).time_limit == gymnasium.spec(name).max_episode_steps

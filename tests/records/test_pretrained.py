"""The policies that the package brings."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import trpo_jax
from trpo_jax import envs
from trpo_jax.errors import ConfigurationError
from trpo_jax.records import pretrained

FOLDER = Path(pretrained.__file__).parent / "trained"


def mean_return(name, num_steps, num_episodes=16):
    """Returns the mean return of the first episodes on the device, of `num_steps` at the most."""
    env, policy = envs.make(name), trpo_jax.pretrained(name)

    def episode(key):
        state, observation = env.reset(key)

        def step(carry, key):
            state, observation, alive = carry
            state, result = env.step(key, state, policy(observation))
            carry = state, result.observation, alive & ~result.terminated
            return carry, alive * result.reward

        start = (state, observation, jnp.array(True))
        return jax.lax.scan(step, start, jax.random.split(key, num_steps))[1].sum()

    return jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(7), num_episodes)).mean()


@pytest.mark.parametrize("name", pretrained.FILES)
def test_the_file_of_a_policy_has_less_than_100_kilobytes(name):
    assert (FOLDER / pretrained.FILES[name]).stat().st_size < 100_000


def test_the_package_has_a_name_for_each_file():
    assert {path.name for path in FOLDER.iterdir()} == set(pretrained.FILES.values())


@pytest.mark.parametrize(
    ("name", "num_steps", "least"), [("CartPole-v1", 500, 499.5), ("Pendulum-v1", 200, -200)]
)
def test_the_policies_solve_their_tasks(name, num_steps, least):
    assert mean_return(name, num_steps) >= least


def test_the_walker_walks():
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    env, policy = gymnasium.make("Walker2d-v5"), trpo_jax.pretrained("gym/Walker2d-v5")
    observation, _ = env.reset(seed=7)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total, over = total + reward, terminated or truncated
    assert total >= 5_000


def test_an_environment_without_a_policy_is_refused_with_the_names_that_have_one():
    with pytest.raises(ConfigurationError, match=r"CartPole-v2.*Did you mean CartPole-v1"):
        trpo_jax.pretrained("CartPole-v2")

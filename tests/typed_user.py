"""What a user writes, for static type checkers: `test_types.py` runs pyright on it, nothing else.

`assert_type` is an error where the checker sees another type, `Any` too.
"""

from types import ModuleType
from typing import assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import trpo_jax
from trpo_jax import algorithms
from trpo_jax.algorithms import trpo


class MyPolicy(nn.Module):
    @nn.compact
    def __call__(self, observations: Float[Array, "N 4"]) -> trpo_jax.Categorical:
        return trpo_jax.Categorical(nn.Dense(2)(nn.relu(nn.Dense(32)(observations))))


def make_env(length: int = 10) -> trpo_jax.Environment:
    """A walk on a line, to its end."""

    def reset(key: Array) -> tuple[Array, Array]:
        start = jax.random.uniform(key, (1,))
        return start, start

    def step(key: Array, state: Array, action: Array) -> tuple[Array, trpo_jax.StepResult]:
        state = state + jnp.where(action == 1, 1.0, -1.0)
        end = (jnp.abs(state) >= length).any()
        return state, trpo_jax.StepResult(state, state.sum(), end, jnp.array(False))

    return trpo_jax.Environment(
        name="walk",
        reset=reset,
        step=step,
        observation=trpo_jax.ArraySpec((1,), np.dtype(np.float32)),
        action=trpo_jax.Discrete(2),
        time_limit=100,
    )


def train_and_act(observation: np.ndarray) -> np.ndarray:
    run = trpo_jax.train("CartPole-v1", trpo.Config(max_kl=0.02), seeds=8, out="runs/a_folder")
    assert_type(run, trpo_jax.Run)
    returns = run.metrics["episodic_return"]
    assert_type(returns, np.ndarray)
    if run.evaluation is not None:
        print(run.evaluation.summary.iqm)
    policy = run.policy(seed=3)
    policy = trpo_jax.load_policy("runs/a_folder")
    trpo_jax.export(policy, "policy.npz")
    run.plot()
    return policy(observation, jax.random.key(0))


def train_my_network_in_my_environment() -> trpo_jax.Run:
    env, config = make_env(), trpo_jax.trpo.Config(hidden_sizes=(32, 32))
    network = trpo_jax.from_linen(MyPolicy(), env.observation)
    assert_type(network, trpo_jax.Network)
    agent = trpo_jax.make_agent(env, config)._replace(policy=trpo_jax.memoryless(network))
    assert_type(agent, trpo_jax.Agent)
    return trpo_jax.train(env, config, agent=agent, algorithm=trpo, total_steps=10_000)


def update_by_hand() -> None:
    env = trpo_jax.make_env("CartPole-v1", {"gravity": 20.0})
    assert_type(env, trpo_jax.Environment)
    algorithm = trpo.make(env, trpo.Config(max_kl=jnp.array(0.01)))
    assert_type(algorithm, trpo_jax.Algorithm)
    states = jax.vmap(algorithm.init)(jax.random.split(jax.random.key(0), 8))
    update = jax.jit(jax.vmap(algorithm.update))
    states, metrics = update(states)
    print(jnp.average(metrics["episodic_return"], weights=metrics["num_episodes"]))


def sweep_and_read_defaults() -> None:
    found = trpo_jax.sweep("CartPole-v1", grid={"max_kl": [0.01, 0.02]}, seeds=4)
    assert_type(found, trpo_jax.Sweep)
    print(found.ranking[0].setting, trpo_jax.defaults("trpo", "CartPole-v1").config)
    assert_type(algorithms.get("ppo"), ModuleType)
    assert_type(algorithms.ppo.Config().clip, Array | float)


def optimise(inputs: Array, labels: Array) -> Array:
    params = jnp.zeros((8, 3))
    distribution_fn = lambda params: trpo_jax.Categorical(inputs @ params)
    loss_fn = lambda params: -jnp.mean(distribution_fn(params).log_prob(labels))
    optimizer = trpo_jax.natural_gradient(
        max_kl=0.1,
        damping=1.0,
        learning_rate=1.0,
        damping_rule=trpo_jax.levenberg_marquardt(),
        solver=trpo_jax.sample_space_solver,
    )
    state = optimizer.init(params)
    for _ in range(10):
        gradients = jax.grad(loss_fn)(params)
        updates, state = optimizer.update(
            gradients, state, params, distribution_fn=distribution_fn, value_fn=loss_fn
        )
        params = optax.apply_updates(params, updates)
    assert_type(state.info.kl, Array)
    return loss_fn(params)


def mistakes() -> None:
    """Each is one that the checker has to find: a comment that ignores nothing is an error too."""
    trpo_jax.trane("CartPole-v1")  # pyright: ignore[reportAttributeAccessIssue]
    trpo_jax.train("CartPole-v1", steps=10)  # pyright: ignore[reportCallIssue]
    trpo_jax.make_env(4)  # pyright: ignore[reportArgumentType]
    trpo.Config(max_kl="small")  # pyright: ignore[reportArgumentType]
    algorithms.trop.make(make_env())  # pyright: ignore[reportAttributeAccessIssue]

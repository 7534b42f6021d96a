"""Measures the cost and the residual of each solver, on policies after some training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.envs.episodes import Transition
from trpo_jax.host_rollout import host_rollout, make_choose, start_host_episodes
from trpo_jax.running.host_groups import next_key
from trpo_jax.running.loop import compile_program

UPDATES = 60
TASKS = (
    ("CartPole-v1", {}),
    ("envpool/HalfCheetah-v4", {"log_std_init": -0.5, "scale_rewards": True}),
)
SOLVERS = (
    {"solver": "cg", "cg_iters": 10},
    {"solver": "cg", "cg_iters": 20},
    {"solver": "kronecker", "cg_iters": 3},
    {"solver": "kronecker", "cg_iters": 10},
)


def measure(env_name: str, settings: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Returns one row for each solver, with the seconds of a policy's update, and the residual.

    The time leaves out the rollout and the fit of the critic. Batches have the default size.
    """
    env = envs.make(env_name)
    algorithm = trpo.make(env, trpo.Config(**settings))
    state, trajectory = after_training(algorithm)
    num_parameters = sum(x.size for x in jax.tree.leaves(state.actor.policy_params))
    calls, residuals = {}, {}
    for index, solver in enumerate(SOLVERS):
        improve = trpo.make(env, trpo.Config(**settings, **solver)).improve
        calls[index] = partial(
            jax.jit(improve).lower(state, trajectory).compile(), state, trajectory
        )
        _, _, metrics = calls[index]()
        residuals[index] = float(metrics["cg_residual"])
    seconds = time_in_turns(calls, repeats)
    return [
        {
            "env": env_name,
            "parameters": num_parameters,
            **SOLVERS[index],
            "seconds": float(np.median(x)),
            "residual": residuals[index],
        }
        for index, x in seconds.items()
    ]


def after_training(algorithm: Algorithm) -> tuple[Any, Transition]:
    """Returns the state of a seed after `UPDATES` updates, and the next trajectory."""
    env = algorithm.env
    if env.open is None:
        update: Callable[..., Any] = lambda state, _: (algorithm.update(state)[0], None)
        state = jax.jit(algorithm.init)(jax.random.key(0))
        state, _ = jax.jit(partial(jax.lax.scan, update, length=UPDATES))(state)
        return jax.jit(algorithm.collect)(state)
    program = compile_program(algorithm, (0,), UPDATES)
    states, _ = program.advance(program.state, UPDATES)
    program.close()
    (state,) = states.seeds
    num_envs = state.rollout.episodes.length.shape[0]
    pool = env.open(0, num_envs)
    _, _, trajectory = host_rollout(
        env,
        pool,
        make_choose(env, algorithm.act),
        state.actor,
        next_key(state),
        start_host_episodes(env, pool, num_envs),
        state.rollout.acting,
        algorithm.num_steps,
    )
    pool.close()
    return state, trajectory

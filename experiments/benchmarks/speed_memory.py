"""Measures what a memory costs: the speed of training, and the space of each environment."""

from functools import partial
from typing import Any

import jax
import numpy as np
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.running.memory import compiled_bytes

WIDTH = 128
NUM_ENVS = 16
LENGTHS = (128, 1_024)  # steps of a rollout
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "gru": {"memory": "gru"},
    "gru, checkpoint": {"memory": "gru", "memory_checkpoint": True},
    "lstm": {"memory": "lstm"},
}


def measure(repeats: int) -> list[dict[str, Any]]:
    """Returns steps per second and bytes per environment, for each kind of memory and length.

    The task is CartPole-v1-NoVel with `NUM_ENVS` environments. The bytes per environment are the
    extra space of an update with twice as many environments, divided by `NUM_ENVS`.
    """
    env, rows = envs.make("CartPole-v1-NoVel"), []
    for num_steps in LENGTHS:
        calls, space = {}, {}
        for name, settings in KINDS.items():
            programs = [
                _compiled(env, num_steps=num_steps, num_envs=count, **settings)
                for count in (NUM_ENVS, 2 * NUM_ENVS)
            ]
            (update, state), _ = programs
            calls[name] = partial(update, state)
            small, large = (compiled_bytes(program) for program, _ in programs)
            space[name] = (large - small) / NUM_ENVS
        seconds = time_in_turns(calls, repeats)
        rows += [
            {
                "memory": name,
                "num_steps": num_steps,
                "steps_per_second": num_steps * NUM_ENVS / float(np.median(x)),
                "bytes_per_env": space[name],
            }
            for name, x in seconds.items()
        ]
    return rows


def _compiled(env: Any, **settings: Any) -> tuple[Any, Any]:
    config = trpo.Config(hidden_sizes=(WIDTH, WIDTH), memory_size=WIDTH, **settings)
    algorithm = trpo.make(env, config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    return jax.jit(algorithm.update).lower(state).compile(), state

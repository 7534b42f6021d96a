"""How fast whole training is: over environments, over seeds, and beside the bare environment."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.envs.base import Box
from trpo_jax.rollout import rollout, start_episodes

LANES = 8  # seeds side by side where the others wait their turn


def over_environments(
    env_name: str, num_envs: tuple[int, ...], options: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Returns steps per second of one seed, and of its environments alone, by their number."""
    env = envs.make(env_name)
    rows = []
    for count in num_envs:
        algorithm = trpo.make(env, trpo.Config(num_envs=count, **options))
        state = jax.jit(algorithm.init)(jax.random.key(0))
        episodes = jax.jit(partial(start_episodes, env, num_envs=count))(jax.random.key(0))
        alone = jax.jit(partial(rollout, env, random_actions(env), num_steps=options["num_steps"]))
        update = jax.jit(algorithm.update)
        calls = {
            "alone": partial(alone, jax.random.key(1), episodes),
            "training": partial(update, state),
        }
        seconds = time_in_turns(calls, repeats)
        steps = algorithm.steps_per_update
        rows.append(
            {
                "env": env_name,
                "num_envs": count,
                "training": steps / float(np.median(seconds["training"])),
                "alone": steps / float(np.median(seconds["alone"])),
                "share": float(np.median(seconds["alone"] / seconds["training"])),
            }
        )
    return rows


def random_actions(env: envs.Environment) -> Callable[..., jax.Array]:
    """Returns a policy that chooses at random."""

    def act(key, observations):
        if isinstance(env.action, Box):
            return jax.random.normal(key, (len(observations), env.action.size))
        return jax.random.randint(key, (len(observations),), 0, env.action.num_actions)

    return act


def over_seeds(algorithm: Algorithm, num_seeds: int, repeats: int) -> dict[str, Any]:
    """Returns steps per second of all seeds together in three forms, and memory of a seed.

    The forms are all at once (`vmap`), one after another (`lax.map`), and some at once. Memory is
    what the compiler plans for the first, states and temporary arrays, in bytes.
    """
    keys = jax.random.split(jax.random.key(0), num_seeds)
    states = jax.jit(jax.vmap(algorithm.init))(keys)
    forms = {
        "vmap": jax.vmap(algorithm.update),
        "map": partial(jax.lax.map, algorithm.update),
        "batched map": partial(jax.lax.map, algorithm.update, batch_size=LANES),
    }
    compiled = {name: jax.jit(form).lower(states).compile() for name, form in forms.items()}
    seconds = time_in_turns({name: partial(f, states) for name, f in compiled.items()}, repeats)
    steps = algorithm.steps_per_update * num_seeds
    memory = compiled["vmap"].memory_analysis()
    planned = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return {
        "num_seeds": num_seeds,
        **{name: steps / float(np.median(x)) for name, x in seconds.items()},
        "bytes_per_seed": planned / num_seeds,
    }

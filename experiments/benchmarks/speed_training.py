"""Measures the speed of whole training: by environments and seeds, beside PPO, and to a return."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np
from reach_return import THRESHOLD
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import ppo, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.analysis.returns import running_return
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import Box
from trpo_jax.rollout import rollout, start_episodes
from trpo_jax.running.loop import compile_program, run_chunks

LANES = 8  # seeds of one batch of `lax.map`
UPDATES = 4  # in each turn, or between two checks of the return
MOST_UPDATES = 200

# The published settings of PPO in PureJaxRL. The critic of TRPO gets the same number of passes. The
# Fisher matrix of TRPO uses all states, or a quarter of them as in the defaults.
SHARED = {
    "num_envs": 4,
    "num_steps": 128,
    "critic_epochs": 4,
    "critic_minibatches": 4,
    "entropy_coef": 0.01,
}
PPO = {"policy_epochs": 4, "policy_minibatches": 4, "policy_lr": 2.5e-4, "critic_lr": 2.5e-4}
METRICS = {"trpo": {}, "trpo, a quarter": {"fisher_subsample": 4}}


def over_environments(
    env_name: str, num_envs: tuple[int, ...], options: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Returns steps per second of one seed, and of its environments alone, for each number."""
    env = envs.make(env_name)
    rows = []
    for count in num_envs:
        algorithm = trpo.make(env, trpo.Config(num_envs=count, **options))
        state = jax.jit(algorithm.init)(jax.random.key(0))
        num_parameters = sum(x.size for x in jax.tree.leaves(state.actor.policy_params))
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
                "num_steps": options["num_steps"],
                "parameters": num_parameters,
                "training": steps / float(np.median(seconds["training"])),
                "alone": steps / float(np.median(seconds["alone"])),
                "share": float(np.median(seconds["alone"] / seconds["training"])),
            }
        )
    return rows


def random_actions(env: Environment) -> Callable[..., jax.Array]:
    """Returns a policy that draws random actions."""

    def act(key, observations):
        if isinstance(env.action, Box):
            return jax.random.normal(key, (len(observations), env.action.size))
        return jax.random.randint(key, (len(observations),), 0, env.action.num_actions)

    return act


def over_seeds(algorithm: Algorithm, num_seeds: int, repeats: int) -> dict[str, Any]:
    """Returns steps per second of all seeds together in three forms, and the memory of a seed.

    The forms run all seeds at once (`vmap`), one after another (`lax.map`), and `LANES` at once.
    The memory is for `vmap`: the states and the temporary arrays that the compiler plans, in bytes.
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


def beside_ppo(num_seeds: int, repeats: int) -> dict[str, Any]:
    """Returns steps per second of PPO and TRPO on CartPole-v1, with batches of the same size."""
    env = envs.make("CartPole-v1")
    algorithms = {"ppo": ppo.make(env, ppo.Config(**SHARED, **PPO))}
    for name, metric in METRICS.items():
        algorithms[name] = trpo.make(env, trpo.Config(**SHARED, **metric))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    calls = {}
    for name, algorithm in algorithms.items():
        state = jax.jit(jax.vmap(algorithm.init))(keys)
        advance = partial(advance_all, algorithm)
        calls[name] = partial(jax.jit(advance).lower(state).compile(), state)
    seconds = time_in_turns(calls, repeats)
    steps = algorithms["ppo"].steps_per_update * UPDATES * num_seeds
    return {
        "num_seeds": num_seeds,
        "steps_per_second": {name: steps / float(np.median(x)) for name, x in seconds.items()},
        "ratios": {name: float(np.median(seconds["ppo"] / x)) for name, x in seconds.items()},
    }


def advance_all(algorithm: Algorithm, states: Any) -> Any:
    """Returns the states of all seeds after `UPDATES` updates."""
    update = lambda state, _: jax.vmap(algorithm.update)(state)
    return jax.lax.scan(update, states, length=UPDATES)


def seeds_to_return(algorithm: Algorithm, num_seeds: int) -> dict[str, Any]:
    """Returns the seconds until half of the seeds, and all seeds, have reached a return of 475.

    The return is the mean of the last 20 training episodes. Seconds are None if the seeds do not
    reach it within `MOST_UPDATES` updates.
    """
    returns, counts = (np.empty((num_seeds, 0)) for _ in range(2))
    reached, seconds = 0.0, {"half": None, "all": None}
    with closing(compile_program(algorithm, range(num_seeds), UPDATES)) as program:
        for chunk in run_chunks(program, MOST_UPDATES):
            returns = np.append(returns, chunk.metrics["episodic_return"], axis=1)
            counts = np.append(counts, chunk.metrics["num_episodes"], axis=1)
            reached = np.mean((running_return(returns, counts) >= THRESHOLD).any(axis=1))
            for name, share in (("half", 0.5), ("all", 1.0)):
                if seconds[name] is None and reached >= share:
                    seconds[name] = chunk.seconds
            if reached == 1:
                break
    return {
        "num_seeds": num_seeds,
        "compilation": program.compile_seconds,
        "reached": float(reached),
        **seconds,
    }

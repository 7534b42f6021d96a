"""Small tasks of this library, in JAX, whose best policies are known in closed form."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from trpo_jax.envs.base import Discrete, Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.errors import ConfigurationError, require_known_environment


def names() -> list[str]:
    """Returns the names that `make` knows."""
    return ["TollRoad"]


def make(name: str, **args: Any) -> Environment:
    """Returns a task; see `toll_road` for its arguments."""
    require_known_environment("native", name, names())
    return toll_road(**args)


def toll_road(length: int = 20) -> Environment:
    """Returns a road of toll gates, with a cost for each that is taken.

    At each gate the observation says how much time the toll road saves, a fresh uniform number x in
    [0, 1]. Action 1 takes the toll road: the reward is x and the cost `toll` is 1. Action 0 gives
    neither. An episode has H = `length` gates, after which it terminates.

    With at most d tolls an episode, the best policy pays wherever x is at least tau = 1 - d / H;
    see `best_return`. A toll is then worth tau, which is the multiplier of the limit.

    Args:
        length: number of gates, at least 1.
    """
    if not (isinstance(length, int) and length >= 1):
        raise ConfigurationError(f"length = {length!r} must be an integer from 1 on.")

    def draw(key):
        return jax.random.uniform(key, (1,))

    def reset(key):
        saving = draw(key)
        return (jnp.zeros((), jnp.int32), saving), saving

    def step(key, state, action):
        gate, saving = state
        pays = (action == 1).astype(jnp.float32)
        shown = draw(key)
        over = gate + 1 >= length
        return (gate + 1, shown), shown, pays * saving[0], over, False, pays[None]

    return make_environment("native/TollRoad", reset, step, Discrete(2), None, costs=("toll",))


def best_return(limit: float, length: int = 20) -> float:
    """Returns the largest return of `toll_road` with at most `limit` tolls an episode, on average.

    It is H (1 - tau^2) / 2 with tau = 1 - limit / H, and tau = 0 from H tolls on.
    """
    tau = max(0.0, 1 - limit / length)
    return length * (1 - math.pow(tau, 2)) / 2

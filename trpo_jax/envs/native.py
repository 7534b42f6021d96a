"""Small tasks of this library, in JAX, whose best policies are known in closed form."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.base import Agents, Discrete, Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.errors import ConfigurationError, require_known_environment


def names() -> list[str]:
    """Returns the names that `make` knows."""
    return list(TASKS)


def make(name: str, **args: Any) -> Environment:
    """Returns a task; see the functions below for its arguments."""
    full_name = require_known_environment("native", name, names())
    require_known_args(full_name, args, parameters_of(TASKS[name]))
    return TASKS[name](**args)


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


# Reward of a team of two in the climbing game, by the action of the first and that of the second.
CLIMBING = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]], np.float32)


def climbing_game() -> Environment:
    """Returns the climbing game, which a team of two plays once an episode.

    Both choose one of three actions at once, and the team gets their entry of `CLIMBING` (Claus and
    Boutilier 1998, "The dynamics of reinforcement learning in cooperative multiagent systems"). The
    best joint action gives 11, but whoever chooses it while the other one does not loses 30. Both
    agents see a constant.
    """
    shown = jnp.ones((2, 1), jnp.float32)

    def reset(key):
        return (), shown

    def step(key, state, actions):
        return (), shown, jnp.asarray(CLIMBING)[actions[0], actions[1]], True, False

    action = Agents((Discrete(3), Discrete(3)))
    return make_environment("native/ClimbingGame", reset, step, action, None)


TASKS = {"TollRoad": toll_road, "ClimbingGame": climbing_game}

"""Adapter for the single-player games of pgx 2.x (https://github.com/sotetsuk/pgx)."""

from typing import Any

import pgx

from trpo_jax.envs.base import Environment
from trpo_jax.envs.functional import make_environment
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.envs.specs import MASK, SHOWN, Discrete
from trpo_jax.errors import ConfigurationError, require_known_environment


def names() -> list[str]:
    """Returns the names of the environments in this suite: the games with one player."""
    return [name for name in pgx.available_envs() if name == "2048" or "minatar" in name]


def make(name: str, **args: Any) -> Environment:
    """Returns a game of pgx, such as "2048" or "minatar-breakout".

    The games have no time limit. An illegal move loses the game. If a game has illegal moves, the
    part `action_mask` of the observation shows the legal moves.

    Args:
        name: a name of pgx.
        **args: arguments of the class of the game, such as `sticky_action_prob` in MinAtar.

    Raises:
        ConfigurationError: if the name or an argument is unknown, or the game needs several
            players.
    """
    full_name = require_known_environment("pgx", name, pgx.available_envs())
    env = pgx.make(name)
    if args:
        require_known_args(full_name, args, parameters_of(type(env)))
        env = type(env)(**args)
    if env.num_players > 1:
        raise ConfigurationError(
            f"Environment {full_name!r} needs {env.num_players} players. Choose a game of pgx with "
            "one player: 2048 or minatar-*."
        )

    def show(state):
        if "minatar" in name:  # all actions are legal
            return state.observation
        return {SHOWN: state.observation, MASK: state.legal_action_mask}

    def reset(key):
        state = env.init(key)
        return state, show(state)

    def step(key, state, action):
        state = env.step(state, action, key)
        return state, show(state), state.rewards, state.terminated, state.truncated

    return make_environment(full_name, reset, step, Discrete(env.num_actions), None)

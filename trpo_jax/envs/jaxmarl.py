"""Adapter for JaxMARL 0.2 (https://github.com/FLAIROx/JaxMARL): several agents in JAX."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from inspect import signature
from io import StringIO
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.agents import (
    MPE_COMPETING,
    MPE_COOPERATIVE,
    REWARDS,
    STATE,
    own_actions,
    row_shape,
    stacked,
    team_reward,
)
from trpo_jax.envs.base import Environment
from trpo_jax.envs.deferred import deferred
from trpo_jax.envs.functional import box_of, frames_of, make_environment
from trpo_jax.envs.options import require_known_args
from trpo_jax.envs.specs import MASK, SHOWN, Agents, Box, Discrete
from trpo_jax.errors import ConfigurationError, require_known_environment

MABRAX = "jaxmarl.environments.mabrax"  # its import takes seconds, and undoes `redirect_stdout`
sys.modules.setdefault(MABRAX, None)  # so JaxMARL thinks that it is not installed
with deferred("matplotlib.pyplot", "matplotlib.animation"), redirect_stdout(StringIO()):
    import jaxmarl
    from jaxmarl.environments import spaces
    from jaxmarl.environments.mpe import MPEVisualizer
    from jaxmarl.environments.multi_agent_env import MultiAgentEnv
    from jaxmarl.environments.smax import map_name_to_scenario
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO
    from jaxmarl.viz.visualizer import SMAXVisualizer

if sys.modules[MABRAX] is None:
    del sys.modules[MABRAX]

HIDDEN = {"self", "args", "kwargs", "env_kwargs"}  # parameters that are no arguments for a user
SMAX = ("SMAX", "HeuristicEnemySMAX")
COOPERATIVE = {
    **{f"MPE_{task}": "sum" for task in MPE_COOPERATIVE},
    "SMAX": "same",
    "HeuristicEnemySMAX": "same",
    "switch_riddle": "same",
    "hanabi": "same",
    "overcooked": "same",
    "overcooked_v2": "same",
    "jaxnav": "sum",
}
COMPETING = {
    **{f"MPE_{task}": why for task, why in MPE_COMPETING.items()},
    "coin_game": "each takes coins at the cost of the other",
}


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    return [*COOPERATIVE, *COMPETING]


def make(name: str, rewards: str | None = None, **args: Any) -> Environment:
    """Returns an environment of JaxMARL, such as "MPE_simple_spread_v3" or "SMAX".

    "SMAX" stands for HeuristicEnemySMAX of JaxMARL: a team against an enemy that follows rules. The
    argument `scenario` is the name of a map, such as "3s5z".

    JaxMARL terminates an episode after `max_steps` steps. This adapter truncates the episode
    instead. If an environment shows the state of the whole team, only the critic sees it.

    Args:
        name: a name of JaxMARL.
        rewards: how to compute the reward of the team from the rewards of the agents: their "sum",
            their "mean", or "same", the reward of the first agent, if all agents get the same
            reward. None means the choice that fits the environment.
        **args: arguments of the class of the environment.

    Raises:
        ConfigurationError: if the name or an argument is unknown, if the agents compete, or if
            their spaces cannot be padded to one space.
    """
    full_name = require_known_environment("jaxmarl", name, names())
    of_team = REWARDS[team_reward(name, rewards, COOPERATIVE, COMPETING)]
    env = _make(full_name, "HeuristicEnemySMAX" if name in SMAX else name, args)
    agents = list(env.agents)
    action = Agents(tuple(_action_spec(full_name, env.action_space(agent)) for agent in agents))
    shapes, _ = jax.eval_shape(env.reset, jax.random.key(0))
    shape = row_shape(full_name, "observations", [shapes[agent].shape for agent in agents])
    legal = _legal_of(env) if isinstance(action.padded, Discrete) else None
    limit = getattr(env, "max_steps", None)

    def show(observations, state):
        rows = [jnp.asarray(observations[agent], jnp.float32) for agent in agents]
        shown = {SHOWN: stacked(shape, rows)}
        if "world_state" in observations:
            shown[STATE] = jnp.asarray(observations["world_state"], jnp.float32)
        if legal is not None:
            masks = [legal(state)[agent] != 0 for agent in agents]
            shown[MASK] = stacked((action.padded.num_actions,), masks)
        return shown if len(shown) > 1 else shown[SHOWN]

    def reset(key):
        observations, state = env.reset(key)
        return state, show(observations, state)

    def step(key, state, rows):
        actions = dict(zip(agents, own_actions(action, rows), strict=True))
        observations, state, rewards, done, _ = env.step_env(key, state, actions)
        over = done["__all__"]
        truncated = over & (_steps(state) >= limit) if limit else jnp.zeros((), bool)
        reward = of_team([jnp.asarray(rewards[agent], jnp.float32) for agent in agents])
        return state, show(observations, state), reward, over & ~truncated, truncated

    return make_environment(
        full_name,
        reset,
        step,
        action,
        limit,
        render=_renderer(full_name, env),
        critic_observation=STATE if "world_state" in shapes else None,
    )


def _make(full_name: str, own_name: str, args: dict[str, Any]) -> MultiAgentEnv:
    """Returns the environment of JaxMARL."""
    if isinstance(args.get("scenario"), str):
        scenario = args["scenario"]
        if scenario not in MAP_NAME_TO_SCENARIO:
            raise ConfigurationError(
                f"Unknown scenario {scenario!r} of {full_name}. Known: "
                f"{', '.join(MAP_NAME_TO_SCENARIO)}."
            )
        args = {**args, "scenario": map_name_to_scenario(scenario)}
    with redirect_stdout(StringIO()):
        env = jaxmarl.make(own_name)
        if args:
            # Each class passes unknown arguments to its base class. The last one ignores them.
            kinds = [*type(env).__mro__, *type(getattr(env, "_env", env)).__mro__]
            named = (signature(kind.__init__).parameters for kind in kinds if kind is not object)
            require_known_args(full_name, args, {name for one in named for name in one} - HIDDEN)
            env = jaxmarl.make(own_name, **args)
    return env


def _steps(state: Any) -> Any:
    """Returns the number of steps of the episode so far."""
    return state.step if hasattr(state, "step") else _steps(state.state)


def _legal_of(env: MultiAgentEnv) -> Callable[[Any], dict[str, Any]] | None:
    """Returns `state -> legal actions of each agent`. None if all actions are always legal."""
    if hasattr(env, "get_legal_moves"):
        return env.get_legal_moves
    own = type(env).get_avail_actions is not MultiAgentEnv.get_avail_actions
    return env.get_avail_actions if own else None


def _action_spec(name: str, space: Any) -> Discrete | Box:
    match space:
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.Box():
            return box_of(space)
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(space).__name__}, which no policy can "
        "choose. Supported: Discrete and Box. Choose another environment."
    )


def _renderer(
    name: str, env: MultiAgentEnv
) -> Callable[[Sequence[Any]], Sequence[np.ndarray]] | None:
    """Returns the function that draws states. None if JaxMARL cannot draw single states."""
    if "/MPE_" in name:

        def render(states):
            with redirect_stdout(StringIO()):
                visualizer = MPEVisualizer(env, list(states))
            return frames_of(visualizer.fig, visualizer.update, range(len(states)))

        return render
    if not hasattr(env, "all_agents"):
        return None

    def render_smax(states):
        visualizer = SMAXVisualizer(env, list(states))

        def draw(state):
            game = state.state
            attacks = dict(zip(env.all_agents, np.asarray(game.prev_attack_actions), strict=True))
            env.init_render(visualizer.ax, (None, game, attacks), 0, int(game.step))

        return frames_of(visualizer.fig, draw, states)

    return render_smax

"""Adapter for the parallel API of PettingZoo (https://pettingzoo.farama.org): teams on the host."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import mpe2  # noqa: F401  the suite needs this package too
import numpy as np
from pettingzoo import ParallelEnv

from trpo_jax import user_modules
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
from trpo_jax.envs.base import MAX_LIMIT, Environment, Pool, host_environment
from trpo_jax.envs.gymnasium import (
    CloudpickleWrapper,
    action_spec,
    environment_seeds,
    observation_spec,
)
from trpo_jax.envs.observations import array_spec, centre, num_numbers, require_tuple, to_arrays
from trpo_jax.envs.options import parameters_of, require_known_args
from trpo_jax.envs.pools import Shows, open_pool
from trpo_jax.envs.specs import (
    MASK,
    Agents,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    ObservationSpec,
    path_name,
    split_mask,
    to_space_action,
    with_parts,
)
from trpo_jax.errors import RAISED, ConfigurationError, Unpromised, unknown_name

DRAWS = "render_mode"  # the argument of PettingZoo for the mode of drawing
COOPERATIVE = {
    **{f"mpe2.{task}": "sum" for task in MPE_COOPERATIVE},
    "mpe2.simple_formation_v1": "same",
    "mpe2.simple_line_v1": "same",
    "mpe2.collect_treasure_v1": "sum",
    "sisl.multiwalker_v9": "mean",  # each agent has this mean unless shared_reward is False
    "sisl.pursuit_v5": "mean",
    "butterfly.cooperative_pong_v6": "same",
    "butterfly.knights_archers_zombies_v11": "sum",
    "butterfly.pistonball_v6": "same",
}
STATELESS = ("sisl.multiwalker_v9",)  # its state raises an error after a walker has fallen
COMPETING = {
    **{f"mpe2.{task}": why for task, why in MPE_COMPETING.items()},
    "classic.rps_v2": "each wins what the other loses",
}


class Team(NamedTuple):
    """The facts about the agents of an environment.

    Attributes:
        agents: the names of the agents.
        own: the spec of the observation of each agent, without its mask.
        rows: the spec of the observations of all agents, with an axis of agents.
        action: the spec of the actions of the team.
        rewards: how to compute the reward of the team, a key of `REWARDS`.
        limit: number of steps after which the environment ends an episode. None if unknown.
        masked: whether the team shows a mask of legal actions.
        has_state: whether the team shows the state of the whole team.
    """

    agents: tuple[Any, ...]
    own: tuple[ObservationSpec, ...]
    rows: ObservationSpec
    action: Agents
    rewards: str
    limit: int | None
    masked: bool = False
    has_state: bool = False


class TeamEnv:
    """An environment of PettingZoo with the interface of Gymnasium. The whole team is one agent."""

    def __init__(self, make: Callable[[], ParallelEnv], team: Team):
        """Makes the environment."""
        self.env, self.team = make(), team

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode. Returns its first observation, and an empty info."""
        returned = self.env.reset(**options)
        returned = require_tuple("reset", returned, "observations", "infos")
        self.num_steps = 0
        return self._shown(*returned, self.env.agents), {}

    def step(self, rows: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step. Returns observation, reward, terminated, truncated and an empty info.

        The episode ends with the step after which no agent acts. It is truncated if an agent that
        acted in this step was truncated, or if this step reaches the time limit. At their time
        limit, some environments say that all agents terminated.
        """
        agents, each = self.team.agents, self.team.action.each
        acting = list(self.env.agents)
        pairs = zip(agents, each, own_actions(self.team.action, rows), strict=True)
        actions = {agent: to_space_action(own, x)[()] for agent, own, x in pairs if agent in acting}
        names = ("observations", "rewards", "terminations", "truncations", "infos")
        returned = require_tuple("step", self.env.step(actions), *names)
        observations, rewards, terminations, truncations, infos = returned
        self.num_steps += 1
        going_on = [
            agent
            for agent in self.env.agents
            if not (terminations.get(agent) or truncations.get(agent))
        ]
        over = not going_on
        cut = any(map(truncations.get, acting)) or self.num_steps == self.team.limit
        found = [rewards[agent] for agent in agents if agent in rewards]
        reward = REWARDS[self.team.rewards](found + [0.0] * (len(agents) - len(found)))
        # The critic needs the last observations to estimate the value of a truncated episode.
        shown = self._shown(observations, infos, observations if over else going_on)
        return shown, reward, over and not cut, over and cut, {}

    def render(self) -> Any:
        """Returns an image of the environment."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def _shown(self, observations: Any, infos: Any, seen: Any) -> Any:
        """Returns the observation of the team. Agents that are not in `seen` show zeros."""
        team = self.team
        found = [
            observations[agent] if agent in seen and agent in observations else None
            for agent in team.agents
        ]
        pairs = zip(team.own, found, strict=True)
        own = [_zeros(spec) if x is None else centre(spec, to_arrays(spec, x)) for spec, x in pairs]
        rows = jax.tree.map(
            lambda spec, *xs: stacked(spec.shape[1:], xs, np).astype(spec.dtype), team.rows, *own
        )
        parts = {STATE: self.env.state()} if team.has_state else {}
        if team.masked:
            masks = [
                None if x is None else _mask(x, infos.get(agent))
                for agent, x in zip(team.agents, found, strict=True)
            ]
            parts[MASK] = _legal(team, masks)
        return with_parts(rows, **parts) if parts else rows


def names() -> list[str]:
    """Returns the names of the environments in this suite, in the installed versions.

    These are the environments whose agents are known to work together, or to compete.
    """
    return [name for name in (*COOPERATIVE, *COMPETING) if find_spec(_path(name))]


def make(
    name: str, rewards: str | None = None, processes: bool = False, **args: Any
) -> Environment:
    """Returns an environment of PettingZoo, such as "mpe2.simple_spread_v3" or "my_module:make".

    Agents that have left an episode show zeros, get no action, and have no reward. If the
    environment has a state of the whole team that is more than all observations together, only the
    critic sees it.

    Args:
        name: a module of the package mpe2, such as "mpe2.simple_spread_v3", a module of pettingzoo,
            such as "sisl.multiwalker_v9", or a module and a function that returns a `ParallelEnv`,
            such as "my_module:make".
        rewards: how to compute the reward of the team from the rewards of the agents: their "sum",
            their "mean", or "same", the reward of the first agent, if all agents get the same
            reward. None means the choice that fits the environment.
        processes: whether the copies run in processes, one for each core.
        **args: arguments of the class or the function of the environment.

    Raises:
        ConfigurationError: if the name or an argument is unknown, if the agents compete, or if
            their spaces cannot be padded to one space.
    """
    full_name = f"pettingzoo/{name}"
    maker, known, file = _find(full_name, name)
    of_team = team_reward(name, rewards, COOPERATIVE, COMPETING)
    if DRAWS in args:
        raise ConfigurationError(
            f"{DRAWS} is not allowed as an argument of {full_name}. Training draws nothing, and "
            "render.py chooses the mode. Leave it out."
        )
    require_known_args(full_name, args, known and known - {DRAWS})
    with user_modules.errors_located(f"Environment {full_name!r} cannot be made", file):
        env = maker(**args)
        if not isinstance(env, ParallelEnv):
            raise ConfigurationError(
                f"Environment {full_name!r} cannot be made: its function in {file} returned "
                f"{type(env).__name__}, not pettingzoo.ParallelEnv. "
                "pettingzoo.utils.aec_to_parallel turns an AECEnv into a ParallelEnv."
            )
        team = _team(full_name, env, of_team, _limit(env, args))
    team, observation = _after_reset(env, team, name not in STATELESS)
    with suppress(*RAISED):  # a pool reports such an error
        env.close()

    def open(seeds: int | tuple[int, ...], num_envs: int, render: bool = False) -> Pool:
        drawn = {DRAWS: "rgb_array"} if render and (known is None or DRAWS in known) else {}
        return open_pool(
            full_name,
            CloudpickleWrapper(partial(TeamEnv, partial(maker, **args, **drawn), team)),
            Shows(observation),
            team.action,
            environment_seeds(seeds, num_envs),
            processes,
        )

    env = host_environment(full_name, observation, team.action, team.limit, open)
    return env._replace(critic_observation=STATE if team.has_state else None)


def _path(name: str) -> str:
    """Returns the name of the module of an environment."""
    return name if name.startswith("mpe2.") else f"pettingzoo.{name}"


def _find(full_name: str, name: str) -> tuple[Callable[..., Any], set[str] | None, str]:
    """Returns the function that makes an environment, its arguments if known, and the file."""
    if ":" in name:
        maker, file = user_modules.find("environment", name)
        return maker, parameters_of(maker), file
    path = _path(name)
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if f"{path}.".startswith(f"{error.name}."):
            raise unknown_name(
                "environment", full_name, (f"pettingzoo/{x}" for x in names())
            ) from error
        extra = name.partition(".")[0]
        raise ConfigurationError(
            f"Environment {full_name!r} needs the package {error.name!r}, which is not installed. "
            f"It comes with pettingzoo[{extra}]."
        ) from error
    found = vars(module)
    if "parallel_env" not in found:
        raise ConfigurationError(
            f"Environment {full_name!r} has no parallel_env in {module.__file__}. Only "
            "environments whose agents act at the same time are supported."
        )
    maker = found["parallel_env"]  # passes its arguments to raw_env
    return maker, parameters_of(found["raw_env"].__init__), str(module.__file__)


def _limit(env: ParallelEnv, args: Mapping[str, Any]) -> int | None:
    """Returns the number of steps after which an environment ends an episode. None if unknown."""
    base = env.unwrapped
    held = [getattr(x, "max_cycles", None) for x in (base, getattr(base, "env", None))]
    found = [x for x in (*held, args.get("max_cycles")) if isinstance(x, int | np.integer)]
    return int(found[0]) if found and found[0] <= MAX_LIMIT else None


def _team(name: str, env: ParallelEnv, rewards: str, limit: int | None) -> Team:
    """Returns the facts about the agents of an environment that its spaces show."""
    agents = tuple(getattr(env, "possible_agents", ()))
    if not agents:
        raise ConfigurationError(
            f"Environment {name!r} has no possible_agents. It must list all agents that can act in "
            "the environment."
        )
    own = tuple(
        split_mask(observation_spec(name, env.observation_space(agent)))[0] for agent in agents
    )
    if len(set(map(jax.tree.structure, own))) > 1:
        raise ConfigurationError(
            f"The agents of environment {name!r} see observations with different parts. Supported: "
            "arrays for all agents, or dictionaries or tuples with the same parts for all agents."
        )
    each = tuple(action_spec(name, env.action_space(agent)) for agent in agents)
    kinds = ((Discrete, MultiDiscrete), Box)
    if not any(all(isinstance(action, kind) for action in each) for kind in kinds):
        spaces = ", ".join(f"{agent}: {env.action_space(agent)}" for agent in agents)
        raise ConfigurationError(
            f"Environment {name!r} has agents with the actions {spaces}. Supported: integers "
            "(Discrete, MultiDiscrete, MultiBinary) for all agents, or Box for all agents."
        )
    rows = jax.tree_util.tree_map_with_path(partial(_row_spec, name), *own)
    return Team(agents, own, rows, Agents(each), rewards, limit)


def _row_spec(name: str, path: tuple[Any, ...], *specs: ArraySpec) -> ArraySpec:
    """Returns the spec of rows that hold the array of each agent, `[N, ...]`."""
    shape = row_shape(name, path_name("observations", path), [spec.shape for spec in specs])
    dtype = np.result_type(*(spec.dtype for spec in specs))
    dtype = np.dtype(np.float32) if dtype.itemsize == 8 else dtype
    counts = [spec.num_values for spec in specs]
    counted = None not in counts and len(shape) <= 1  # one-hot rows have at most one axis
    return ArraySpec((len(specs), *shape), dtype, (max(map(max, counts)),) if counted else None)


def _after_reset(env: ParallelEnv, team: Team, stateful: bool) -> tuple[Team, ObservationSpec]:
    """Returns a team and the spec of its observations, after a first reset.

    The reset shows whether the team has a mask and a state.
    """
    try:
        observations, infos = env.reset(seed=0)
        choices = bool(team.action.each[0].choices)
        shown = [(observations[agent], infos.get(agent)) for agent in env.agents]
        masked = choices and any(_mask(*pair) is not None for pair in shown)
    except RAISED:  # the first reset of the run reports the error
        return team, team.rows
    parts = {}
    if masked:
        parts[MASK] = ArraySpec(team.action.used.shape, np.dtype(bool))
    with suppress(*RAISED):  # some environments have no state
        state = np.asarray(env.state())
        # The state in mpe2 is the concatenation of all observations.
        joined = state.size == sum(map(num_numbers, team.own))
        named = isinstance(team.rows, Mapping) and STATE in team.rows
        number = state.dtype.kind in "biuf" and state.size
        if stateful and number and not joined and not named:
            parts[STATE] = array_spec(state.shape, state.dtype)
    team = team._replace(masked=masked, has_state=STATE in parts)
    return team, with_parts(team.rows, **parts) if parts else team.rows


def _zeros(own: ObservationSpec) -> Any:
    return jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), own)


def _mask(observation: Any, info: Any) -> Any:
    """Returns the mask of an agent from its observation or its info. None if it has no mask."""
    for found in (observation, info):
        if isinstance(found, Mapping) and MASK in found:
            return found[MASK]
    return None


def _legal(team: Team, masks: Sequence[Any]) -> np.ndarray:
    """Returns the legal actions as rows `[N, A]`.

    If an agent has no mask, all of its own actions are legal.
    """
    rows = team.action.used.copy()
    for agent, own, row, mask in zip(team.agents, team.action.each, rows, masks, strict=True):
        if mask is None:
            continue
        legal = np.concatenate([np.ravel(x) for x in jax.tree.leaves(mask)]) != 0
        if legal.size != sum(own.choices):
            raise Unpromised(
                f"an {MASK} of {legal.size} numbers for the agent {agent!r}, whose actions have "
                f"{sum(own.choices)} values"
            )
        row[np.flatnonzero(row)[: legal.size]] = legal  # the end of the row is padding
    return rows

"""Trained policies, read back: to act with them, or to start another run from them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.agent import Agent, build_policy
from trpo_jax.algorithms.base import Actor, Algorithm, Learnt, acting_by, learnt_of
from trpo_jax.critics import WithCosts
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import ActionSpec, Agents, ObservationSpec, split_part
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import init_observing
from trpo_jax.records.acting import ActingPolicy, make_act
from trpo_jax.records.checkpoints import named_leaves, to_state
from trpo_jax.records.limits import best_of
from trpo_jax.records.policy_files import (
    SETTINGS,
    damage_named,
    describe_policy,
    read_policy_data,
    spaces_in,
    spaces_of,
)
from trpo_jax.teams import build_team_policy

REWARD, COSTS = "critic/reward", "critic/costs"  # where `WithCosts` keeps its critics


class Policies(NamedTuple):
    """The policies of all seeds of a run, read back.

    Attributes:
        environment: name of the environment that the policies were trained in.
        observation: spec of the observations that the policies see, without the part for the critic
            alone.
        action: spec of the actions that the environment takes.
        network: the arguments of `build_policy`; None if the user passed in the policy.
        normalized: whether the networks see standardised observations.
        seeds: the numbers of the seeds.
        scores: evaluation return of each seed.
        excess: how far the costs of each seed are above their limits.
        actor: parameters and observation statistics of all seeds, leading axis `[num_seeds]`.
        policy: `(actor, carry, observations [B, ...]) -> (carry, action distribution)` for one
            seed.
        carry: `num_envs -> carry`, the memory at the start of episodes.
        what: which policies of the run these are, in words.
    """

    environment: str
    observation: ObservationSpec
    action: ActionSpec
    network: Mapping[str, Any] | None
    normalized: bool
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    excess: tuple[float, ...]
    actor: Actor
    policy: Callable[[Actor, Any, Any], tuple[Any, Distribution]]
    carry: Callable[[int], Any]
    what: str

    def of_seed(self, seed: int | None = None) -> ActingPolicy:
        """Returns the policy of a seed.

        Args:
            seed: number of the seed; None for the seed with the best evaluation within the limits
                on costs.

        Raises:
            ConfigurationError: if there is no such seed.
        """
        index = index_of(seed, self.seeds, self.scores, self.excess)
        return make_act(
            self.policy,
            self.carry,
            jax.tree.map(lambda x: x[index], self.actor),
            self.environment,
            self.observation,
            self.action,
            self.network,
            self.normalized,
        )


def load_policy(
    path: str | Path,
    seed: int | None = None,
    env: Environment | None = None,
    agent: Agent | None = None,
    checkpoint: str | int | None = None,
) -> ActingPolicy:
    """Returns the trained policy of a run, a function `(observation, key=None) -> action`.

    The policy takes one observation or a batch of observations, as the environment shows them. It
    returns NumPy actions that the environment accepts. The policy does the normalisation, scaling
    and clipping itself. Without a key it returns the mode of the action distribution. With a key it
    draws the action. A policy with a memory remembers the observations that it was given. Call
    `act.start()` at the start of each episode.

    Args:
        path: the folder of a run, or a `policy.msgpack`.
        seed: which seed of the run; None for the seed with the best evaluation. If costs have
            limits, a seed that keeps them comes before a seed that does not.
        env: the environment in which the policy is to act. Its spaces are then checked.
        agent: the agent that the run was trained with, if the user passed one in.
        checkpoint: "best" (by the evaluations during training and the limits on costs), "latest",
            or the number of an update, to read a checkpoint of the run; None for the final policy.

    Raises:
        ConfigurationError: if there is no such policy, if the file is damaged or not a policy file,
            if `env` shows or takes something else than the training environment, or if the file
            needs an agent or another agent.

    Examples:
        >>> run = trpo_jax.train(total_steps=2_048, seeds=2, progress=False, out="runs/first")
        >>> act = trpo_jax.load_policy("runs/first", seed=1)
        >>> act([0.0, 0.1, 0.0, -0.1]) in (0, 1)
        True
        >>> act(jnp.zeros((5, 4)), key=jax.random.key(0)).shape
        (5,)
    """
    return read_policies(path, env, agent, checkpoint).of_seed(seed)


def read_policies(
    path: str | Path,
    env: Environment | None = None,
    agent: Agent | None = None,
    checkpoint: str | int | None = None,
) -> Policies:
    """Returns the policies of all seeds of a run; see `load_policy`."""
    path, data = read_policy_data(Path(path), checkpoint)
    with damage_named(path):
        observation, action = spaces_of(data)
        num_seeds, hidden = len(data["seeds"]), data["critic_observation"]
    if env is not None:
        observation, action = spaces_in(path, data, env)
    observation = split_part(observation, hidden)[0]
    if agent is None and data["network"] is None:
        raise ConfigurationError(
            f"{path} holds the parameters of a network of your own. The library cannot "
            "build it. Pass the agent that the run was trained with: load_policy(path, "
            "agent=agent)."
        )
    with damage_named(path):
        if agent is None:
            build = build_team_policy if isinstance(action, Agents) else build_policy
            policy = build(observation, action, **data["network"])
        else:
            policy = agent.policy
        init = lambda key: Actor(policy.init(key), init_observing(observation))
        shapes = jax.eval_shape(jax.vmap(init), _keys(num_seeds))
        of_critic = f"actor/observation_statistics/{hidden}/"
        of_actor = [
            name
            for name in data["arrays"]
            if name.startswith("actor/") and not name.startswith(of_critic)
        ]
        arrays = {name.removeprefix("actor/"): data["arrays"][name] for name in of_actor}
        what = f"{path} holds the parameters of another network than "
        what += "the one that it describes" if agent is None else "this agent's"
        actor = to_state(shapes, arrays, what)
    return Policies(
        data["environment"],
        observation,
        action,
        data["network"],
        data["normalize_observations"],
        tuple(data["seeds"]),
        tuple(data["scores"]),
        tuple(data["excess"]),
        actor,
        acting_by(policy, observation, hidden, data["normalize_observations"]),
        policy.carry,
        data.get("what", "final policies"),
    )


def index_of(
    seed: int | None,
    seeds: Sequence[int],
    scores: Sequence[float] | np.ndarray,
    excess: Sequence[float] | np.ndarray,
) -> int:
    """Returns the index of a seed, or of the seed that `best_of` chooses if `seed` is None.

    Raises:
        ConfigurationError: if there is no such seed.
    """
    if seed is None:
        return best_of(scores, excess)
    if seed not in seeds:
        raise ConfigurationError(f"The run has no seed {seed}. It has {list(seeds)}.")
    return seeds.index(seed)


def learnt_from(path: str | Path, algorithm: Algorithm, seeds: Sequence[int]) -> Learnt:
    """Returns the parameters and statistics with which a run starts from another run.

    All seeds start from the seed of the other run with the best evaluation, because a seed that is
    stuck in a poor optimum would stay there. The critic of rewards is taken over even if only one
    of the two algorithms has limits on costs. The critics of costs are taken over if their number
    and shapes are the same. Otherwise they start anew, and their state is None.

    Args:
        path: the folder of the other run, or its `policy.msgpack`.
        algorithm: the algorithm that goes on.
        seeds: the seeds of the run that goes on.

    Raises:
        ConfigurationError: if the algorithm cannot go on from the other run. The message names the
            settings that differ.
    """
    path, data = read_policy_data(Path(path))
    spaces_in(path, data, algorithm.env)
    own = describe_policy(algorithm)
    both_built = bool(data["network"] and own["network"])  # otherwise `to_state` compares shapes
    theirs, ours = (
        {x: y.get(x) for x in SETTINGS} | (y["network"] if both_built else {}) for y in (data, own)
    )
    different = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
    if different:
        listed = ", ".join(f"{x} = {theirs.get(x)}, not {ours.get(x)}" for x in different)
        raise ConfigurationError(
            f"The policies in {path} were trained with {listed}. A run can start from them only "
            "with the same networks."
        )
    rows = [best_of(data["scores"], data["excess"])] * len(seeds)
    arrays = {name: x[rows] for name, x in data["arrays"].items()}
    init = lambda key: learnt_of(algorithm.init(key))
    shapes = jax.eval_shape(jax.vmap(init), _keys(len(rows)))
    arrays = _for_critic(arrays, shapes.critic)
    if isinstance(shapes.critic, WithCosts) and not any(map(_of_costs, arrays)):
        shapes = shapes._replace(critic=shapes.critic._replace(costs=None))
    broken = [name for name, x in arrays.items() if not np.isfinite(x).all()]
    if broken:
        raise ConfigurationError(
            f"{path} holds numbers that are not finite in {broken[0]}. No run can start from it."
        )
    return to_state(shapes, arrays, f"{path} holds the parameters of other networks")


def _for_critic(arrays: Mapping[str, np.ndarray], critic: Any) -> dict[str, np.ndarray]:
    """Returns stored arrays under the names that a critic with costs, or without, expects.

    Arrays of critics of costs that do not fit the critic are left out.
    """
    with_costs, reward = isinstance(critic, WithCosts), f"{REWARD}/"
    if any(map(_of_costs, arrays)):
        kept = with_costs and _same_shapes(arrays, critic)
        arrays = {name: x for name, x in arrays.items() if kept or not _of_costs(name)}
        if with_costs:
            return arrays
        return {name.replace(reward, "critic/", 1): x for name, x in arrays.items()}
    if not with_costs:
        return dict(arrays)
    moved = lambda x: x.replace("critic/", reward, 1) if x.startswith("critic/") else x
    return {moved(name): x for name, x in arrays.items()}


def _of_costs(name: str) -> bool:
    return name.startswith(f"{COSTS}/")


def _same_shapes(arrays: Mapping[str, np.ndarray], critic: WithCosts) -> bool:
    """Returns whether the stored critics of costs have the shapes of a critic's own."""
    expected = {f"{COSTS}/{name}": x.shape for name, x in named_leaves(critic.costs).items()}
    return expected == {name: x.shape for name, x in arrays.items() if _of_costs(name)}


def _keys(count: int) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((count,), jnp.uint32))

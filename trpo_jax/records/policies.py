"""Trained policies as files that need neither the environment nor the training code to act."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jaxtyping import Array, Num, PRNGKeyArray

from trpo_jax.agent import Agent, Policy, memoryless
from trpo_jax.algorithms.base import Actor, Algorithm
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import (
    ArraySpec,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    to_environment_action,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import make_policy
from trpo_jax.normalization import RunningStatistics, observe
from trpo_jax.records.files import write_whole

FORMAT = 1
HANDED_IN_FORMAT = 2  # of a file whose network only the user's own code can build


def save_policy(
    path: str | Path,
    algorithm: Algorithm,
    actor: Actor,
    seeds: Sequence[int],
    scores: Sequence[float] | None = None,
) -> None:
    """Writes the policies of all seeds to one msgpack file, replacing it in one stroke.

    A policy that the library built is described by its settings. Of a policy that was handed in,
    only the parameters are stored: `load_policy` then needs the agent too.

    Args:
        path: the file.
        algorithm: what trained them.
        actor: from the training state, leading axis `[num_seeds]`.
        seeds: the seeds, in that order.
        scores: evaluation return of each; the best is the one loaded by default. The first if None.
    """
    env, policy = algorithm.env, algorithm.agent and algorithm.agent.policy
    settings = policy and policy.settings
    params, statistics = actor.policy_params, actor.observation_statistics
    scores = [0.0] * len(seeds) if scores is None else scores
    data = {
        "format": FORMAT if settings else HANDED_IN_FORMAT,
        "environment": env.name,
        "observation": {
            "shape": list(env.observation.shape),
            "dtype": np.dtype(env.observation.dtype).name,
        },
        "action": _action_to_dict(env.action),
        "network": settings
        and {name: list(x) if isinstance(x, tuple) else x for name, x in settings.items()},
        "normalize_observations": getattr(algorithm.config, "normalize_observations", False),
        "seeds": [int(seed) for seed in seeds],
        "scores": [float(score) for score in scores],
        "policy_params": jax.tree.map(np.asarray, params if settings else named_leaves(params)),
        "observation_statistics": {name: np.asarray(x) for name, x in statistics._asdict().items()},
    }
    write_whole(Path(path), serialization.msgpack_serialize(data))


class Policies(NamedTuple):
    """The policies of all seeds of a run, read back.

    Attributes:
        environment: name of the one that they were trained in.
        observation: what it shows.
        action: what it takes.
        seeds: the seeds.
        scores: evaluation return of each.
        actor: of all seeds, leading axis `[num_seeds]`.
        policy: `(actor, observations [*batch, ...]) -> action distribution`, of one seed.
    """

    environment: str
    observation: ArraySpec
    action: Discrete | MultiDiscrete | Box
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    actor: Actor
    policy: Callable[[Actor, Num[Array, "..."]], Distribution]


def read_policies(
    path: str | Path, env: Environment | None = None, agent: Agent | None = None
) -> Policies:
    """Returns the policies in a `policy.msgpack`.

    Args:
        path: the file.
        env: where they are to act, if that is to be checked.
        agent: what they were trained with, where that was handed in.

    Raises:
        ConfigurationError: if there is no such file or it is no policy file, if `env` shows or
            takes something else than the environment they were trained in, or if the file needs
            an agent, or another one.
    """
    data = _read(Path(path))
    observation = ArraySpec(
        tuple(data["observation"]["shape"]), np.dtype(data["observation"]["dtype"])
    )
    action = _action_from_dict(data["action"])
    if env is not None:
        for what, own, other in (
            ("observations", observation, env.observation),
            ("actions", action, env.action),
        ):
            if type(own) is not type(other) or not all(map(np.array_equal, own, other)):
                raise ConfigurationError(
                    f"{path} was trained in {data['environment']}, whose {what} are {own}; those "
                    f"of {env.name} are {other}. A policy acts only where both are the same."
                )
    if agent is not None:
        policy = agent.policy
        params = _params_for(path, policy, data["policy_params"], len(data["seeds"]))
    elif data["network"] is None:
        raise ConfigurationError(
            f"{path} holds the parameters of a network that was handed in, which the library "
            "cannot build. Pass the agent that it was trained with: load_policy(path, agent=agent)."
        )
    else:
        policy = memoryless(make_policy(observation, action, **data["network"]))
        params = data["policy_params"]
    actor = Actor(params, _statistics(data["observation_statistics"]))
    return Policies(
        data["environment"],
        observation,
        action,
        tuple(data["seeds"]),
        tuple(data["scores"]),
        jax.tree.map(jnp.asarray, actor),
        acting_by(policy, data["normalize_observations"]),
    )


def acting_by(
    policy: Policy, normalized: bool
) -> Callable[[Actor, Num[Array, "B ..."]], Distribution]:
    """Returns `(actor, observations [B, ...]) -> action distribution` of a policy."""

    def act(actor: Actor, observations: Num[Array, "B ..."]) -> Distribution:
        seen = observe(actor.observation_statistics, observations, normalized)
        return policy.step(actor.policy_params, policy.carry(seen.shape[0]), seen)[1]

    return act


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their path in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _params_for(path, policy: Policy, stored: dict[str, Any], num_seeds: int) -> Any:
    """Returns stored parameters `[num_seeds, ...]` in the structure that a policy gives them."""
    template = jax.eval_shape(policy.init, jax.random.key(0))
    expected = {name: (num_seeds, *x.shape) for name, x in named_leaves(template).items()}
    arrays = named_leaves(stored)
    found = {name: x.shape for name, x in arrays.items()}
    if expected != found:
        names = [x for x in sorted(expected | found) if expected.get(x) != found.get(x)]
        listed = ", ".join(f"{x}: {found.get(x)}, not {expected.get(x)}" for x in names[:5])
        raise ConfigurationError(
            f"{path} holds the parameters of another network than this agent's ({listed})."
        )
    _, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, [arrays[name] for name in expected])


def load_policy(
    path: str | Path,
    seed: int | None = None,
    env: Environment | None = None,
    agent: Agent | None = None,
) -> Callable[..., Num[Array, "..."]]:
    """Returns a function `(observation, key=None) -> action` from a `policy.msgpack`.

    The function takes one observation or a batch of them, as the environment shows them, and
    returns actions as the environment accepts them: normalisation, scaling and clipping are inside.
    Without a key it takes the policy's mode, with a key it draws from the policy.

    Args:
        path: the file.
        seed: which of the run's seeds; the one with the best evaluation if None.
        env: where it is to act, if that is to be checked.
        agent: what it was trained with, where that was handed in.

    Raises:
        ConfigurationError: if there is no such file, it is no policy file, or holds no such seed,
            if `env` shows or takes something else than the environment it was trained in, or if
            the file needs an agent, or another one.
    """
    stored = read_policies(path, env, agent)
    seed = stored.seeds[int(np.argmax(stored.scores))] if seed is None else seed
    if seed not in stored.seeds:
        raise ConfigurationError(f"{path} holds no seed {seed}. It holds {list(stored.seeds)}.")
    actor = jax.tree.map(lambda x: x[stored.seeds.index(seed)], stored.actor)
    return make_act(stored.policy, actor, stored.environment, stored.observation, stored.action)


def make_act(
    policy: Callable[[Actor, Num[Array, "..."]], Distribution],
    actor: Actor,
    name: str,
    observation: ArraySpec,
    action: Discrete | MultiDiscrete | Box,
) -> Callable[..., Num[Array, "..."]]:
    """Returns the function `(observation, key=None) -> action` of one seed's policy.

    Args:
        policy: `(actor, observations [*batch, ...]) -> action distribution`.
        actor: of the seed.
        name: of the environment, for messages.
        observation: what it shows.
        action: what it takes.
    """

    @jax.jit
    def act(observations: Num[Array, "..."], key: PRNGKeyArray | None = None) -> Array:
        observations = jnp.asarray(observations)
        if not np.can_cast(observations.dtype, observation.dtype, "same_kind"):
            raise ValueError(
                f"Observations of {name} are {observation.dtype}; got {observations.dtype}. Pass "
                "them as the environment shows them."
            )
        observations = observations.astype(observation.dtype)
        batch_shape = observations.shape[: observations.ndim - len(observation.shape)]
        if observations.shape[len(batch_shape) :] != observation.shape:
            raise ValueError(
                f"An observation of {name} has shape {observation.shape}, with any batch axes "
                f"before it; got {observations.shape}."
            )
        distribution = policy(actor, observations.reshape(-1, *observation.shape))
        actions = distribution.mode() if key is None else distribution.sample(key)
        actions = jax.vmap(lambda a: to_environment_action(action, a))(actions)
        return actions.reshape(*batch_shape, *actions.shape[1:])

    return act


def _statistics(stored: dict[str, np.ndarray]) -> RunningStatistics:
    """Returns stored statistics, also those of files of before, which held squared deviations."""
    if "squared_deviations" in stored:
        count, mean, squared = stored.values()
        per_sample = squared / np.maximum(count, 1).reshape(-1, *[1] * (squared.ndim - 1))
        rest, count = np.zeros_like(mean), count.astype(np.uint32)
        return RunningStatistics(count, mean, rest, np.sqrt(per_sample))
    return RunningStatistics(**stored)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f"There is no policy file {path}. A finished run leaves one.")
    try:
        data = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises many kinds on damaged input
        raise ConfigurationError(f"{path} is damaged or no policy file: {error}.") from error
    if not isinstance(data, dict) or data.get("format") not in (FORMAT, HANDED_IN_FORMAT):
        raise ConfigurationError(
            f"{path} is no policy file of format {FORMAT} or {HANDED_IN_FORMAT}."
        )
    return data


def _action_to_dict(action: Discrete | MultiDiscrete | Box) -> dict[str, Any]:
    match action:
        case Discrete(num_actions):
            return {"discrete": num_actions}
        case MultiDiscrete(num_actions):
            return {"multi_discrete": list(num_actions)}
        case Box(low, high):
            return {"low": np.array(low), "high": np.array(high)}


def _action_from_dict(data: dict[str, Any]) -> Discrete | MultiDiscrete | Box:
    if "discrete" in data:
        return Discrete(data["discrete"])
    if "multi_discrete" in data:
        return MultiDiscrete(tuple(data["multi_discrete"]))
    return Box(data["low"], data["high"])

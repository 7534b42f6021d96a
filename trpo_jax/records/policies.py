"""Trained policies as files that need neither the environment nor the training code to act."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jaxtyping import Array, Num, PRNGKeyArray

from trpo_jax.algorithms.base import Actor, make_acting
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
from trpo_jax.normalization import RunningStatistics
from trpo_jax.records.files import write_whole

FORMAT = 1


def save_policy(
    path: str | Path,
    env: Environment,
    config: Any,
    actor: Actor,
    seeds: Sequence[int],
    scores: Sequence[float] | None = None,
) -> None:
    """Writes the policies of all seeds to one msgpack file, replacing it in one stroke.

    Args:
        path: the file.
        env: the environment they were trained in.
        config: the algorithm's config; its fields that shape the policy are kept.
        actor: from the training state, leading axis `[num_seeds]`.
        seeds: the seeds, in that order.
        scores: evaluation return of each; the best is the one loaded by default. The first if None.
    """
    scores = [0.0] * len(seeds) if scores is None else scores
    data = {
        "format": FORMAT,
        "environment": env.name,
        "observation": {
            "shape": list(env.observation.shape),
            "dtype": np.dtype(env.observation.dtype).name,
        },
        "action": _action_to_dict(env.action),
        "network": {
            "hidden_sizes": list(config.hidden_sizes),
            "activation": config.activation,
            "state_dependent_std": config.state_dependent_std,
        },
        "normalize_observations": config.normalize_observations,
        "seeds": [int(seed) for seed in seeds],
        "scores": [float(score) for score in scores],
        "policy_params": jax.tree.map(np.asarray, actor.policy_params),
        "observation_statistics": {
            name: np.asarray(x) for name, x in actor.observation_statistics._asdict().items()
        },
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


def read_policies(path: str | Path, env: Environment | None = None) -> Policies:
    """Returns the policies in a `policy.msgpack`.

    Args:
        path: the file.
        env: where they are to act, if that is to be checked.

    Raises:
        ConfigurationError: if there is no such file or it is no policy file, or if `env` shows or
            takes something else than the environment they were trained in.
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
    network = make_policy(observation, action, **data["network"])
    actor = Actor(data["policy_params"], RunningStatistics(**data["observation_statistics"]))
    return Policies(
        data["environment"],
        observation,
        action,
        tuple(data["seeds"]),
        tuple(data["scores"]),
        jax.tree.map(jnp.asarray, actor),
        make_acting(network, data["normalize_observations"]),
    )


def load_policy(
    path: str | Path, seed: int | None = None, env: Environment | None = None
) -> Callable[..., Num[Array, "..."]]:
    """Returns a function `(observation, key=None) -> action` from a `policy.msgpack`.

    The function takes one observation or a batch of them, as the environment shows them, and
    returns actions as the environment accepts them: normalisation, scaling and clipping are inside.
    Without a key it takes the policy's mode, with a key it draws from the policy.

    Args:
        path: the file.
        seed: which of the run's seeds; the one with the best evaluation if None.
        env: where it is to act, if that is to be checked.

    Raises:
        ConfigurationError: if there is no such file, it is no policy file, or holds no such seed,
            or if `env` shows or takes something else than the environment it was trained in.
    """
    stored = read_policies(path, env)
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


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f"There is no policy file {path}. A finished run leaves one.")
    try:
        data = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises many kinds on damaged input
        raise ConfigurationError(f"{path} is damaged or no policy file: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigurationError(f"{path} is no policy file of format {FORMAT}.")
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

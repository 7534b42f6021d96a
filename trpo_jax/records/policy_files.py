"""The file of trained policies: how a run writes it and how it is read back.

The file describes the policies fully. Reading it needs neither the environment nor the training
code. A checkpoint of a run is read into the same form.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from trpo_jax.algorithms.base import Algorithm, Learnt
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import ActionSpec, ObservationSpec, split_part
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.records.checkpoints import Checkpoints, to_arrays
from trpo_jax.records.files import write_whole
from trpo_jax.records.limits import cost_excess, stored_limits
from trpo_jax.records.runs import (
    CHECKPOINTS,
    DESCRIPTION,
    EVALUATIONS,
    POLICY,
    cost_columns,
    read_description,
    read_metrics,
)
from trpo_jax.records.spaces import essence, from_plain, in_words, to_plain

FORMAT = 4
# Fields of a config that change what the networks see or return.
SETTINGS = ("normalize_observations", "scale_rewards", "normalize_values")
# What a policy needs in order to act.
NEEDED = ("environment", "observation", "critic_observation", "action", "network", SETTINGS[0])


def save_policy(
    path: str | Path,
    algorithm: Algorithm,
    learnt: Learnt,
    seeds: Sequence[int],
    scores: Sequence[float] | np.ndarray | None = None,
    excess: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Writes what all seeds have learnt to one msgpack file. The file is never there in part.

    If the library built the policy, the file also has the settings of the network. If the user
    passed in the policy, the file has the parameters alone, and `load_policy` needs the agent too.

    Args:
        path: the file.
        algorithm: the algorithm that trained the seeds.
        learnt: what the seeds have learnt, leading axis `[num_seeds]`.
        seeds: the numbers of the seeds, in the same order.
        scores: evaluation return of each seed; None for 0. `load_policy` chooses the seed with the
            best score by default.
        excess: how far the costs of each seed are above their limits; None for 0. Seeds that keep
            their limits come before seeds that do not.
    """
    content = serialization.msgpack_serialize(
        {
            **describe_policy(algorithm),
            "seeds": [int(seed) for seed in seeds],
            "scores": [0.0] * len(seeds) if scores is None else [float(x) for x in scores],
            "excess": [0.0] * len(seeds) if excess is None else [float(x) for x in excess],
            "arrays": to_arrays(learnt),
        }
    )
    data = {"format": FORMAT, "digest": _digest(content), "content": content}
    write_whole(Path(path), serialization.msgpack_serialize(data))


def describe_policy(algorithm: Algorithm) -> dict[str, Any]:
    """Returns the spaces and the network settings of an algorithm's policies, ready for JSON."""
    env, policy = algorithm.env, algorithm.agent and algorithm.agent.policy
    settings = policy and policy.settings
    return {
        "environment": env.name,
        "observation": to_plain(env.observation),
        "critic_observation": algorithm.agent and algorithm.agent.critic_observation,
        "action": to_plain(env.action),
        "network": settings
        and {name: list(x) if isinstance(x, tuple) else x for name, x in settings.items()},
        **{name: bool(getattr(algorithm.config, name, False)) for name in SETTINGS},
    }


def read_policy_data(
    path: Path, checkpoint: str | int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Returns the content of a policy file, or of a checkpoint in the same form.

    Args:
        path: the folder of a run, or a policy file.
        checkpoint: "best", "latest" or the number of an update; None for the policy file.

    Returns:
        The file that was read (or the folder of the checkpoint), and its content.

    Raises:
        ConfigurationError: if there is no such file or checkpoint, or if it is damaged.
    """
    if checkpoint is not None:
        return _read_checkpoint(path, str(checkpoint))
    if path.is_dir():
        if not (path / POLICY).is_file() and (path / CHECKPOINTS).is_dir():
            raise ConfigurationError(
                f"The run in {path} was stopped before it wrote {POLICY}. Its checkpoint 'latest' "
                "(--checkpoint latest) holds what it had learnt by then."
            )
        path = path / POLICY
    return path, _read_file(path)


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f"There is no policy file {path}. A finished run leaves one.")
    with damage_named(path):
        data = serialization.msgpack_restore(path.read_bytes())
        if data["format"] == FORMAT:
            if data["digest"] != _digest(data["content"]):
                raise ValueError("its content does not match its digest")
            data = {"format": FORMAT, **serialization.msgpack_restore(data["content"])}
        elif data["format"] < FORMAT:
            raise ConfigurationError(
                f"An earlier version wrote {path} in format {data['format']}; this version reads "
                f"format {FORMAT}. Train the policies again, or load them with the version that "
                "wrote them."
            )
        else:
            raise ValueError(f"its format is {data['format']}, and this version reads {FORMAT}")
        data.setdefault("excess", [0.0] * len(data["seeds"]))  # files of version 0.6 lack it
        for name in ("scores", "excess"):
            if not data["seeds"] or len(data[name]) != len(data["seeds"]):
                raise ValueError(f"{len(data['seeds'])} seeds have {len(data[name])} {name}")
        for name, x in data["arrays"].items():
            if name.startswith("actor/") and not np.isfinite(x).all():
                raise ValueError(f"{name} holds numbers that are not finite")
    return data


def _read_checkpoint(folder: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of a checkpoint, and its policies in the form of a policy file."""
    folder = folder.parent if folder.name == POLICY else folder
    description, path = read_description(folder), folder / CHECKPOINTS
    if not path.is_dir():
        raise ConfigurationError(f"There are no checkpoints in {path}.")
    with closing(Checkpoints(path, read_only=True)) as checkpoints:
        known = {str(number): number for number in checkpoints.numbers()}
        if known:
            known["latest"] = max(known.values())
        if checkpoints.best() is not None:
            known["best"] = checkpoints.best()
        if which not in known:
            listed = ", ".join(known) or "none"
            raise ConfigurationError(
                f"There is no checkpoint {which!r} in {path}. There are: {listed}."
            )
        number = known[which]
        try:
            arrays = checkpoints.read(number).arrays
        except StorageFailure as failure:
            raise ConfigurationError(
                f"The checkpoint of update {number} is damaged: {failure}"
            ) from failure
    described = description.get("policy")
    if described is None:
        described = _read_file(folder / POLICY)
    with damage_named(folder / DESCRIPTION):
        described = {**described, **{name: described[name] for name in NEEDED}}
    return path / str(number), {
        **described,
        "format": FORMAT,
        "seeds": description["seeds"],
        **_scores_at(folder, number, description),
        "arrays": {name: x for name, x in arrays.items() if name.startswith("actor/")},
        "what": f"policies after update {number} ({which})",
    }


def _scores_at(
    folder: Path, number: int, description: Mapping[str, Any]
) -> dict[str, Sequence[float]]:
    """Returns score and excess of each seed in the evaluation after an update.

    Both are 0 if there was no evaluation after this update.
    """
    path = folder / EVALUATIONS
    columns = read_metrics(path) if path.is_file() else {}
    rows = np.flatnonzero(columns["update"][0] == number) if columns else ()
    if not len(rows):
        return dict.fromkeys(("scores", "excess"), [0.0] * len(description["seeds"]))
    at_update = {name: x[:, rows[0]] for name, x in columns.items()}
    names = cost_columns(columns, "evaluation_cost", description.get("cost_names", ())).values()
    excess = np.zeros(len(description["seeds"]))
    if names:
        costs = np.stack([at_update[name] for name in names], axis=1)
        excess = cost_excess(costs, stored_limits(folder, len(names)))
    return {"scores": at_update["evaluation_return"].tolist(), "excess": excess.tolist()}


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns any error inside its block into a ConfigurationError that names the file.

    A damaged file can raise errors of many kinds.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise ConfigurationError(f"{path} is damaged or no policy file: {reason}.") from error


def spaces_of(data: Mapping[str, Any]) -> tuple[ObservationSpec, ActionSpec]:
    """Returns the observation spec and the action spec that a policy file stores."""
    return from_plain(data["observation"]), from_plain(data["action"])


def spaces_in(
    path: Path, data: Mapping[str, Any], env: Environment
) -> tuple[ObservationSpec, ActionSpec]:
    """Returns the specs of an environment for the networks of a policy file.

    They have the number types and layouts of the environment. They have the origins of large
    numbers with which the networks were trained.

    Raises:
        ConfigurationError: if the environment shows or takes something else than the file says.
    """
    with damage_named(path):
        shown, taken = spaces_of(data)
    hidden = data["critic_observation"]
    pairs = {
        "observations": [split_part(x, hidden)[0] for x in (shown, env.observation)],
        "actions": [taken, env.action],
    }
    for what, (own, other) in pairs.items():
        if essence(own) != essence(other):
            raise ConfigurationError(
                f"{path} was trained in {data['environment']}, whose {what} are {in_words(own)}. "
                f"The {what} of {env.name} are {in_words(other)}. A policy acts only where both "
                "are the same."
            )
    return with_origin(env, shown).observation, env.action


def stored_observation(source: str | Path | Mapping[str, Any]) -> ObservationSpec | None:
    """Returns the observation spec that the networks of a stored run were trained with.

    Args:
        source: a policy file, the folder of a run, or the description of a run.

    Returns:
        The spec; None for the description of a run that lacks the entry `policy`.
    """
    if isinstance(source, Mapping):
        data = source.get("policy")
    else:
        _, data = read_policy_data(Path(source))
    return data and spaces_of(data)[0]


def with_origin(env: Environment, shown: ObservationSpec) -> Environment:
    """Returns an environment whose observations have the origins of another spec.

    Args:
        env: the environment.
        shown: the spec that has the origins; parts that are not in it keep their own origin.
    """
    origins = dict(jax.tree_util.tree_flatten_with_path(shown)[0])
    seen = lambda path, own: dataclasses.replace(own, origin=origins[path].origin)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, own: seen(path, own) if path in origins else own, env.observation
    )
    return env._replace(observation=moved)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

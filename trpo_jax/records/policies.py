"""Trained policies as files that need neither the environment nor the training code to act."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from trpo_jax.agent import Agent, Policy, build_policy
from trpo_jax.algorithms.base import Actor, Algorithm, Learnt, learnt_of
from trpo_jax.critics import WithCosts
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import ActionSpec, Agents, ObservationSpec, split_part
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.observing import init_observing, observe
from trpo_jax.records.acting import ActingPolicy, make_act
from trpo_jax.records.checkpoints import Checkpoints, named_leaves, to_arrays, to_state
from trpo_jax.records.files import write_whole
from trpo_jax.records.limits import best_of, cost_excess, stored_limits
from trpo_jax.records.runs import (
    CHECKPOINTS,
    EVALUATIONS,
    POLICY,
    cost_columns,
    read_description,
    read_metrics,
)
from trpo_jax.records.spaces import essence, from_plain, in_words, to_plain
from trpo_jax.teams import build_team_policy

FORMAT = 4
REWARD, COSTS = "critic/reward", "critic/costs"  # where `WithCosts` keeps its critics
SETTINGS = (
    "normalize_observations",
    "scale_rewards",
    "normalize_values",
)  # of a config, that networks depend on


def save_policy(
    path: str | Path,
    algorithm: Algorithm,
    learnt: Learnt,
    seeds: Sequence[int],
    scores: Sequence[float] | np.ndarray | None = None,
    excess: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Writes what all seeds have learnt to one msgpack file, replacing it in one stroke.

    A policy that the library built is described by its settings. Of a policy that was handed in,
    only the parameters are stored: `load_policy` then needs the agent too.

    Args:
        path: the file.
        algorithm: what trained them.
        learnt: of all seeds, leading axis `[num_seeds]`.
        seeds: the seeds, in that order.
        scores: evaluation return of each; the best is the one loaded by default. The first if None.
        excess: how far the costs of each are above their limits; 0 of all if None. Those above
            their limits come last.
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
    """Returns what policies of an algorithm are shown, give, and are made of; JSON can hold it."""
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


class Policies(NamedTuple):
    """The policies of all seeds of a run, read back.

    Attributes:
        environment: name of the one that they were trained in.
        observation: what they see, without what only the critic sees.
        action: what the environment takes.
        network: the arguments of `build_policy`; None of a network that was handed in.
        normalized: whether their networks are shown standardised observations.
        seeds: the seeds.
        scores: evaluation return of each.
        excess: how far the costs of each are above their limits.
        actor: of all seeds, leading axis `[num_seeds]`.
        policy: `(actor, carry, observations [B, ...]) -> (carry, action distribution)`, of one
            seed.
        carry: `num_envs -> carry`, the memory at the start of episodes.
        what: which policies these are.
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
        """Returns the policy of a seed; of that with the best evaluation within limits if None.

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
    """Returns the policy of a run, a function `(observation, key=None) -> action`.

        act = trpo_jax.load_policy("runs/a_folder")
        observation, reward, terminated, truncated, info = env.step(act(observation))

    It takes one observation or a batch of them, as the environment shows them, and returns NumPy
    actions as the environment accepts them: normalisation, scaling and clipping are inside. Without
    a key it takes the policy's mode, with a key it draws from the policy. A policy with a memory
    remembers what it was shown; call `act.start()` where an episode starts.

    Args:
        path: a run's folder, or a `policy.msgpack`.
        seed: which of the run's seeds; the one with the best evaluation if None. Where costs have
            limits, a seed that keeps them comes before one that does not.
        env: where it is to act, if that is to be checked.
        agent: what it was trained with, where that was handed in.
        checkpoint: "best" (by the evaluations during training and limits on costs), "latest", or
            the number of its update, to read the policy from the run's checkpoints; the final one
            if None.

    Raises:
        ConfigurationError: if there is no such policy, the file is damaged or no policy file, if
            `env` shows or takes something else than the environment it was trained in, or if the
            file needs an agent, or another one.
    """
    return read_policies(path, env, agent, checkpoint).of_seed(seed)


def read_policies(
    path: str | Path,
    env: Environment | None = None,
    agent: Agent | None = None,
    checkpoint: str | int | None = None,
) -> Policies:
    """Returns the policies of all seeds of a run; see `load_policy`."""
    path, data = _read(Path(path), checkpoint)
    with _damage_named(path):
        observation, action = _spaces_of(data)
        num_seeds, hidden = len(data["seeds"]), data["critic_observation"]
    if env is not None:
        observation, action = _spaces_in(path, data, env)
    observation = split_part(observation, hidden)[0]
    if agent is None and data["network"] is None:
        raise ConfigurationError(
            f"{path} holds the parameters of a network that was handed in, which the library "
            "cannot build. Pass the agent that it was trained with: load_policy(path, agent=agent)."
        )
    with _damage_named(path):
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
    """Returns the index of a seed; of the one that `best_of` chooses if None.

    Raises:
        ConfigurationError: if there is no such seed.
    """
    if seed is None:
        return best_of(scores, excess)
    if seed not in seeds:
        raise ConfigurationError(f"The run has no seed {seed}. It has {list(seeds)}.")
    return seeds.index(seed)


def acting_by(
    policy: Policy, observation: ObservationSpec, hidden: str | None, normalized: bool
) -> Callable[[Actor, Any, Any], tuple[Any, Distribution]]:
    """Returns `(actor, carry, observations [B, ...]) -> (carry, distribution)` of a policy.

    Args:
        policy: the policy.
        observation: what it sees.
        hidden: name of a part that it does not see, which may be there.
        normalized: whether it sees standardised observations.
    """

    def act(actor: Actor, carry: Any, observations: Any) -> tuple[Any, Distribution]:
        shown, _ = split_part(observations, hidden)
        seen = observe(observation, actor.observation_statistics, shown, normalized)
        return policy.step(actor.policy_params, carry, seen)

    return act


def learnt_from(path: str | Path, algorithm: Algorithm, seeds: Sequence[int]) -> Learnt:
    """Returns what each of some seeds is to start from, of what another run has learnt.

    All of them start from its seed with the best evaluation: a seed that was caught in a poor
    optimum would not leave it. An algorithm with limits on costs and one without take over each
    other's critic of rewards. Critics of costs are taken over where there are as many of them, and
    otherwise begin anew: their state is then None.

    Args:
        path: the other run's folder, or its `policy.msgpack`.
        algorithm: what is to go on with it.
        seeds: the seeds.

    Raises:
        ConfigurationError: naming what differs, if the algorithm cannot go on with it.
    """
    path, data = _read(Path(path))
    _spaces_in(path, data, algorithm.env)
    own = describe_policy(algorithm)
    both_built = bool(data["network"] and own["network"])  # or the shapes below tell
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
    """Returns stored arrays under the names of a critic with costs, or of one without.

    Arrays of critics of costs that it has no use for are left out.
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
    """Says whether the stored critics of costs are as many as an algorithm has."""
    expected = {f"{COSTS}/{name}": x.shape for name, x in named_leaves(critic.costs).items()}
    return expected == {name: x.shape for name, x in arrays.items() if _of_costs(name)}


def stored_observation(source: str | Path | Mapping[str, Any]) -> ObservationSpec | None:
    """Returns what networks are shown, of a policy file, its folder, or the description of a run.

    A description of before says nothing of it, and gives None.
    """
    data = source.get("policy") if isinstance(source, Mapping) else _read(Path(source))[1]
    return data and _spaces_of(data)[0]


def with_origin(env: Environment, shown: ObservationSpec) -> Environment:
    """Returns an environment whose observations are seen from the origins of other ones."""
    origins = dict(jax.tree_util.tree_flatten_with_path(shown)[0])
    seen = lambda path, own: dataclasses.replace(own, origin=origins[path].origin)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, own: seen(path, own) if path in origins else own, env.observation
    )
    return env._replace(observation=moved)


def _read(path: Path, checkpoint: str | int | None = None) -> tuple[Path, dict[str, Any]]:
    """Returns the file of policies, or a checkpoint's folder, and what is in it."""
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
    with _damage_named(path):
        data = serialization.msgpack_restore(path.read_bytes())
        if data["format"] == FORMAT:
            if data["digest"] != _digest(data["content"]):
                raise ValueError("its digest says that it is not as it was written")
            data = {"format": FORMAT, **serialization.msgpack_restore(data["content"])}
        elif data["format"] < FORMAT:
            raise ConfigurationError(
                f"{path} was written by an earlier version, in format {data['format']}; this one "
                f"reads format {FORMAT}. Train the policies again, or load them with the version "
                "that wrote them."
            )
        else:
            raise ValueError(f"its format is {data['format']}, and {FORMAT} is the newest")
        data.setdefault("excess", [0.0] * len(data["seeds"]))  # version 0.6 wrote none
        for name in ("scores", "excess"):
            if not data["seeds"] or len(data[name]) != len(data["seeds"]):
                raise ValueError(f"{len(data['seeds'])} seeds have {len(data[name])} {name}")
        for name, x in data["arrays"].items():
            if name.startswith("actor/") and not np.isfinite(x).all():
                raise ValueError(f"{name} holds numbers that are not finite")
    return data


def _read_checkpoint(folder: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """Returns a checkpoint's folder, and its policies as they are in a file."""
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
    """Returns scores and excess of each seed in the evaluation after an update; 0 without one."""
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
def _damage_named(path: Path):
    """Turns whatever a damaged file gives into one paragraph."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # of many kinds
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise ConfigurationError(f"{path} is damaged or no policy file: {reason}.") from error


def _spaces_in(
    path: Path, data: dict[str, Any], env: Environment
) -> tuple[ObservationSpec, ActionSpec]:
    """Returns the spaces of an environment as the networks of a file see them.

    Number types and layouts are its own, and large numbers have the origin that the networks know.

    Raises:
        ConfigurationError: if they are not those of the file.
    """
    with _damage_named(path):
        shown, taken = _spaces_of(data)
    hidden = data["critic_observation"]
    pairs = {
        "observations": [split_part(x, hidden)[0] for x in (shown, env.observation)],
        "actions": [taken, env.action],
    }
    for what, (own, other) in pairs.items():
        if essence(own) != essence(other):
            raise ConfigurationError(
                f"{path} was trained in {data['environment']}, whose {what} are {in_words(own)}; "
                f"those of {env.name} are {in_words(other)}. A policy acts only where both are "
                "the same."
            )
    return with_origin(env, shown).observation, env.action


def _spaces_of(data: dict[str, Any]) -> tuple[ObservationSpec, ActionSpec]:
    return from_plain(data["observation"]), from_plain(data["action"])


def _keys(count: int) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((count,), jnp.uint32))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

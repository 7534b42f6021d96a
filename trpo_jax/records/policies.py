"""Trained policies as files that need neither the environment nor the training code to act."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jaxtyping import Array, Num

from trpo_jax.agent import Agent, Policy, memoryless
from trpo_jax.algorithms.base import Actor, Algorithm, Learnt, learnt_of
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import ArraySpec, Box, Discrete, Environment, MultiDiscrete
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.networks import make_policy
from trpo_jax.normalization import RunningStatistics, init_statistics, observe
from trpo_jax.records.acting import ActingPolicy, Action, make_act
from trpo_jax.records.checkpoints import Checkpoints, named_leaves, to_arrays, to_state
from trpo_jax.records.files import write_whole
from trpo_jax.records.runs import CHECKPOINTS, EVALUATIONS, POLICY, read_description, read_metrics

FORMAT = 3
OLD_FORMATS = (1, 2)  # without a digest, a critic and a layout; 2 where a network was handed in
ACTIONS = {kind.__name__: kind for kind in (Discrete, MultiDiscrete, Box)}
SETTINGS = ("normalize_observations", "scale_rewards")  # of a config, that networks depend on


def save_policy(
    path: str | Path,
    algorithm: Algorithm,
    learnt: Learnt,
    seeds: Sequence[int],
    scores: Sequence[float] | None = None,
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
    """
    content = serialization.msgpack_serialize(
        {
            **describe_policy(algorithm),
            "seeds": [int(seed) for seed in seeds],
            "scores": [0.0] * len(seeds) if scores is None else [float(x) for x in scores],
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
        "observation": {
            "shape": list(env.observation.shape),
            "dtype": np.dtype(env.observation.dtype).name,
            "layout": env.observation.layout,
            "origin": _to_plain(env.observation.origin),
        },
        "action": _action_to_dict(env.action),
        "network": settings
        and {name: list(x) if isinstance(x, tuple) else x for name, x in settings.items()},
        **{name: bool(getattr(algorithm.config, name, False)) for name in SETTINGS},
    }


class Policies(NamedTuple):
    """The policies of all seeds of a run, read back.

    Attributes:
        environment: name of the one that they were trained in.
        observation: what their network is shown.
        action: what it takes.
        network: the arguments of `make_policy`; None of a network that was handed in.
        normalized: whether their networks are shown standardised observations.
        seeds: the seeds.
        scores: evaluation return of each.
        actor: of all seeds, leading axis `[num_seeds]`.
        policy: `(actor, observations [B, ...]) -> action distribution`, of one seed.
        what: which policies these are.
    """

    environment: str
    observation: ArraySpec
    action: Action
    network: Mapping[str, Any] | None
    normalized: bool
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    actor: Actor
    policy: Callable[[Actor, Num[Array, "..."]], Distribution]
    what: str

    def of_seed(self, seed: int | None = None) -> ActingPolicy:
        """Returns the policy of a seed; of that with the best evaluation if None.

        Raises:
            ConfigurationError: if there is no such seed.
        """
        index = index_of(seed, self.seeds, self.scores)
        return make_act(
            self.policy,
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
    a key it takes the policy's mode, with a key it draws from the policy.

    Args:
        path: a run's folder, or a `policy.msgpack`.
        seed: which of the run's seeds; the one with the best evaluation if None.
        env: where it is to act, if that is to be checked.
        agent: what it was trained with, where that was handed in.
        checkpoint: "best" (by the evaluations during training), "latest", or the number of its
            update, to read the policy from the run's checkpoints; the final one if None.

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
        num_seeds = len(data["seeds"])
    if env is not None:
        observation, action = _spaces_in(path, data, env)
    if agent is None and data["network"] is None:
        raise ConfigurationError(
            f"{path} holds the parameters of a network that was handed in, which the library "
            "cannot build. Pass the agent that it was trained with: load_policy(path, agent=agent)."
        )
    with _damage_named(path):
        if agent is None:
            policy = memoryless(make_policy(observation, action, **data["network"]))
        else:
            policy = agent.policy
        init = lambda key: Actor(policy.init(key), init_statistics(observation.shape))
        shapes = jax.eval_shape(jax.vmap(init), _keys(num_seeds))
        of_actor = [name for name in data["arrays"] if name.startswith("actor/")]
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
        actor,
        acting_by(policy, data["normalize_observations"]),
        data.get("what", "final policies"),
    )


def index_of(seed: int | None, seeds: Sequence[int], scores: Sequence[float] | np.ndarray) -> int:
    """Returns the index of a seed; of that with the best score if None.

    Raises:
        ConfigurationError: if there is no such seed.
    """
    if seed is None:
        return best_of(scores)
    if seed not in seeds:
        raise ConfigurationError(f"The run has no seed {seed}. It has {list(seeds)}.")
    return seeds.index(seed)


def best_of(scores: Sequence[float] | np.ndarray) -> int:
    """Returns the index of the best score; that of a seed whose numbers broke is NaN."""
    return int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))


def acting_by(
    policy: Policy, normalized: bool
) -> Callable[[Actor, Num[Array, "B ..."]], Distribution]:
    """Returns `(actor, observations [B, ...]) -> action distribution` of a policy."""

    def act(actor: Actor, observations: Num[Array, "B ..."]) -> Distribution:
        seen = observe(actor.observation_statistics, observations, normalized)
        return policy.step(actor.policy_params, policy.carry(seen.shape[0]), seen)[1]

    return act


def learnt_from(path: str | Path, algorithm: Algorithm, seeds: Sequence[int]) -> Learnt:
    """Returns what each of some seeds is to start from, of what another run has learnt.

    All of them start from its seed with the best evaluation: a seed that was caught in a poor
    optimum would not leave it.

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
    if data["format"] in OLD_FORMATS:
        raise ConfigurationError(
            f"{path} was written by an earlier version and holds no critic, which a run needs to "
            "start from it. Train the policies again."
        )
    rows = [best_of(data["scores"])] * len(seeds)
    arrays = {name: x[rows] for name, x in data["arrays"].items()}
    init = lambda key: learnt_of(algorithm.init(key))
    shapes = jax.eval_shape(jax.vmap(init), _keys(len(rows)))
    broken = [name for name, x in arrays.items() if not np.isfinite(x).all()]
    if broken:
        raise ConfigurationError(
            f"{path} holds numbers that are not finite in {broken[0]}. No run can start from it."
        )
    return to_state(shapes, arrays, f"{path} holds the parameters of other networks")


def stored_observation(source: str | Path | Mapping[str, Any]) -> ArraySpec | None:
    """Returns what networks are shown, of a policy file, its folder, or the description of a run.

    A description of before says nothing of it, and gives None.
    """
    data = source.get("policy") if isinstance(source, Mapping) else _read(Path(source))[1]
    return data and _spaces_of(data)[0]


def with_origin(env: Environment, shown: ArraySpec) -> Environment:
    """Returns an environment whose observations are seen from the origin of other ones."""
    return env._replace(observation=env.observation._replace(origin=shown.origin))


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


def _statistics(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns stored statistics, also those of files of before, which held squared deviations."""
    if "squared_deviations" not in stored:
        return stored
    count, mean, squared = (stored[name] for name in ("count", "mean", "squared_deviations"))
    per_sample = squared / np.maximum(count, 1).reshape(-1, *[1] * (squared.ndim - 1))
    rest, count = np.zeros_like(mean), count.astype(np.uint32)
    return RunningStatistics(count, mean, rest, np.sqrt(per_sample))._asdict()


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f"There is no policy file {path}. A finished run leaves one.")
    with _damage_named(path):
        data = serialization.msgpack_restore(path.read_bytes())
        if data["format"] == FORMAT:
            if data["digest"] != _digest(data["content"]):
                raise ValueError("its digest says that it is not as it was written")
            data = {"format": FORMAT, **serialization.msgpack_restore(data["content"])}
        elif data["format"] in OLD_FORMATS:
            statistics = _statistics(data["observation_statistics"])
            parts = {"policy_params": data["policy_params"], "observation_statistics": statistics}
            data["arrays"] = {f"actor/{name}": x for name, x in named_leaves(parts).items()}
        else:
            raise ValueError(f"its format is {data['format']}, and {FORMAT} is the newest")
        if not data["seeds"] or len(data["scores"]) != len(data["seeds"]):
            raise ValueError(f"{len(data['seeds'])} seeds have {len(data['scores'])} scores")
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
        "scores": _scores_at(folder, number, len(description["seeds"])),
        "arrays": {name: x for name, x in arrays.items() if name.startswith("actor/")},
        "what": f"policies after update {number} ({which})",
    }


def _scores_at(folder: Path, number: int, num_seeds: int) -> list[float]:
    """Returns what each seed's policy returned in the evaluation after an update, if there was."""
    path = folder / EVALUATIONS
    columns = read_metrics(path) if path.is_file() else {}
    rows = np.flatnonzero(columns["update"][0] == number) if columns else ()
    return columns["evaluation_return"][:, rows[0]].tolist() if len(rows) else [0.0] * num_seeds


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


def _spaces_in(path: Path, data: dict[str, Any], env: Environment) -> tuple[ArraySpec, Action]:
    """Returns the spaces of an environment as the networks of a file see them.

    Number types and layouts are its own, and large numbers have the origin that the networks know.

    Raises:
        ConfigurationError: if they are not those of the file.
    """
    with _damage_named(path):
        shown, taken = _spaces_of(data)
    if data["format"] in OLD_FORMATS and type(taken) is type(env.action) is not Box:
        taken = taken._replace(start=env.action.start)  # which they did not know
    for what, own, other, same in (
        ("observations", shown[:2], env.observation[:2], shown[:2] == env.observation[:2]),
        ("actions", taken, env.action, _essence(taken) == _essence(env.action)),
    ):
        if not same:
            raise ConfigurationError(
                f"{path} was trained in {data['environment']}, whose {what} are {own}; those "
                f"of {env.name} are {other}. A policy acts only where both are the same."
            )
    return with_origin(env, shown).observation, env.action


def _essence(action: Action) -> tuple[Any, ...]:
    """Returns what two descriptions of the same actions have in common."""
    if isinstance(action, Box):
        return Box, *(np.asarray(x, np.float32).tolist() for x in action)
    starts = np.zeros(action.size, int) + np.asarray(action.start or 0)
    return type(action), action.num_actions, starts.tolist()


def _spaces_of(data: dict[str, Any]) -> tuple[ArraySpec, Action]:
    shown = data["observation"]
    shape, dtype = tuple(shown["shape"]), np.dtype(shown["dtype"])
    origin = _from_plain(shown.get("origin"))
    return ArraySpec(shape, dtype, shown.get("layout"), origin), _action_from(data["action"])


def _action_to_dict(action: Action) -> dict[str, Any]:
    fields = {name: _to_plain(x) for name, x in action._asdict().items()}
    return {"kind": type(action).__name__, **fields}


def _action_from(data: dict[str, Any]) -> Action:
    match data:
        case {"kind": kind, **fields}:
            return ACTIONS[kind](**{name: _from_plain(x) for name, x in fields.items()})
        case {"discrete": number}:  # of old formats
            return Discrete(number)
        case {"multi_discrete": numbers}:
            return MultiDiscrete(tuple(numbers))
    return Box(data["low"], data["high"])


def _to_plain(x: Any) -> Any:
    """Returns a value as JSON holds it; numbers of an array as text, for some may be infinite."""
    if isinstance(x, np.ndarray):
        return {"array": x.astype(str).tolist(), "dtype": x.dtype.name}
    if isinstance(x, np.dtype):
        return x.name
    return list(x) if isinstance(x, tuple) else x


def _from_plain(x: Any) -> Any:
    if isinstance(x, dict):
        return np.array(x["array"]).astype(x["dtype"])
    if isinstance(x, str):
        return np.dtype(x)
    return tuple(x) if isinstance(x, list) else x


def _keys(count: int) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((count,), jnp.uint32))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""The settings of a run, chosen, checked and described before anything is compiled."""

import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax import algorithms, envs, user_modules
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.schedules import (
    Schedule,
    curve_of,
    require_real,
    require_schedules,
    scheduled,
    started,
)
from trpo_jax.algorithms.unused import unused_fields
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment
from trpo_jax.envs.threads import with_timeout
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.processes import decided_by_first
from trpo_jax.records.logs import SERVICES, require_service
from trpo_jax.records.policies import describe_policy, learnt_from, stored_observation, with_origin
from trpo_jax.records.runs import (
    DESCRIPTION,
    SUMMARY,
    differing_settings,
    read_description,
    read_run,
)
from trpo_jax.running.defaults import Defaults, defaults
from trpo_jax.running.description import (
    as_json,
    config_to_dict,
    describe_placement,
    flags_of,
    provenance,
    refuse_other_processes,
    splits_runs,
)
from trpo_jax.running.loop import USUAL, Pace

DEFAULT_ENV = "CartPole-v1"
INTERRUPT = "interrupt"  # Ctrl-C, as what stopped a run or a sweep
OWN = "own"  # name of an algorithm that comes without a module
MOST_SEEDS = 2**32
MOST_RUNS = 10**6  # side by side: their list alone would fill a memory
MOST = 2**31 - 1  # of what a compiled program counts
STOP_EVERY = 10  # updates between two looks at the return that a run may stop at


class Task(NamedTuple):
    """An algorithm's module on an environment, with a config.

    Attributes:
        env: the environment.
        env_name: the name that it was chosen by.
        module: of the algorithm; None of an `Algorithm` that was made already.
        name: of the algorithm.
        config: of the algorithm.
        tuned: settings where nothing else is said.
        named: whether environment and algorithm are names that the scripts know.
        options: that the environment was made with.
    """

    env: Environment
    env_name: str
    module: ModuleType | None
    name: str
    config: Any
    tuned: Defaults
    named: bool
    options: envs.Options = envs.Options()


class RunPlan(NamedTuple):
    """A run whose settings were checked.

    Attributes:
        env: its environment.
        algorithm: its algorithm.
        name: of the algorithm.
        config: of the algorithm.
        seeds: its seeds.
        num_updates: updates of each seed.
        evaluation_episodes: episodes of each seed in an evaluation.
        eval_every: updates from one evaluation to the next, 0 for one in the end only.
        checkpoint_every: updates from one checkpoint to the next, 0 for none; None if their cost
            decides.
        keep_checkpoints: how many of the latest are kept.
        folder: where its files go; None for no files.
        resumed: whether the folder holds the beginning of the run.
        log: further logs, of `trpo_jax.records.logs.SERVICES`.
        description: what `config.json` says.
        placement: which devices it is on; the default one if None.
        evaluation_steps: the most steps of an evaluation episode; None for the usual bound.
        init_from: the run whose policies, critics and statistics it starts from, if any.
        stop_at_return: that ends the run when every seed has reached it; None for none.
        notes: what was asked for without effect, a sentence each.
    """

    env: Environment
    algorithm: Algorithm
    name: str
    config: Any
    seeds: tuple[int, ...]
    num_updates: int
    evaluation_episodes: int
    eval_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    folder: Path | None
    resumed: bool
    log: tuple[str, ...]
    description: dict[str, Any]
    placement: Placement | None
    evaluation_steps: int | None
    init_from: Path | None
    stop_at_return: float | None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The algorithm and the environment, as headings say it."""
        return f"{self.name.upper()} on {self.env.name}"

    @property
    def num_envs(self) -> int:
        """Environments of each seed."""
        state = jax.eval_shape(self.algorithm.init, jax.random.key(0))
        return state.rollout.episodes.length.shape[0]

    @property
    def pace(self) -> Pace:
        """How long it runs between two looks of the host."""
        stop_every = 0 if self.stop_at_return is None else STOP_EVERY
        intervals = self.eval_every, self.checkpoint_every or 0, stop_every
        return USUAL._replace(intervals=intervals)


def choose_task(
    env: str | Environment,
    config: Any,
    algorithm: str | ModuleType | None,
    total_steps: int | None,
    options: envs.Options,
) -> Task:
    """Returns the task of a run or a sweep; see `trpo_jax.train` for the arguments.

    Raises:
        ConfigurationError: if a name is unknown, config and algorithm do not belong together, or
            the environment cannot be made.
    """
    module = _module_of(algorithm, config)
    name = algorithms.name_of(module)
    env_name = env if isinstance(env, str) else env.name
    tuned = defaults(module, env_name, total_steps)
    if config is None:
        config = tuned.config
    if not isinstance(config, module.Config):
        raise ConfigurationError(
            f"The config is a {type(config).__name__} of {type(config).__module__}, and {name} "
            f"takes a Config of {module.__name__}. Leave algorithm away, or give it its own config."
        )
    by_name = isinstance(algorithm, str) or name in algorithms.ALGORITHMS
    named = isinstance(env, str) and by_name and options.named
    if options.processes is None:
        options = options._replace(processes=tuned.env_processes)
    if isinstance(env, str):
        env = envs.make(env, **options._asdict())
    else:
        env = with_options(env, options)
    return Task(env, env_name, module, name, config, tuned, named, options)


def with_options(env: Environment, options: envs.Options) -> Environment:
    """Returns an environment that is made already, with the timeout of some options.

    Raises:
        ConfigurationError: if other options are to change it.
    """
    if options.args or options.wrappers:
        raise ConfigurationError(
            f"env_args and wrappers belong to an environment that is made by its name, and "
            f"{env.name} is made already. Give them to trpo_jax.make_env, or give the name."
        )
    return env if options.timeout is None else with_timeout(env, options.timeout)


def make_of(task: Task, config: Any, **own: Any) -> Algorithm:
    """Returns the algorithm of a task with a config.

    Raises:
        ConfigurationError: if it cannot be made; it names the line of a module of the user's own.
    """
    if task.name in algorithms.ALGORITHMS:
        return task.module.make(task.env, config, **own)
    what = f"The algorithm {task.name!r} cannot be made"
    with user_modules.errors_located(what, getattr(task.module, "__file__", task.name)):
        return task.module.make(task.env, config, **own)


def command_of(task: Task, command: str = "train", **settings: Any) -> list[str]:
    """Returns the command line that does a task with some settings."""
    usual, chosen = (config_to_dict(config) for config in (task.tuned.config, task.config))
    changed = {name: x for name, x in chosen.items() if not np.array_equal(x, usual[name])}
    names = {"env": (task.env_name, DEFAULT_ENV), "algorithm": (task.name, "trpo")}
    names["env_processes"] = (task.options.processes, task.tuned.env_processes)
    names = {name: x for name, (x, default) in names.items() if x != default}
    flags = [*flags_of(names | settings | changed), *task.options.flags()]
    return ["trpo-jax", command, *flags]


def _module_of(algorithm: str | ModuleType | None, config: Any) -> ModuleType:
    if isinstance(algorithm, str):
        return algorithms.get(algorithm)
    if algorithm is None and config is None:
        return trpo
    module = sys.modules[type(config).__module__] if algorithm is None else algorithm
    missing = [name for name in ("Config", "make") if not hasattr(module, name)]
    if missing:
        raise ConfigurationError(
            f"{getattr(module, '__name__', module)} is no module of an algorithm: it has no "
            f"{' and no '.join(missing)}. Give algorithm a name, a module with both, or an "
            "Algorithm."
        )
    return module


def choose_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Returns seeds 0 to n - 1 for a number n, and otherwise the seeds themselves.

    Raises:
        ConfigurationError: if there is none, one is there twice, or one is no seed.
    """
    if isinstance(seeds, int | np.integer):
        require_at_least(seeds=(seeds, 1))
        require_at_most(seeds=(seeds, MOST_RUNS))
        seeds = range(seeds)
    chosen = tuple(int(seed) for seed in seeds)
    wrong = [seed for seed in chosen if not 0 <= seed < MOST_SEEDS]
    if wrong:
        raise ConfigurationError(f"seed = {wrong[0]} must be at least 0 and less than 2^32.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigurationError(f"seeds = {list(chosen)} must be one or more, each of them once.")
    return chosen


def require_at_least(**numbers: tuple[int | None, int]) -> None:
    """Raises a ConfigurationError for the first `name=(number, low)` whose number is too small."""
    for name, (number, low) in numbers.items():
        if number is not None and number < low:
            raise ConfigurationError(f"{name} = {number} must be at least {low}.")


def require_at_most(**numbers: tuple[int, int]) -> None:
    """Raises a ConfigurationError for the first `name=(number, high)` whose number is too large."""
    for name, (number, high) in numbers.items():
        if number > high:
            raise ConfigurationError(f"{name} = {number:,} must be at most {high:,}.")


def require_on_device(env: Environment, what: str) -> None:
    """Raises a ConfigurationError if an environment cannot be part of a compiled program."""
    if env.open is not None:
        raise ConfigurationError(
            f"{what} in one compiled program, and {env.name} runs on the host. Choose an "
            "environment of the accelerator."
        )


def plan_run(
    env: str | Environment = DEFAULT_ENV,
    config: Any = None,
    *,
    algorithm: str | ModuleType | Algorithm | None = None,
    agent: Any = None,
    seeds: int | Sequence[int] | None = None,
    total_steps: int | None = None,
    evaluation_episodes: int | None = None,
    env_processes: bool | None = None,
    env_args: Mapping[str, Any] | None = None,
    wrappers: Sequence[envs.Wrapper] = (),
    env_timeout: float | None = None,
    eval_every: int = 0,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 3,
    out: str | Path | None = None,
    resume: bool = False,
    log: Sequence[str] = (),
    placement: Placement | None = None,
    schedules: Mapping[str, str | Schedule] | None = None,
    evaluation_steps: int | None = None,
    init_from: str | Path | None = None,
    stop_at_return: float | None = None,
) -> RunPlan:
    """Returns the plan of a run; writes nothing. See `trpo_jax.train` for the arguments.

    Raises:
        ConfigurationError: if a setting cannot work.
    """
    folder = None if out is None else Path(out)
    begun = decided_by_first(lambda: _begun(folder)) if resume and folder is not None else None
    tuned_for = begun or total_steps  # a run that goes on for longer keeps its schedules
    options = envs.Options(env_args or {}, wrappers, env_processes, env_timeout)
    if isinstance(algorithm, Algorithm):
        own_env = env == DEFAULT_ENV if isinstance(env, str) else env is algorithm.env
        if config is not None or agent is not None or not own_env:
            raise ConfigurationError(
                "An Algorithm has its own environment, config and agent. Leave env, config and "
                "agent away, or give the module of the algorithm in its place."
            )
        env, own_config = algorithm.env, algorithm.config
        env = with_options(env, options)
        tuned = defaults("trpo", env.name, tuned_for)
        options = options._replace(processes=bool(env_processes))
        task = Task(env, env.name, None, OWN, own_config, tuned, False, options)
        made = algorithm._replace(env=env)
    else:
        task = choose_task(env, config, algorithm, tuned_for, options)
        task = task._replace(env=_seen_as_before(task.env, out if resume else None, init_from))
        own = {} if agent is None else {"agent": agent}
        task = task._replace(named=task.named and agent is None)
        make = partial(make_of, task, **own)
        made = make(task.config)
    tuned = task.tuned
    if begun and task.module is not None and total_steps is not None:
        task = task._replace(tuned=defaults(task.module, task.env_name, total_steps))
    chosen = {
        "seeds": choose_seeds(tuned.num_seeds if seeds is None else seeds),
        "total_steps": tuned.total_steps if total_steps is None else total_steps,
        "evaluation_episodes": (
            tuned.evaluation_episodes if evaluation_episodes is None else evaluation_episodes
        ),
        "eval_every": eval_every,
        "checkpoint_every": checkpoint_every,
        "stop_at_return": stop_at_return,
        "env_processes": task.options.processes,
        "evaluation_steps": evaluation_steps,
        "init_from": None if init_from is None else str(init_from),
    }
    require_at_least(
        evaluation_episodes=(chosen["evaluation_episodes"], 1),
        keep_checkpoints=(keep_checkpoints, 1),
        eval_every=(eval_every, 0),
        checkpoint_every=(checkpoint_every, 0),
        evaluation_steps=(evaluation_steps, 1),
    )
    num_updates = chosen["total_steps"] // made.steps_per_update
    require_at_most(
        evaluation_episodes=(chosen["evaluation_episodes"], MOST), updates=(num_updates, MOST)
    )
    curves, described = {}, {}
    if schedules:
        if task.module is None:
            raise ConfigurationError(
                "An Algorithm is made already, with numbers that stay as they are. Give its module "
                "and its config for schedules."
            )
        for name, schedule in schedules.items():
            require_real(task.config, name)
            curves[name], described[name] = curve_of(schedule, begun or chosen["total_steps"])
        named = task.named and all(isinstance(x, str) for x in schedules.values())
        task = task._replace(config=started(task.config, curves), named=named)
        require_schedules(task.config, curves, max(num_updates, 1), made.steps_per_update)
        made = scheduled(make, task.config, curves)
    if num_updates < 1:
        raise ConfigurationError(
            f"total_steps = {chosen['total_steps']:,} is less than one batch, which takes "
            f"{made.steps_per_update:,} steps of the environment. Raise total_steps or collect "
            "less in an update, by num_envs or num_steps for instance."
        )
    for service in log:
        if service not in SERVICES:
            raise unknown_name("log", service, SERVICES)
        require_service(service)
    if stop_at_return is not None and not math.isfinite(stop_at_return):
        raise ConfigurationError(f"stop_at_return = {stop_at_return} must be a finite number.")
    if folder is None and (log or resume or checkpoint_every):
        raise ConfigurationError(
            "log, resume and checkpoint_every need a folder: give out as well."
        )
    seed_list = list(chosen["seeds"])
    split = "" if placement is None else "seeds" if splits_runs(placement) else "environments"
    description = as_json(
        {
            "command": _command(task, chosen, keep_checkpoints, log, folder, described),
            "env": task.env_name,
            "algorithm": task.name,
            "seed": seed_list[0],
            "num_seeds": len(seed_list),
            **chosen,
            **task.options.described(),
            "config": config_to_dict(task.config),
            **({"schedules": described} if described else {}),
            **provenance(task.env_name),
            "placement": describe_placement(placement, split),
            "policy": describe_policy(made),
        }
    )
    refuse_other_processes(description, log=log, keep=keep_checkpoints, resume=resume)
    resumed = begun is not None
    if resumed:
        _refuse_to_resume(folder, description)
    elif init_from is not None:
        learnt_from(init_from, made, chosen["seeds"])
    return RunPlan(
        made.env,
        made,
        task.name,
        task.config,
        chosen["seeds"],
        num_updates,
        chosen["evaluation_episodes"],
        eval_every,
        checkpoint_every,
        keep_checkpoints,
        folder,
        resumed,
        tuple(log),
        description,
        placement,
        evaluation_steps,
        None if init_from is None else Path(init_from),
        stop_at_return,
        tuple(without_effect(task, curves)),
    )


def _begun(folder: Path) -> int | None:
    """Returns the steps that the run in a folder was to have; None if there is no run."""
    there = (folder / DESCRIPTION).is_file()
    return read_description(folder, "total_steps")["total_steps"] if there else None


def without_effect(task: Task, schedules: Iterable[str] = ()) -> Iterator[str]:
    """Yields a sentence for each hyperparameter that was chosen, and has no effect."""
    if task.module is None:
        return
    own, tuned, chosen = map(config_to_dict, (task.module.Config(), task.tuned.config, task.config))
    for name, reason in unused_fields(task.env, task.config):
        if name in schedules or (name in chosen and chosen[name] not in (own[name], tuned[name])):
            yield f"{name} = {chosen[name]} has no effect: {reason}."


def _command(
    task: Task,
    chosen: dict[str, Any],
    keep_checkpoints: int,
    log: Sequence[str],
    folder: Path | None,
    schedules: Mapping[str, str],
) -> list[str] | None:
    """Returns the command line of the script that does the same run, or None if there is none."""
    first, count = chosen["seeds"][0], len(chosen["seeds"])
    if not task.named or chosen["seeds"] != tuple(range(first, first + count)):
        return None
    given = {"seed": first, "num_seeds": count, **chosen, "keep_checkpoints": keep_checkpoints}
    given |= {"log": ",".join(log), "out": folder}
    usual = {"seed": 0, **task.tuned._asdict(), "eval_every": 0, "checkpoint_every": None}
    usual |= {"keep_checkpoints": 3, "log": "", "out": None, "total_steps": None}
    usual |= {"evaluation_steps": None, "init_from": None, "stop_at_return": None}
    del given["seeds"]
    command = command_of(task, **{name: x for name, x in given.items() if x != usual[name]})
    return command + [f"--schedule={name}={text}" for name, text in schedules.items()]


def _seen_as_before(
    env: Environment, resumed: str | Path | None, init_from: str | Path | None
) -> Environment:
    """Returns an environment on the host whose observations have the origin that networks know.

    It is measured when an environment is made, and need not come out the same another time.
    """
    shown = None
    if env.open is not None and resumed is not None and Path(resumed, DESCRIPTION).is_file():
        shown = stored_observation(read_description(Path(resumed)))
    elif env.open is not None and init_from is not None:
        shown = stored_observation(init_from)
    return env if shown is None else with_origin(env, shown)


def _refuse_to_resume(folder: Path, description: dict[str, Any]) -> None:
    """Raises a ConfigurationError if a run is finished, or was started with other settings.

    It may go on to more steps than it was started with, also if it is finished.
    """
    found = read_description(folder, "command", "config", "versions", "total_steps")
    asked, begun = description["total_steps"], found["total_steps"]
    if (folder / SUMMARY).is_file() and asked <= begun:
        num_updates = read_run(folder).metrics["update"].shape[1]
        raise ConfigurationError(
            f"The run in {folder} is finished: its {num_updates:,} updates are done, and "
            f"{SUMMARY} says what came of them. To go on to more than its {begun:,} steps, give a "
            "larger total_steps."
        )
    different = differing_settings(description, found | {"total_steps": max(asked, begun)})
    if different:
        command = found["command"]
        anew = f"use its own command: {shlex.join(command)}" if command else "choose another folder"
        raise ConfigurationError(
            f"The run in {folder} has {different}. It can only go on as it was: leave other "
            "settings away, and install those versions (python3 -m uv run --with jax==... for "
            f"instance). Only the last part of a version may differ. To start anew, {anew}"
        )

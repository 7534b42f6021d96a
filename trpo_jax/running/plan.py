"""Chooses, checks and describes the settings of a run before anything is compiled."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax import envs
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.schedules import (
    Schedule,
    curve_of,
    require_real,
    require_schedules,
    scheduled,
    started,
)
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment, key_shape
from trpo_jax.envs.specs import num_components
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.processes import decided_by_first
from trpo_jax.records.limits import last_limits
from trpo_jax.records.logs import require_service
from trpo_jax.records.policies import learnt_from
from trpo_jax.records.policy_files import describe_policy, stored_observation, with_origin
from trpo_jax.records.resuming import begun_steps, refuse_to_resume
from trpo_jax.records.runs import DESCRIPTION, read_description
from trpo_jax.running.defaults import defaults
from trpo_jax.running.description import (
    as_json,
    config_to_dict,
    describe_placement,
    provenance,
    refuse_other_processes,
    splits_runs,
)
from trpo_jax.running.loop import USUAL, Pace
from trpo_jax.running.settings import (
    MOST,
    SERVICES,
    STOP_EVERY,
    choose_seeds,
    require_at_least,
    require_at_most,
)
from trpo_jax.running.task import (
    DEFAULT_ENV,
    OWN,
    Task,
    choose_task,
    command_of,
    make_of,
    with_options,
    without_effect,
)

INTERRUPT = "interrupt"  # value of `stopped_by` after Ctrl-C


class RunPlan(NamedTuple):
    """A run whose settings have been checked.

    Attributes:
        env: the environment.
        algorithm: the algorithm.
        name: the name of the algorithm.
        config: the config of the algorithm.
        seeds: the seeds.
        num_updates: number of updates of each seed.
        evaluation_episodes: number of episodes for evaluating the policy of a seed.
        eval_every: number of updates from one evaluation to the next; 0 evaluates only at the end.
        checkpoint_every: number of updates from one checkpoint to the next; 0 for no checkpoints;
            None for as often as their share of the time allows.
        keep_checkpoints: number of latest checkpoints to keep.
        folder: the folder of the files; None for no files.
        resumed: whether the folder holds the beginning of the run.
        log: names of further logs, from `trpo_jax.running.settings.SERVICES`.
        description: the contents of `config.json`.
        placement: the devices of the run; None for the default device.
        evaluation_steps: maximum number of steps of an evaluation episode; None for the default.
        init_from: the run whose policies, critics and statistics this run starts from, or None.
        stop_at_return: the run stops when every seed has reached this return; None for never.
        cost_limits: the limit of each cost at the last update, by which policies are judged; None
            without limits.
        notes: sentences about settings that have no effect and costs that are ignored.
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
    cost_limits: np.ndarray | None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The algorithm and the environment, for headings."""
        return f"{self.name.upper()} on {self.env.name}"

    @property
    def num_envs(self) -> int:
        """The number of environments of each seed."""
        state = jax.eval_shape(self.algorithm.init, key_shape())
        return state.rollout.episodes.length.shape[0]

    @property
    def pace(self) -> Pace:
        """How long the chunks of the run are."""
        stop_every = 0 if self.stop_at_return is None else STOP_EVERY
        intervals = self.eval_every, self.checkpoint_every or 0, stop_every
        return USUAL._replace(intervals=intervals)


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
    costs: Sequence[envs.Cost] = (),
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
    begun = decided_by_first(lambda: begun_steps(folder)) if resume and folder is not None else None
    tuned_for = begun or total_steps  # a run that is made longer keeps its schedules
    options = envs.Options(env_args or {}, wrappers, env_processes, env_timeout, costs)
    if isinstance(algorithm, Algorithm):
        task, made = _own_task(env, config, algorithm, agent, tuned_for, options)
        make = None
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
        schedule_steps = begun or chosen["total_steps"]
        task, curves, described = _with_schedules(task, make, schedules, schedule_steps)
        require_schedules(task.config, curves, max(num_updates, 1), made.steps_per_update)
        made = scheduled(make, task.config, curves)
    if num_updates < 1:
        raise ConfigurationError(
            f"total_steps = {chosen['total_steps']:,} is less than one batch, which takes "
            f"{made.steps_per_update:,} steps of the environment. Raise total_steps, or make a "
            "batch smaller, with num_envs or num_steps for instance."
        )
    for service in log:
        if service not in SERVICES:
            raise unknown_name("log", service, SERVICES)
        require_service(service)
    if stop_at_return is not None and not math.isfinite(stop_at_return):
        raise ConfigurationError(f"stop_at_return = {stop_at_return} must be a finite number.")
    if folder is None and (log or resume or checkpoint_every):
        raise ConfigurationError(
            "log, resume and checkpoint_every need a folder. Give out as well."
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
            **({"cost_names": made.env.costs} if made.env.costs else {}),
            "config": config_to_dict(task.config),
            **({"schedules": described} if described else {}),
            **provenance(task.env_name),
            "placement": describe_placement(placement, split),
            "action_components": num_components(made.env.action) // (made.env.num_agents or 1),
            "policy": describe_policy(made),
        }
    )
    refuse_other_processes(description, log=log, keep=keep_checkpoints, resume=resume)
    resumed = begun is not None
    if resumed:
        refuse_to_resume(folder, description)
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
        _last_limits(task.config, curves, made, num_updates),
        (*without_effect(task, curves), *_ignored_costs(task, made.env)),
    )


def _last_limits(
    config: Any, curves: Mapping[str, Schedule], algorithm: Algorithm, num_updates: int
) -> np.ndarray | None:
    """Returns the limit of each cost at the last update of a run, `[K]`; None without limits."""
    values = config_to_dict(config)
    if "cost_limit" in curves:
        steps = (num_updates - 1) * algorithm.steps_per_update
        values["cost_limit"] = float(curves["cost_limit"](jnp.float32(steps)))
    return last_limits(values, {}, len(algorithm.env.costs))


def _ignored_costs(task: Task, env: Environment) -> Iterator[str]:
    """Yields a sentence if the environment has costs that the algorithm ignores."""
    if env.costs and not hasattr(task.config, "cost_limit"):
        yield (
            f"{env.name} has costs ({', '.join(env.costs)}). They are recorded, but {task.name} "
            "ignores them. cpo, pcpo, trpo_lag, trpo_pid and ppo_lag keep limits on costs."
        )


def _own_task(
    env: str | Environment,
    config: Any,
    algorithm: Algorithm,
    agent: Any,
    total_steps: int | None,
    options: envs.Options,
) -> tuple[Task, Algorithm]:
    """Returns the task of an `Algorithm`, and the algorithm with the options of the environment.

    Raises:
        ConfigurationError: if something is given that an `Algorithm` already has.
    """
    own_env = env == DEFAULT_ENV if isinstance(env, str) else env is algorithm.env
    if config is not None or agent is not None or not own_env:
        raise ConfigurationError(
            "An Algorithm has its own environment, config and agent. Remove env, config and agent, "
            "or give the module of the algorithm instead of the Algorithm."
        )
    env = with_options(algorithm.env, options)
    tuned = defaults("trpo", env.name, total_steps)
    options = options._replace(processes=bool(options.processes))
    task = Task(env, env.name, None, OWN, algorithm.config, tuned, False, options)
    return task, algorithm._replace(env=env)


def _with_schedules(
    task: Task, make: Any, schedules: Mapping[str, str | Schedule], total_steps: int
) -> tuple[Task, dict[str, Schedule], dict[str, str]]:
    """Returns the task with the first values of its schedules, the schedules, and their texts.

    Raises:
        ConfigurationError: if a hyperparameter cannot have a schedule, or a text is not a schedule.
    """
    if make is None:
        raise ConfigurationError(
            "The hyperparameters of an Algorithm cannot change. To use schedules, give its module "
            "and its config instead of the Algorithm."
        )
    curves, described = {}, {}
    for name, schedule in schedules.items():
        require_real(task.config, name)
        curves[name], described[name] = curve_of(schedule, total_steps)
    named = task.named and all(isinstance(x, str) for x in schedules.values())
    return task._replace(config=started(task.config, curves), named=named), curves, described


def _command(
    task: Task,
    chosen: dict[str, Any],
    keep_checkpoints: int,
    log: Sequence[str],
    folder: Path | None,
    schedules: Mapping[str, str],
) -> list[str] | None:
    """Returns the command line that does the same run, or None if there is none."""
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
    """Returns the environment with the origin of observations that stored networks were trained on.

    The origin is measured each time an environment on the host is made, and the result may differ.
    """
    shown = None
    if env.open is not None and resumed is not None and Path(resumed, DESCRIPTION).is_file():
        shown = stored_observation(read_description(Path(resumed)))
    elif env.open is not None and init_from is not None:
        shown = stored_observation(init_from)
    return env if shown is None else with_origin(env, shown)

"""An algorithm on an environment: what a run and a sweep have to do."""

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from trpo_jax import algorithms, envs, user_modules
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.unused import unused_fields
from trpo_jax.envs.base import Environment
from trpo_jax.envs.threads import with_timeout
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.defaults import Defaults, defaults
from trpo_jax.running.description import (
    config_to_dict,
    flags_of,
)

DEFAULT_ENV = "CartPole-v1"


OWN = "own"  # name of an algorithm that comes without a module


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
    if options.args or options.wrappers or options.costs:
        raise ConfigurationError(
            f"env_args, wrappers and costs belong to an environment that is made by its name, and "
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


def require_on_device(env: Environment, what: str) -> None:
    """Raises a ConfigurationError if an environment cannot be part of a compiled program."""
    if env.open is not None:
        raise ConfigurationError(
            f"{what} in one compiled program, and {env.name} runs on the host. Choose an "
            "environment of the accelerator."
        )


def without_effect(task: Task, schedules: Iterable[str] = ()) -> Iterator[str]:
    """Yields a sentence for each hyperparameter that was chosen, and has no effect."""
    if task.module is None:
        return
    own, tuned, chosen = map(config_to_dict, (task.module.Config(), task.tuned.config, task.config))
    for name, reason in unused_fields(task.env, task.config):
        if name in schedules or (name in chosen and chosen[name] not in (own[name], tuned[name])):
            yield f"{name} = {chosen[name]} has no effect: {reason}."

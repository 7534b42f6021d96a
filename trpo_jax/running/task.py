"""A task: an algorithm with a config on an environment, for a run or for a sweep."""

from collections.abc import Iterable, Iterator
from importlib import import_module
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
from trpo_jax.running.description import config_to_dict, flags_of

DEFAULT_ENV = "CartPole-v1"
OWN = "own"  # the name of an algorithm that comes without a module


class Task(NamedTuple):
    """An algorithm with a config on an environment.

    Attributes:
        env: the environment.
        env_name: the name that the environment was chosen by.
        module: the module of the algorithm; None if the user gave an `Algorithm`.
        name: the name of the algorithm.
        config: the config of the algorithm.
        tuned: the default settings.
        named: whether a command line can name the environment and the algorithm.
        options: the options that the environment was made with.
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
            f"The config is a {type(config).__name__} of {type(config).__module__}, but {name} "
            f"takes a Config of {module.__name__}. Remove algorithm, or give it its own config."
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
    """Returns an existing environment with the timeout of some options.

    Raises:
        ConfigurationError: if the options would change anything else.
    """
    if options.args or options.wrappers or options.costs:
        raise ConfigurationError(
            f"env_args, wrappers and costs need an environment that is given by its name, but "
            f"{env.name} is an Environment already. Give them to trpo_jax.make_env, or give the "
            "name of the environment."
        )
    return env if options.timeout is None else with_timeout(env, options.timeout)


def make_of(task: Task, config: Any, **own: Any) -> Algorithm:
    """Returns the algorithm of a task, made with a config.

    Raises:
        ConfigurationError: if it cannot be made. For a module of the user, it names the line.
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
    module = import_module(type(config).__module__) if algorithm is None else algorithm
    missing = [name for name in ("Config", "make") if not hasattr(module, name)]
    if missing:
        raise ConfigurationError(
            f"{getattr(module, '__name__', module)} is not the module of an algorithm: it has no "
            f"{' and no '.join(missing)}. The argument algorithm takes a name, a module with "
            "Config and make, or an Algorithm."
        )
    return module


def require_on_device(env: Environment, what: str) -> None:
    """Raises a ConfigurationError if an environment cannot be part of a compiled program."""
    if env.open is not None:
        raise ConfigurationError(
            f"{what} one compiled program, but {env.name} runs on the host, outside of it. Choose "
            "an environment that runs on the device."
        )


def without_effect(task: Task, schedules: Iterable[str] = ()) -> Iterator[str]:
    """Yields a sentence for each hyperparameter that the user has set but that has no effect."""
    if task.module is None:
        return
    own, tuned, chosen = map(config_to_dict, (task.module.Config(), task.tuned.config, task.config))
    for name, reason in unused_fields(task.env, task.config):
        if name in schedules or (name in chosen and chosen[name] not in (own[name], tuned[name])):
            yield f"{name} = {chosen[name]} has no effect: {reason}."

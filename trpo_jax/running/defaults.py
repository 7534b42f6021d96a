"""Reads the default settings of each algorithm and environment from `defaults.toml`."""

import dataclasses
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from trpo_jax import algorithms

DEFAULTS_FILE = Path(__file__).with_name("defaults.toml")
SPACES_FILE = Path(__file__).with_name("search_spaces.toml")


def defaults_for(algorithm: str, environment: str, file: Path = DEFAULTS_FILE) -> dict[str, Any]:
    """Returns the settings of a run from all matching tables of a file. Later tables win.

    The name of a table is a pattern for algorithms, and one or more patterns for environments with
    `|` between them. If several suites have the same task, the table `same` of `defaults.toml` says
    by which name it is looked up.
    """
    defaults: dict[str, Any] = {}
    for _, table in _matching(algorithm, environment, file):
        defaults |= table
    return defaults


def sources_of(algorithm: str, environment: str) -> list[str]:
    """Returns the patterns of environments in `defaults.toml` whose settings a run takes."""
    matching = _matching(algorithm, environment, DEFAULTS_FILE)
    return list(dict.fromkeys(name for name, _ in matching if name != "*"))


def _matching(algorithm: str, environment: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each matching table with the pattern of environments that matches."""
    name = environment.removeprefix("gymnax/")
    same = tomllib.loads(DEFAULTS_FILE.read_text())["same"].items()
    name = next((task for pattern, task in same if fnmatchcase(name, pattern)), name)
    for pattern, tables in tomllib.loads(file.read_text()).items():
        for patterns, table in tables.items() if fnmatchcase(algorithm, pattern) else ():
            found = [x for x in patterns.split("|") if fnmatchcase(name, x)]
            if found:
                yield found[0], table


class Defaults(NamedTuple):
    """The tuned settings of a run.

    Attributes:
        config: the config of the algorithm.
        total_steps: environment steps of each seed.
        num_seeds: number of seeds.
        evaluation_episodes: number of episodes for evaluating the policy of a seed.
        env_processes: whether the copies of a Gymnasium or PettingZoo environment run in processes,
            one for each core.
    """

    config: Any
    total_steps: int
    num_seeds: int
    evaluation_episodes: int
    env_processes: bool


def defaults(
    algorithm: str | ModuleType = "trpo",
    environment: str = "CartPole-v1",
    total_steps: int | None = None,
) -> Defaults:
    """Returns the tuned settings of an algorithm on an environment.

    `trpo_jax.train` and `experiments/train.py` use these settings for everything that is not given.

    Args:
        algorithm: the name of an algorithm, or its module.
        environment: the name of an environment.
        total_steps: environment steps of each seed; None for the tuned number. Schedules that last
            the whole run follow it.

    Raises:
        ConfigurationError: if there is no algorithm of that name.

    Examples:
        >>> tuned = trpo_jax.defaults("trpo", "Pendulum-v1")
        >>> tuned.total_steps, tuned.config.gamma
        (100000, 0.955)
        >>> config = tuned.config.replace(max_kl=0.02)  # to train with one setting changed
    """
    module = algorithms.get(algorithm) if isinstance(algorithm, str) else algorithm
    table = defaults_for(algorithms.name_of(module), environment)
    if total_steps is not None:
        table["total_steps"] = total_steps
    values = {}
    for field in dataclasses.fields(module.Config):
        if field.name in table:
            value = table[field.name]
            if isinstance(value, str) and not isinstance(field.default, str):
                value = table[value]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    run_settings = (table[name] for name in Defaults._fields[1:])
    return Defaults(module.Config(**values), *run_settings)

"""Settings for each algorithm and environment, which are data: `defaults.toml` beside this file."""

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
    """Returns the settings of a run: every matching table of the file, where later tables win.

    A table's name is a pattern of algorithms, and one or more patterns of environments with `|`
    between them. A task that several suites have is called as `same` in `defaults.toml` says.
    """
    defaults: dict[str, Any] = {}
    for _, table in _matching(algorithm, environment, file):
        defaults |= table
    return defaults


def sources_of(algorithm: str, environment: str) -> list[str]:
    """Returns the names of environments in `defaults.toml` whose settings a run has."""
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
    """Settings of a run that were found by tuning.

    Attributes:
        config: of the algorithm.
        total_steps: environment steps of each seed.
        num_seeds: number of seeds.
        evaluation_episodes: episodes of each seed that its final policy is judged by.
        env_processes: whether each copy of a Gymnasium or PettingZoo environment gets a process of
            its own.
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

    They are those of `experiments/train.py` without a flag:

        tuned = trpo_jax.defaults("trpo", "CartPole-v1")
        run = trpo_jax.train("CartPole-v1", tuned.config.replace(max_kl=0.02))

    Args:
        algorithm: its name, or its module.
        environment: its name.
        total_steps: environment steps of each seed, if others are wanted; the length of a schedule
            follows them.

    Raises:
        ConfigurationError: if there is no algorithm of that name.
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

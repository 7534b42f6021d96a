"""Settings for each algorithm and environment, which are data: `defaults.toml` beside this file."""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

DEFAULTS_FILE = Path(__file__).with_name("defaults.toml")
SPACES_FILE = Path(__file__).with_name("search_spaces.toml")


def defaults_for(algorithm: str, environment: str, file: Path = DEFAULTS_FILE) -> dict[str, Any]:
    """Returns the settings of a run: every matching table of the file, where later tables win.

    A table's name is a pattern of algorithms, and one or more patterns of environments with `|`
    between them.
    """
    environment = environment.removeprefix("gymnax/")
    defaults: dict[str, Any] = {}
    for algorithms, tables in tomllib.loads(file.read_text()).items():
        for patterns, table in tables.items():
            matches = any(fnmatchcase(environment, pattern) for pattern in patterns.split("|"))
            if fnmatchcase(algorithm, algorithms) and matches:
                defaults |= table
    return defaults

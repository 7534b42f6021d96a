"""Measures an old and the new version of the library in turns, and judges the goals for speed."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from speed_one_version import HOST_TASKS

from trpo_jax import envs
from trpo_jax.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("speed_one_version.py")
PARTS = ("products", "update", "start", "host")
GOALS = {  # (bound, whether the number has to be at least the bound)
    "product, 64 x 64, 2,048 states: share of the matrix rate": (0.5, True),
    "product, 256 x 256, 65,536 states: share of the matrix rate": (2 / 3, True),
    "train.py --help: s": (0.3, False),
    "train.py to its first update, cold, beyond the import of jax: s": (3.0, False),
    "train.py to its first update, warm, beyond the import of jax: s": (1.0, False),
    "envpool/Hopper-v4, 2 seeds: share of EnvPool's own speed": (0.75, True),
    "envpool/HalfCheetah-v4, 2 seeds: share of EnvPool's own speed": (0.75, True),
}


def measure(old: str | None, repeats: int) -> list[dict[str, Any]]:
    """Returns a row for each measurement: its name, the old and the new number, and its goal.

    The versions take turns: the old version, the new version, the old version, and so on.

    Args:
        old: commit of the old version, or None to measure only the new version.
        repeats: number of turns.
    """
    turns: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    with checkout_of(old) as folder:
        folders = ({"old": folder} if folder else {}) | {"new": ROOT}
        for _ in range(repeats):
            for name, where in folders.items():
                turns[name].append(measure_in(where))
    middle = lambda name, what: float(np.median([turn[what] for turn in turns[name]]))
    return [
        {
            "what": what,
            "old": middle("old", what) if turns["old"] else None,
            "new": middle("new", what),
            "goal": GOALS.get(what),
        }
        for what in turns["new"][0]
    ]


def measure_in(folder: Path) -> dict[str, float]:
    """Returns the measurements of the version in a folder."""
    scripts = os.pathsep.join(map(str, (folder, SCRIPT.parent)))
    words = [sys.executable, str(SCRIPT), *PARTS, "--checkout", str(folder), "--repeats", "3"]
    environment = os.environ | {"PYTHONPATH": scripts}
    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def checkout_of(commit: str | None) -> Iterator[Path | None]:
    """Gives a temporary folder with the files of a commit; None without a commit."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def require_host_tasks() -> None:
    """Raises a ConfigurationError if this machine lacks EnvPool."""
    for task in HOST_TASKS:
        envs.make(f"envpool/{task}")


def require_commit(commit: str) -> None:
    """Raises a ConfigurationError if git does not know a commit."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    if subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        raise ConfigurationError(
            f"old = {commit!r} is not a commit of this repository. `git log` shows the commits."
        )

"""Times calls in turns, so that a busy machine slows all of them equally."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

SHORTEST = 0.02  # least seconds of a measurement; it repeats a shorter call


def time_in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Returns the seconds of one call of each function, arrays `[repeats]` by name.

    A first call of each function compiles it. A second call decides how often a measurement
    repeats it. Then all functions take turns.

    Args:
        calls: functions without arguments that return arrays. The time ends when these are ready.
        repeats: number of turns.
    """
    counts = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        counts[name] = max(1, int(np.ceil(SHORTEST / seconds_of(call, 1))))
    turns = [
        {name: seconds_of(call, counts[name]) for name, call in calls.items()}
        for _ in range(repeats)
    ]
    return {name: np.array([turn[name] for turn in turns]) for name in calls}


def seconds_of(call: Callable[[], Any], count: int) -> float:
    """Returns the mean seconds of `count` calls, one after another."""
    started = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(call())
    return (time.perf_counter() - started) / count

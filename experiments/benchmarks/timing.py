"""Times calls in turns, so that a machine's noise hits all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

SHORTEST = 0.02  # seconds that a measurement lasts at least; shorter calls are repeated in it


def time_in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Returns the seconds that one call of each takes, `[repeats]`, by name.

    Each is called once before, which compiles it and says how often it fits into a measurement.
    Then all take turns.

    Args:
        calls: functions of nothing that return arrays, which are waited for.
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

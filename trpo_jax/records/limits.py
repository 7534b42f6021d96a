"""Limits on costs, and which policy is chosen under them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo_jax.records.runs import (
    DESCRIPTION,
    METRICS,
    read_description,
    read_metrics,
    require_kinds,
)


def cost_limits(
    config: Mapping[str, Any], metrics: Mapping[str, np.ndarray], num_costs: int
) -> np.ndarray | None:
    """Returns the limit of each cost at each update, `[K, U]`; None of an algorithm without limits.

    Args:
        config: the fields of the algorithm's config.
        metrics: columns `[num_seeds, U]`, which have the limit where it follows a schedule.
        num_costs: K.
    """
    limit = config.get("cost_limit")
    if limit is None or np.size(limit) not in (1, num_costs):
        return None
    shape = num_costs, metrics["update"].shape[1]
    if "cost_limit" in metrics:  # NaN of seeds that have stopped
        return np.broadcast_to(np.fmax.reduce(metrics["cost_limit"]), shape)
    return np.broadcast_to(np.reshape(limit, (-1, 1)), shape)


def last_limits(
    config: Mapping[str, Any], metrics: Mapping[str, np.ndarray], num_costs: int
) -> np.ndarray | None:
    """Returns the limits that policies are judged by, those of the last update, `[K]`, or None.

    Args:
        config: the fields of the algorithm's config.
        metrics: as `cost_limits` takes them; there may be none.
        num_costs: K.
    """
    limits = cost_limits(config, {"update": np.zeros((1, 1)), **metrics}, num_costs)
    return None if limits is None else limits[:, -1]


def stored_limits(folder: Path, num_costs: int) -> np.ndarray | None:
    """Returns the limits that the policies of a run in a folder are judged by, `[K]`, or None.

    Raises:
        ConfigurationError: if a file of the run is damaged.
    """
    description, path = read_description(folder), folder / METRICS
    config = description.get("config", {})
    if "cost_limit" not in config:
        return None
    require_kinds(folder / DESCRIPTION, config, ())
    metrics = read_metrics(path, description.get("seeds")) if path.is_file() else {}
    return last_limits(config, metrics, num_costs)


def cost_excess(costs: np.ndarray, limits: np.ndarray | None) -> np.ndarray:
    """Returns how far costs `[*B, K]` are above limits `[K]`, all costs together: `[*B]`.

    It is 0 where all limits are kept, and where there are none.
    """
    if limits is None:
        return np.zeros(np.shape(costs)[:-1])
    return np.asarray(np.maximum(costs - limits, 0).sum(axis=-1))


def preference(score: float, excess: float = 0.0) -> tuple[float, float]:
    """Returns a number pair that is the largest for the policy to choose.

    A policy that keeps its limits comes before one that does not. Among those that keep them the
    score decides, and among the others the excess.

    Args:
        score: the return; NaN or negative infinity of a policy that has none, which comes last.
        excess: from `cost_excess`.
    """
    scored = score > -np.inf and excess < np.inf  # NaN is neither
    return (-float(excess), float(score)) if scored else (-np.inf, -np.inf)


def best_of(scores: Sequence[float] | np.ndarray, excess: Sequence[float] | np.ndarray) -> int:
    """Returns the index of the policy to choose, by `preference`; the first among equals."""
    numbers = np.stack([scores, excess], axis=1).astype(float).tolist()
    pairs = [preference(*pair) for pair in numbers]
    return pairs.index(max(pairs))

"""Limits on costs, and the choice of the best policy under limits."""

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
    """Returns the limit of each cost at each update, `[K, U]`; None without limits.

    Args:
        config: the fields of the algorithm's config.
        metrics: columns `[num_seeds, U]`. They have a column `cost_limit` if the limit follows a
            schedule.
        num_costs: K, the number of costs.
    """
    limit = config.get("cost_limit")
    if limit is None or np.size(limit) not in (1, num_costs):
        return None
    shape = num_costs, metrics["update"].shape[1]
    if "cost_limit" in metrics:  # NaN for seeds that have stopped
        return np.broadcast_to(np.fmax.reduce(metrics["cost_limit"]), shape)
    return np.broadcast_to(np.reshape(limit, (-1, 1)), shape)


def last_limits(
    config: Mapping[str, Any], metrics: Mapping[str, np.ndarray], num_costs: int
) -> np.ndarray | None:
    """Returns the limit of each cost at the last update, `[K]`; None without limits.

    Policies are judged by these limits.

    Args:
        config: the fields of the algorithm's config.
        metrics: columns `[num_seeds, U]`, or an empty dictionary.
        num_costs: K, the number of costs.
    """
    limits = cost_limits(config, {"update": np.zeros((1, 1)), **metrics}, num_costs)
    return None if limits is None else limits[:, -1]


def stored_limits(folder: Path, num_costs: int) -> np.ndarray | None:
    """Returns the limits of a stored run at its last update, `[K]`; None without limits.

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
    """Returns how far costs `[*B, K]` are above limits `[K]`, summed over costs: `[*B]`.

    The excess is 0 if all limits are kept, and if there are no limits.
    """
    if limits is None:
        return np.zeros(np.shape(costs)[:-1])
    return np.asarray(np.maximum(costs - limits, 0).sum(axis=-1))


def preference(score: float, excess: float = 0.0) -> tuple[float, float]:
    """Returns a pair of numbers to sort policies by. The best policy has the largest pair.

    A policy that keeps its limits comes before a policy that does not. Among policies that keep
    their limits, the score decides. Among policies that do not, the excess decides.

    Args:
        score: the return; NaN or negative infinity if there is none. Such a policy comes last.
        excess: how far the costs are above their limits, from `cost_excess`.
    """
    scored = score > -np.inf and excess < np.inf  # both are False for NaN
    return (-float(excess), float(score)) if scored else (-np.inf, -np.inf)


def best_of(scores: Sequence[float] | np.ndarray, excess: Sequence[float] | np.ndarray) -> int:
    """Returns the index of the best policy by `preference`, the first one of several equals."""
    numbers = np.stack([scores, excess], axis=1).astype(float).tolist()
    pairs = [preference(*pair) for pair in numbers]
    return pairs.index(max(pairs))

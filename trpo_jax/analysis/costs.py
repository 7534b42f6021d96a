"""Statistics of the costs of episodes, and whether they keep their limits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import summarize


def describe_costs(
    names: Sequence[str], per_seed: np.ndarray, limits: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Returns statistics of each cost and whether it keeps its limit, ready for JSON.

    Args:
        names: names of the K costs.
        per_seed: mean cost of an episode, `[num_seeds, K]`; NaN for seeds that have stopped.
        limits: limit of each cost, `[K]`; None without limits.
    """
    described = {}
    for k, name in enumerate(names):
        known = per_seed[~np.isnan(per_seed[:, k]), k]
        described[name] = {
            "per_seed": [None if np.isnan(x) else x for x in per_seed[:, k].tolist()],
            **summarize(known)._asdict(),
        }
        if limits is not None:
            described[name] |= {
                "limit": float(limits[k]),
                "keeps_limit": bool(known.mean() <= limits[k]),
                "seeds_above_limit": int((known > limits[k]).sum()),
            }
    return described


def limit_text(name: str, described: Mapping[str, Any]) -> str:
    """Returns a sentence that says whether a cost keeps its limit.

    Args:
        name: name of the cost.
        described: the entry of this cost in the result of `describe_costs`.
    """
    kept = "keep" if described["keeps_limit"] else "exceed"
    seeds = sum(x is not None for x in described["per_seed"])
    above = described["seeds_above_limit"]
    return (
        f"The policies {kept} the limit of {described['limit']:g} on the cost {name!r}: "
        f"{return_text(described['mean'])} on average, {above} of {seeds} seeds above it."
    )

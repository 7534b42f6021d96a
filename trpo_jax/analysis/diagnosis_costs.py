"""Signs of how the costs of a run stand to their limits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.records.runs import ONLY_COST, StoredRun, cost_columns

LATE = 2 / 3  # the share of a run before its last third
NEARLY_ALL = 0.9  # of the late steps


class CostSigns(NamedTuple):
    """How a cost with a limit went; arrays are `[num_seeds, U]`.

    Attributes:
        name: of the cost, with the word before it.
        metric: the column of `metrics.csv` with its excess.
        excess: cost of an episode less the limit.
        cost: cost of an episode.
        multiplier: price of the cost; None of an algorithm without one.
        recovery: 1 where a step only lowered the cost; None of an algorithm without such steps.
        active: whether the limit had a part in a step.
    """

    name: str
    metric: str
    excess: np.ndarray
    cost: np.ndarray
    multiplier: np.ndarray | None
    recovery: np.ndarray | None
    active: np.ndarray


def costs_of(run: StoredRun) -> list[CostSigns]:
    """Returns how each cost with a limit went."""
    found = []
    metrics, order = run.metrics, run.description.get("cost_names", ())
    for name, metric in cost_columns(metrics, "cost_excess", order).items():
        suffix = metric.removeprefix("cost_excess")
        if f"cost_estimate{suffix}" not in metrics:
            continue
        multiplier = metrics.get(f"cost_multiplier{suffix}")
        nothing = np.full(metrics[metric].shape, np.nan)
        found.append(
            CostSigns(
                "cost" if name == ONLY_COST else f"cost {name}",
                metric,
                metrics[metric],
                metrics[f"cost_estimate{suffix}"],
                multiplier,
                metrics.get("cost_recovery"),
                metrics.get("cost_active", nothing if multiplier is None else multiplier) > 0,
            )
        )
    return found


def out_of_reach(costs: CostSigns) -> np.ndarray:
    """Returns the lowest cost of each seed whose policies never kept the limit, `[num_seeds]`.

    NaN of the others. That is where the cost was above the limit in all updates, although late in
    the run the price kept rising, or nearly all steps did nothing but lower the cost.
    """
    start, end = int(LATE * costs.excess.shape[1]), costs.excess.shape[1]
    tried = np.zeros(len(costs.excess), bool)
    if costs.recovery is not None:
        tried |= signs.mean(costs.recovery[:, start:]) >= NEARLY_ALL
    if costs.multiplier is not None:
        middle = (start + end) // 2
        parts = (costs.multiplier[:, a:b] for a, b in ((start, middle), (middle, end)))
        before, after = map(signs.mean, parts)
        tried |= after > before
    never = (costs.excess > 0).all(axis=1) & tried
    return np.where(never, costs.cost.min(axis=1), np.nan)


def excess_share(costs: CostSigns) -> np.ndarray:
    """Returns which share of the late cost is above the limit, `[num_seeds]`; NaN out of reach."""
    late = slice(int(LATE * costs.excess.shape[1]), None)
    cost = signs.mean(costs.cost[:, late])
    share = signs.mean(costs.excess[:, late]) / np.where(cost > 0, cost, np.nan)
    return np.where(np.isnan(out_of_reach(costs)), share, np.nan)


def excess_text(costs: CostSigns) -> str:
    """Returns in how many updates a cost was above its limit, and by how much, as a sentence."""
    above = costs.excess > 0
    if not above.any():
        return f"The {costs.name} was above its limit in no update."
    known = np.isfinite(costs.excess).sum()
    return (
        f"The {costs.name} was above its limit in {100 * above.sum() / known:.3g} % of the updates "
        f"of all seeds, by {costs.excess[above].mean():.3g} on average there."
    )


def cost_notes(run: StoredRun) -> Sequence[str]:
    """Returns what is to be known of the costs of a run, a sentence or two for each."""
    notes = []
    for costs in costs_of(run):
        note = excess_text(costs)
        if not costs.active.any():
            note += " The limit was never active: without it, the run would have been the same."
        notes.append(note)
    return notes

"""Signs that a run keeps or exceeds its limits on costs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.records.runs import StoredRun, cost_columns, cost_text

NEARLY_ALL = 0.9  # share of the late steps


class CostSigns(NamedTuple):
    """A cost with a limit during a run. All arrays are `[num_seeds, U]`.

    Attributes:
        name: name of the cost, such as "cost toll".
        metric: the column of `metrics.csv` that has the excess.
        excess: cost of an episode minus the limit.
        cost: cost of an episode.
        multiplier: price of the cost; None for an algorithm without prices.
        recovery: 1 if a step only lowered the cost, else 0; None for an algorithm without such
            steps.
        active: whether the limit changed the step.
    """

    name: str
    metric: str
    excess: np.ndarray
    cost: np.ndarray
    multiplier: np.ndarray | None
    recovery: np.ndarray | None
    active: np.ndarray


def costs_of(run: StoredRun) -> list[CostSigns]:
    """Returns the signs of each cost that has a limit."""
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
                cost_text(name),
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
    """Returns the lowest cost of each seed that tried to keep its limit but never did.

    The result is `[num_seeds]`, with NaN for other seeds. A seed counts if its cost was above the
    limit in all updates, although the price kept rising late in the run, or nearly all late steps
    only lowered the cost.
    """
    start, end = int(signs.LAST_THIRD * costs.excess.shape[1]), costs.excess.shape[1]
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
    """Returns the share of the late cost that is above the limit, `[num_seeds]`.

    The share is NaN for a seed whose limit is out of reach (see `out_of_reach`).
    """
    late = slice(int(signs.LAST_THIRD * costs.excess.shape[1]), None)
    cost = signs.mean(costs.cost[:, late])
    share = signs.mean(costs.excess[:, late]) / np.where(cost > 0, cost, np.nan)
    return np.where(np.isnan(out_of_reach(costs)), share, np.nan)


def excess_text(costs: CostSigns) -> str:
    """Returns a sentence that says how often a cost was above its limit, and by how much."""
    above = costs.excess > 0
    if not above.any():
        return f"The {costs.name} was above its limit in no update."
    known = np.isfinite(costs.excess).sum()
    return (
        f"The {costs.name} was above its limit in {100 * above.sum() / known:.3g} % of the updates "
        f"of all seeds, on average by {costs.excess[above].mean():.3g}."
    )


def cost_notes(run: StoredRun) -> Sequence[str]:
    """Returns a note of one or two sentences about each cost of a run that has a limit."""
    notes = []
    for costs in costs_of(run):
        note = excess_text(costs)
        if not costs.active.any():
            note += " The limit was never active: the run would have been the same without it."
        notes.append(note)
    return notes

"""The ranking of the settings of a sweep, as a table in the terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import INTERVAL
from trpo_jax.cli.display import spread_text
from trpo_jax.records.files import cell
from trpo_jax.records.runs import cost_text
from trpo_jax.running.sweep_ranking import Ranked

SHOWN = 16  # at most so many settings are printed
ABOVE = "*"  # marks a cost above its limit
MOST_COLUMNS = 2  # 80 characters have room for so many fields with their own columns


def print_ranking(console: Console, ranking: Sequence[Ranked], title: str) -> None:
    """Prints a table of the best settings, and notes on the others."""
    fields = list(ranking[0].setting)
    table = Table(title=title)
    for name in fields if len(fields) <= MOST_COLUMNS else ["setting"]:
        table.add_column(name, justify="right" if len(fields) <= MOST_COLUMNS else "left")
    costs = [cost_text(name) for name in ranking[0].costs]
    for name in ("IQM", INTERVAL, "mean", "worst seed", *costs):
        table.add_column(name, justify="right", no_wrap=True)
    for ranked in ranking[:SHOWN]:
        _, setting, scores, summary, *_ = ranked
        values = [readable(setting[name]) for name in fields]
        if len(fields) > MOST_COLUMNS:
            values = [", ".join(f"{x} {value}" for x, value in zip(fields, values, strict=True))]
        if summary is None:
            missing = int(np.isnan(scores).sum())
            table.add_row(*values, "-", f"{missing} of {len(scores)} missing", "-", "-")
            continue
        spread = spread_text(summary.iqm_ci95, scores, return_text)
        iqm, *others = map(return_text, (summary.iqm, summary.mean, scores.min()))
        table.add_row(*values, iqm, spread, *others, *cost_texts(ranked))
    console.print(table, soft_wrap=False)
    if ranking[0].limits is not None and ranking[0].summary is not None:
        console.print(limits_note(ranking))
    if len(ranking) > SHOWN:
        console.print(f"{len(ranking) - SHOWN} more settings are in settings.csv.")
    unscored = sum(x.summary is None for x in ranking)
    if unscored:
        console.print(
            f"{unscored} of {len(ranking)} settings have seeds without a score. Their numbers were "
            "not finite, or no episode ended. results.csv shows these seeds."
        )
    elif len({(x.excess, x.summary.iqm) for x in ranking}) == 1 < len(ranking):
        console.print("All settings have the same score, so their order means nothing.")


def cost_texts(ranked: Ranked) -> list[str]:
    """Returns the mean costs of a setting as text, with a mark if a cost is above its limit."""
    above = [False] * len(ranked.costs)
    if ranked.limits is not None:
        above = ranked.mean_costs > ranked.limits
    pairs = zip(ranked.mean_costs, above, strict=True)
    return [f"{return_text(cost)}{ABOVE if marked else ''}" for cost, marked in pairs]


def limits_note(ranking: Sequence[Ranked]) -> str:
    """Returns a note on how settings are ranked that have limits on costs."""
    parts = [
        "Settings whose mean costs keep their limits come first, ordered by return. The others "
        "follow, ordered by how far their costs are above the limits. "
        f"{ABOVE} marks a cost above its limit."
    ]
    if "cost_limit" in ranking[0].setting:
        parts.append(
            "Each setting is judged by its own cost_limit. So a setting with a loose limit may "
            "come first although its cost is high."
        )
    if all(x.excess > 0 for x in ranking if x.summary is not None):
        parts.append("No setting keeps its limits.")
    return " ".join(parts)


def readable(value: Any) -> str:
    """Returns a value as short text."""
    return f"{value:.4g}" if isinstance(value, float) else cell(value)

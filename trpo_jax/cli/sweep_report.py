"""The ranking of a sweep's settings, as a table in the terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import INTERVAL
from trpo_jax.cli.display import spread_text
from trpo_jax.records.files import cell
from trpo_jax.records.runs import ONLY_COST
from trpo_jax.running.sweep_ranking import Ranked

SHOWN = 16  # settings in the terminal at the most
MOST_COLUMNS = 2  # fields that have columns of their own in 80 characters


def print_ranking(console: Console, ranking: Sequence[Ranked], title: str) -> None:
    """Prints the best settings, and how many are left out, in as many columns as a terminal has."""
    fields = list(ranking[0].setting)
    table = Table(title=title)
    for name in fields if len(fields) <= MOST_COLUMNS else ["setting"]:
        table.add_column(name, justify="right" if len(fields) <= MOST_COLUMNS else "left")
    costs = ["cost" if name == ONLY_COST else f"cost {name}" for name in ranking[0].costs]
    for name in ("IQM", INTERVAL, "mean", "worst seed", *costs):
        table.add_column(name, justify="right", no_wrap=True)
    for _, setting, scores, summary, of_costs in ranking[:SHOWN]:
        values = [readable(setting[name]) for name in fields]
        if len(fields) > MOST_COLUMNS:
            values = [", ".join(f"{x} {value}" for x, value in zip(fields, values, strict=True))]
        if summary is None:
            missing = int(np.isnan(scores).sum())
            table.add_row(*values, "-", f"{missing} of {len(scores)} without", "-", "-")
            continue
        spread = spread_text(summary.iqm_ci95, scores, return_text)
        numbers = summary.mean, scores.min(), *(x.mean() for x in of_costs.values())
        table.add_row(*values, return_text(summary.iqm), spread, *map(return_text, numbers))
    console.print(table, soft_wrap=False)
    if len(ranking) > SHOWN:
        console.print(f"{len(ranking) - SHOWN} more settings are in settings.csv.")
    unscored = sum(x.summary is None for x in ranking)
    if unscored:
        console.print(
            f"{unscored} of {len(ranking)} settings have seeds without a score: their numbers were "
            "not finite, or no episode ended. results.csv says which."
        )
    elif len({x.summary.iqm for x in ranking}) == 1 < len(ranking):
        console.print("All settings have the same score, so the order says nothing.")


def readable(value: Any) -> str:
    """Returns a value as a reader wants it."""
    return f"{value:.4g}" if isinstance(value, float) else cell(value)

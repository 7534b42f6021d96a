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
from trpo_jax.running.sweep import Ranked

SHOWN = 16  # settings in the terminal at the most


def print_ranking(console: Console, ranking: Sequence[Ranked], title: str) -> None:
    """Prints the best settings, and how many are left out."""
    fields = list(ranking[0].setting)
    table = Table(title=title)
    for name in fields:
        table.add_column(name, justify="right")
    for name in ("IQM", INTERVAL, "mean", "worst seed"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, setting, scores, summary in ranking[:SHOWN]:
        values = [readable(setting[name]) for name in fields]
        if summary is None:
            broken = int(np.isnan(scores).sum())
            table.add_row(*values, f"{broken} of {len(scores)} broke", "", "", "")
            continue
        spread = spread_text(summary.iqm_ci95, scores, return_text)
        numbers = map(return_text, (summary.iqm, summary.mean, scores.min()))
        table.add_row(*values, numbers[0], spread, *numbers[1:])
    if len(ranking) > SHOWN:
        table.add_section()
        table.add_row("...", *[""] * (len(fields) - 1), f"{len(ranking) - SHOWN} more", "", "", "")
    console.print(table)


def readable(value: Any) -> str:
    """Returns a value as a reader wants it."""
    return f"{value:.4g}" if isinstance(value, float) else cell(value)

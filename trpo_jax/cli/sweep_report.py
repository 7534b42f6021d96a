"""The ranking of a sweep's settings, as a table in the terminal and as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.statistics import INTERVAL, ScoreSummary, summarize
from trpo_jax.cli.display import spread_text
from trpo_jax.records.files import cell, write_csv

SHOWN = 16  # settings in the terminal at the most


class Outcome(NamedTuple):
    """The scores of a setting, one a seed, `[num_seeds]`; NaN where numbers were not finite."""

    index: int
    setting: dict[str, Any]
    scores: np.ndarray


class Ranked(NamedTuple):
    """An outcome and its statistics over seeds; None if some seed has no score."""

    outcome: Outcome
    summary: ScoreSummary | None


def rank(outcomes: Sequence[Outcome]) -> list[Ranked]:
    """Returns outcomes by interquartile mean, then mean, the best first and broken ones last."""
    ranked = [
        Ranked(x, summarize(x.scores) if np.isfinite(x.scores).all() else None) for x in outcomes
    ]
    order = lambda x: (x.summary is None, x.summary and (-x.summary.iqm, -x.summary.mean))
    return sorted(ranked, key=order)


def write_ranking(path: Path, ranking: Sequence[Ranked]) -> None:
    """Writes the statistics of every setting, the best first."""
    fields = list(ranking[0].outcome.setting)
    statistics = ["iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high", "std", "worst"]
    rows = []
    for outcome, summary in ranking:
        counts = [len(outcome.scores), int(np.isnan(outcome.scores).sum())]
        numbers: list[float | None] = [None] * len(statistics)
        if summary is not None:
            iqm_ci95, ci95 = summary.iqm_ci95 or (None, None), summary.ci95 or (None, None)
            numbers = [summary.iqm, *iqm_ci95, summary.mean, *ci95, summary.std]
            numbers.append(outcome.scores.min())
        rows.append([outcome.index, *outcome.setting.values(), *counts, *numbers])
    write_csv(path, ["setting", *fields, "seeds", "broken_seeds", *statistics], rows)


def print_ranking(console: Console, ranking: Sequence[Ranked], title: str) -> None:
    """Prints the best settings, and how many are left out."""
    fields = list(ranking[0].outcome.setting)
    table = Table(title=title)
    for name in fields:
        table.add_column(name, justify="right")
    for name in ("IQM", INTERVAL, "mean", "worst seed"):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome, summary in ranking[:SHOWN]:
        values = [shown(outcome.setting[name]) for name in fields]
        if summary is None:
            broken = int(np.isnan(outcome.scores).sum())
            table.add_row(*values, f"{broken} of {len(outcome.scores)} broke", "", "", "")
            continue
        spread = spread_text(summary.iqm_ci95, outcome.scores, "{:.1f}".format)
        numbers = [f"{x:.1f}" for x in (summary.iqm, summary.mean, outcome.scores.min())]
        table.add_row(*values, numbers[0], spread, *numbers[1:])
    if len(ranking) > SHOWN:
        table.add_section()
        table.add_row("...", *[""] * (len(fields) - 1), f"{len(ranking) - SHOWN} more", "", "", "")
    console.print(table)


def shown(value: Any) -> str:
    """Returns a value as a reader wants it."""
    return f"{value:.4g}" if isinstance(value, float) else cell(value)

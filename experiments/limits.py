"""Makes the table of a benchmark with limits on costs. `reproduce.py` writes this table."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from returns_table import (
    POINTS,
    curve_of,
    curve_points,
    filled,
    finished,
    heading_lines,
    settings_of,
)

from trpo_jax.analysis.statistics import mean_interval
from trpo_jax.cli import evaluate
from trpo_jax.cli.compare import Pair
from trpo_jax.figures.curves import Costs, Curve, Figure, comparison
from trpo_jax.records.runs import ONLY_COST, read_run
from trpo_jax.running.description import provenance_lines

EPISODES = 64  # for each seed and mode
MODES = ("stochastic", "deterministic")


def describe(benchmark: dict[str, Any], runs: dict[str, dict[str, Pair]]) -> dict[str, Any]:
    """Returns the results of the finished runs, by method and task, as JSON data.

    It plays the episodes that are still missing.
    """
    return {
        method: {task: row(benchmark, x) for task, x in of_method.items() if x.is_finished()}
        for method, of_method in runs.items()
    }


def row(benchmark: dict[str, Any], run: Pair) -> dict[str, Any]:
    """Returns the scores of the final policies of a run, and its cost during training."""
    path = run.folder / "evaluation.json"
    if not path.is_file():
        evaluate.main([str(run.folder), "--episodes", str(EPISODES)])
    played = json.loads(path.read_text())
    metrics = read_run(run.folder).metrics
    above = metrics["cost_estimate"] - benchmark["limit"]
    found = {
        "env": run.env,
        **settings_of(run),
        "steps": int(metrics["env_steps"].max()),
        "updates_above": float(np.mean(above > 0)),
        "mean_excess": float(np.mean(above[above > 0])) if (above > 0).any() else 0.0,
        "curve": curve_points(metrics, "episodic_return"),
        "cost_curve": curve_points(metrics, "episodic_cost"),
    }
    for mode in MODES:
        (cost,) = played[mode]["costs"].values()
        found[mode] = {"return": played[mode]["per_seed"], "cost": cost["per_seed"]}
    return found


def figure(report: dict[str, Any]) -> Figure:
    """Returns the curves of return and cost of a report: two panels for each run."""
    curves: dict[str, dict[str, Curve]] = {}
    for task, method, found in finished(report):
        limit = np.full(POINTS, float(report["limit"]))
        costs = {ONLY_COST: Costs(filled(found["cost_curve"]), limit)}
        curve = curve_of(found["curve"], found["steps"])
        curves.setdefault(task, {})[method] = curve._replace(costs=costs)
    return comparison(curves, [*report["rows"]])


def table_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the Markdown file."""
    limit = report["limit"]
    yield from heading_lines(report)
    yield (
        "| task | algorithm | steps | seeds | return | cost | return, mode | cost, mode "
        f"| updates above {limit:g} | by |"
    )
    yield "| --- | --- " + "| ---: " * 8 + "|"
    for task, method, found in finished(report):
        bar = report["bars"].get(found["env"].partition("/")[2], np.inf)
        cells = [task, method, f"{found['steps']:,}", str(len(found["seeds"]))]
        for mode in MODES:
            returns, costs = (np.array(found[mode][what]) for what in ("return", "cost"))
            reached = returns.mean() >= bar and costs.mean() <= limit
            mark = "**" if reached else ""
            cells += [f"{mark}{with_interval(returns)}{mark}", with_interval(costs)]
        cells += [f"{100 * found['updates_above']:.0f} %", f"{found['mean_excess']:.1f}"]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield report["notes"].strip()
    yield ""
    yield from provenance_lines([found for _, _, found in finished(report)])


def with_interval(values: np.ndarray) -> str:
    """Returns the mean over seeds with its 95 % interval, as text of three digits or more."""
    mean, low, high = values.mean(), *mean_interval(values)
    form = ",.0f" if abs(mean) >= 100 else ".1f" if abs(mean) >= 10 else ".2f"
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"

"""The results of `plot.py` as data for JSON and as tables in Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trpo_jax.analysis.comparisons import Overall, Task, normalized_scores
from trpo_jax.analysis.groups import Group, costs_at, median_steps, returns_at, steps_to
from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import (
    INTERVAL,
    INTERVALS,
    LEAST_SEEDS,
    RANGE,
    Estimate,
    interquartile_mean,
    summarize,
)
from trpo_jax.cli.display import cost_cell, spread_text
from trpo_jax.records.runs import ONLY_COST, StoredRun

PERCENTS = (25, 50, 100)  # percentages of the steps at which the running return is reported


def notes(
    tasks: dict[str, Task], overall: Overall | None, score: str, window: int
) -> Iterator[str]:
    """Yields the notes that explain the numbers."""
    score_of_a_seed = "its running return"
    if score == "evaluation":
        score_of_a_seed = "the mean return of its final policy over fresh episodes"
    yield (
        f"The score of a seed is {score_of_a_seed}. The running return is the mean of at least the "
        f"last {window} training episodes of the seed."
    )
    for task in tasks.values():
        yield from task.notes
    few = [
        f"{label} on {name}"
        for name, task in tasks.items()
        for label, group in task.groups.items()
        if len(group.seeds) < LEAST_SEEDS
    ]
    if few:
        yield (
            f"These labels have fewer than {LEAST_SEEDS} seeds, so they have a {RANGE} instead of "
            f"an interval: {', '.join(few)}. Results over all tasks that include them have no "
            "interval."
        )
    ends = [
        f"{x} {return_text(task.low)} and {return_text(task.high)}" for x, task in tasks.items()
    ]
    yield f"The returns with normalised scores of 0 and 1 are: {'; '.join(ends)}."
    if overall is None:
        yield "No task has runs of all labels, so there are no results over all tasks."
    elif len(overall.tasks) < len(tasks):
        left_out = ", ".join(name for name in tasks if name not in overall.tasks)
        yield f"Results over all tasks leave out {left_out}: not every label has runs there."


def describe(
    tasks: dict[str, Task], overall: Overall | None, baseline: str, remarks: Iterator[str]
) -> dict[str, Any]:
    """Returns all numbers as data for JSON."""
    return {
        "notes": list(remarks),
        "tasks": {name: describe_task(task) for name, task in tasks.items()},
        "baseline": baseline,
        "overall": None if overall is None else describe_overall(overall),
    }


def describe_overall(overall: Overall) -> dict[str, Any]:
    """Returns the results over all tasks."""
    return {
        "tasks": overall.tasks,
        "aggregates": {
            name: {label: describe_estimate(x) for label, x in by_label.items()}
            for name, by_label in overall.aggregates.items()
        },
        "probability_of_improvement": {
            label: describe_estimate(x) for label, x in overall.improvements.items()
        },
    }


def describe_task(task: Task) -> dict[str, Any]:
    """Returns the numbers of one task."""
    normalized = normalized_scores(task)
    return {
        "env_steps": task.env_steps,
        "low": task.low,
        "high": task.high,
        "threshold": task.threshold,
        "labels": {
            label: {
                "runs": [describe_run(run) for run in group.runs],
                "seeds": group.seeds.tolist(),
                "scores": task.scores[label].tolist(),
                "normalized_scores": normalized[label].tolist(),
                **summarize(task.scores[label])._asdict(),
                **describe_efficiency(group, task),
                **({"costs": costs_at(group, task.env_steps)} if group.costs else {}),
            }
            for label, group in task.groups.items()
        },
    }


def describe_run(run: StoredRun) -> dict[str, Any]:
    """Returns the folder of a run, its seeds, and how many steps it has done."""
    return {
        "folder": str(run.folder),
        "seeds": run.metrics["seed"][:, 0].astype(int).tolist(),
        "env_steps": int(run.metrics["env_steps"][0, -1]),
        "total_steps": run.description["total_steps"],
        "finished": (run.folder / "summary.json").is_file(),
    }


def describe_efficiency(group: Group, task: Task) -> dict[str, Any]:
    """Returns how fast a group learnt. A number is None if it is unknown or was not reached."""
    reached = steps_to(group, task.threshold, task.env_steps)
    at = {f"{x} %": returns_at(group, task.env_steps * x / 100) for x in PERCENTS}
    return {
        "running_return_iqm": {
            name: None if np.isnan(returns).any() else float(interquartile_mean(returns))
            for name, returns in at.items()
        },
        "steps_to_threshold": [None if np.isnan(x) else int(x) for x in reached],
        "median_steps_to_threshold": median_steps(reached),
    }


def describe_estimate(estimate: Estimate) -> dict[str, Any]:
    """Returns an estimate and its interval as data for JSON."""
    interval = estimate.ci95 and [float(bound) for bound in estimate.ci95]
    return {"value": float(estimate.value), "ci95": interval}


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of statistics.md."""
    yield from ("```", report["command"], "```", "")
    yield from (f"- {note}" for note in report["notes"])
    yield ""
    yield (
        f"IQM is the interquartile mean over seeds. {INTERVALS} Intervals show how results vary "
        "over seeds, not over tasks. *IQM at* a percentage of the steps is the IQM of the running "
        "return. *Steps to* a running return is the median over seeds. Seeds that never reached it "
        "count as the slowest. A dash means that half of the seeds or more did not reach it."
    )
    if report["overall"]:
        yield from overall_lines(report["overall"], report["baseline"])
    for name, task in report["tasks"].items():
        yield from task_lines(name, task)
    yield from ("", "## Runs", "")
    yield from table_head(["task", "label", "seeds", "steps per seed", "folder"])
    for name, task in report["tasks"].items():
        for label, row in task["labels"].items():
            for run in row["runs"]:
                steps = f"{run['env_steps']:,}"
                steps += "" if run["finished"] else f" of {run['total_steps']:,}, not finished"
                cells = [name, label, seed_list(run["seeds"]), steps, f"`{run['folder']}`"]
                yield table_row(cells)


def overall_lines(overall: dict[str, Any], baseline: str) -> Iterator[str]:
    """Yields the tables of the results over all tasks."""
    yield from ("", "## All tasks together", "")
    yield (
        f"All scores are normalised. The tasks are {', '.join(overall['tasks'])}. The IQM is over "
        "the seeds of all tasks. Mean and median are over tasks, of the mean over seeds. The "
        "optimality gap is how far scores are below 1 on average, so a smaller gap is better."
    )
    yield ""
    aggregates = overall["aggregates"]
    yield from table_head(["label", *aggregates])
    for label in aggregates["IQM"]:
        cells = [estimate_cell(by_label[label]) for by_label in aggregates.values()]
        yield table_row([label, *cells])
    if overall["probability_of_improvement"]:
        yield ""
        yield (
            f"The probability that a seed scores higher than a seed of {baseline}, averaged over "
            "tasks. A tie counts as one half."
        )
        yield ""
        yield from table_head(["label", f"higher than {baseline}"])
        for label, estimate in overall["probability_of_improvement"].items():
            yield table_row([label, estimate_cell(estimate)])


def task_lines(name: str, task: dict[str, Any]) -> Iterator[str]:
    """Yields the tables of one task."""
    threshold = return_text(task["threshold"])
    yield from ("", f"## {name}", "")
    yield (
        f"Running returns are from the first {task['env_steps']:,} environment steps of each seed."
    )
    yield ""
    columns = ["label", "seeds", "IQM of the score", INTERVAL, "mean", "std"]
    columns += [f"IQM at {percent} %" for percent in PERCENTS]
    costs = cost_names(task)
    columns += [f"steps to {threshold}", f"seeds that reached {threshold}"]
    columns += map(cost_title, costs)
    yield from table_head(columns)
    for label, row in task["labels"].items():
        cells = [label, str(len(row["seeds"])), return_text(row["iqm"])]
        cells += [spread_text(row["iqm_ci95"], row["scores"], return_text)]
        cells += [return_text(row["mean"]), return_text(row["std"])]
        cells += [return_text(iqm) for iqm in row["running_return_iqm"].values()]
        steps = row["median_steps_to_threshold"]
        there = sum(x is not None for x in row["steps_to_threshold"])
        cells += ["-" if steps is None else f"{steps:,.0f}", f"{there} of {len(row['seeds'])}"]
        cells += [cost_cell(row.get("costs", {}).get(name)) for name in costs]
        yield table_row(cells)


def cost_names(task: dict[str, Any]) -> list[str]:
    """Returns the names of all costs that any label of a task has."""
    return list(dict.fromkeys(x for row in task["labels"].values() for x in row.get("costs", ())))


def cost_title(name: str) -> str:
    """Returns the title of a column of running costs."""
    return "running cost" if name == ONLY_COST else f"running cost {name}"


def table_head(columns: Sequence[str]) -> Iterator[str]:
    """Yields the head of a table. Its first column is text, the others are numbers."""
    yield table_row(columns)
    yield "| --- " + "| ---: " * (len(columns) - 1) + "|"


def table_row(cells: Sequence[str]) -> str:
    """Returns a row of a table."""
    return "| " + " | ".join(cells) + " |"


def fraction(value: float) -> str:
    """Returns a normalised score or a probability as text."""
    return f"{value:.3f}"


def fractions(ends: Sequence[float] | None) -> str:
    """Returns the interval of an estimate over tasks as text, or a dash if there is none."""
    return "-" if ends is None else " to ".join(map(fraction, ends))


def estimate_cell(estimate: dict[str, Any]) -> str:
    """Returns an estimate over tasks as text, with its interval if it has one."""
    value, ends = fraction(estimate["value"]), estimate["ci95"]
    return value if ends is None else f"{value} ({fractions(ends)})"


def seed_list(seeds: Sequence[int]) -> str:
    """Returns seeds as text. More than two consecutive seeds become a range."""
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))

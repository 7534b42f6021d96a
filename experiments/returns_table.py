"""Makes the table and the figure of a benchmark of returns. `reproduce.py` writes them.

The report is a JSON file with the final return and the learning curve of every seed. The table and
the figure come from the report alone, so they can be drawn again without the runs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trpo_jax.analysis.statistics import (
    INTERVALS,
    interquartile_mean,
    mean_interval,
    probability_of_improvement,
)
from trpo_jax.cli.compare import MEASURED, Pair
from trpo_jax.figures.curves import Curve, Figure, comparison
from trpo_jax.records.runs import finished_scores, read_description, read_run, read_summary

OWN = "trpo_jax"
POINTS = 100  # of a learning curve
DECIMAL_BELOW = 20  # a smaller return is printed with a decimal


def describe(runs: Mapping[str, Pair], peers: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of the finished runs, as JSON data."""
    return {
        "rows": {task: row(run) for task, run in runs.items() if run.is_finished()},
        "peers": peers,
    }


def row(run: Pair) -> dict[str, Any]:
    """Returns the settings of a run, and the score and the learning curve of each seed."""
    summary = read_summary(run.folder)
    metrics = read_run(run.folder, (), MEASURED).metrics
    return {
        **settings_of(run),
        "total_steps": int(metrics["env_steps"].max()),
        "episodes_per_seed": summary["evaluation"]["episodes_per_seed"],
        "per_seed": [round(x, 3) for x in finished_scores(summary).tolist()],
        "curve": curve_points(metrics, "episodic_return"),
    }


def settings_of(run: Pair) -> dict[str, Any]:
    """Returns the command line of a run, and what its description says about its making."""
    names = ("algorithm", "seeds", "config", "versions", "commit", "device")
    description = read_description(run.folder)
    argv = list(run.argv[: run.argv.index("--out")])
    return {"argv": argv, **{name: description.get(name) for name in names}}


def curve_points(metrics: dict[str, np.ndarray], name: str) -> list[list[float | None]]:
    """Returns the mean of a metric over the episodes that ended in each hundredth of a run.

    The result has a list for each seed. None stands where no episode ended.
    """
    steps, counts = metrics["env_steps"][0], metrics["num_episodes"]
    totals = np.where(counts > 0, metrics[name], 0.0) * counts
    place = np.minimum((steps - 1) * POINTS // steps[-1], POINTS - 1).astype(int)
    sums = lambda x: np.array([np.bincount(place, row, POINTS) for row in x])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums(totals) / sums(counts)
    return [[None if np.isnan(x) else float(f"{x:.5g}") for x in row] for row in means]


def figure(report: dict[str, Any]) -> Figure:
    """Returns the learning curves of a report: one panel for each task."""
    curves: dict[str, dict[str, Curve]] = {}
    for task, found in report["rows"].items():
        curves[task] = {OWN: curve_of(found["curve"], found["total_steps"])}
        for library, rows in report["peers"].items():
            if task in rows:
                points = [x["curve"] for x in rows[task]]
                curves[task][library] = curve_of(points, rows[task][0]["steps"])
    return comparison(curves, [OWN, *report["peers"]])


def curve_of(points: Sequence[Sequence[float | None]], total_steps: int) -> Curve:
    """Returns a learning curve."""
    return Curve((np.arange(POINTS) + 1) * total_steps / POINTS, filled(points))


def filled(points: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Returns curves, `[num_seeds, POINTS]`. A missing point repeats the one before."""
    values = np.array(points, float)
    for k in range(1, POINTS):
        values[:, k] = np.where(np.isnan(values[:, k]), values[:, k - 1], values[:, k])
    return values


def heading_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the title of a page, and the command that makes its table."""
    yield f"# {report['title']}"
    yield ""
    yield "```"
    yield report["command"]
    yield "```"
    yield ""


def table_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the Markdown file."""
    yield from heading_lines(report)
    marks = [x for x in ("bar", "floor") if any(x in task for task in report["tasks"].values())]
    published, libraries = report["published"], list(report["peers"])
    here = [f"{library}, run here" for library in libraries]
    columns = ["task", OWN, "IQM", "seeds", *here, *marks, *published]
    yield "| " + " | ".join(columns) + " |"
    yield "| --- " + "| ---: " * (len(columns) - 1) + "|"
    for task, settings in report["tasks"].items():
        found = report["rows"].get(task)
        others = [peer_cell(report["peers"][library].get(task)) for library in libraries]
        others += [number(settings.get(name)) for name in marks]
        others += [number(table.get(task)) for table in published.values()]
        if found is None:
            yield "| " + " | ".join([task, "not run", "", "", *others]) + " |"
            continue
        scores = np.array(found["per_seed"])
        mark = "**" if scores.mean() >= settings.get("bar", np.inf) else ""
        own = f"{mark}{number(scores.mean())}{mark}{interval_text(scores)}"
        own += ", below the floor" if scores.mean() < settings.get("floor", -np.inf) else ""
        cells = [task, own, number(interquartile_mean(scores)), str(len(scores)), *others]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    episodes = sorted({found["episodes_per_seed"] for found in report["rows"].values()})
    yield (
        "A score is the mean return of the deterministic policy after the last update, over "
        f"{' or '.join(map(str, episodes))} fresh episodes of each seed. The table shows the mean "
        "over seeds with its 95 % interval, and the interquartile mean over seeds (IQM). "
        f"{INTERVALS}{' Bold scores reach the bar.' if marks else ''}"
    )
    yield from improvement_lines(report)
    yield ""
    yield report["notes"].strip()
    yield ""
    yield from seed_lines(report)
    yield ""
    yield from setting_lines(report)
    yield ""
    yield from provenance_lines(report)


def improvement_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields how probably a seed scores higher than a seed of each other library."""
    for library, rows in report["peers"].items():
        tasks = [task for task in report["rows"] if len(rows.get(task, ())) > 1]
        if not tasks:
            continue
        own = [np.array(report["rows"][task]["per_seed"]) for task in tasks]
        found = probability_of_improvement(own, [peer_scores(rows[task]) for task in tasks])
        ends = "" if found.ci95 is None else f" ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"
        yield ""
        yield (
            f"A seed of this library scores higher than a seed of {library} with a probability of "
            f"{found.value:.2f}{ends}, as a mean over {len(tasks)} tasks."
        )


def seed_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields a table with the score of each seed."""
    yield "| task | library | return of each seed |"
    yield "| --- | --- | --- |"
    for task, found in report["rows"].items():
        yield f"| {task} | {OWN} | {', '.join(map(number, found['per_seed']))} |"
        for library, rows in report["peers"].items():
            if task in rows:
                yield f"| {task} | {library} | {', '.join(map(number, peer_scores(rows[task])))} |"


def setting_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the hyperparameters. A value that differs between tasks has the name of its task."""
    yield "Hyperparameters. A value without a task holds for all other tasks that have this field:"
    yield ""
    configs = {task: found["config"] for task, found in report["rows"].items()}
    for field in dict.fromkeys(name for config in configs.values() for name in config):
        values = {task: json.dumps(x[field]) for task, x in configs.items() if field in x}
        usual = max(values.values(), key=[*values.values()].count)
        unusual = [f"{task}: {value}" for task, value in values.items() if value != usual]
        yield f"- `{field}`: {', '.join([usual, *unusual])}"


def provenance_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the commits, versions and machines that made a report."""
    rows = report["rows"].values()
    distinct = lambda name: dict.fromkeys(json.dumps(x[name]) for x in rows if x[name])
    commits = [json.loads(text) for text in distinct("commit")]
    if commits:
        yield f"Commit: {', '.join(commits)}  "
    for text in distinct("versions"):
        yield f"Versions: {', '.join(f'{a} {b}' for a, b in json.loads(text).items())}  "
    for library, tasks in report.get("peers", {}).items():
        versions = {json.dumps(row["versions"]) for rows in tasks.values() for row in rows}
        for text in sorted(versions):
            versions = ", ".join(f"{a} {b}" for a, b in json.loads(text).items())
            yield f"Versions of {library}: {versions}  "
    for text in distinct("device"):
        yield f"Device: {', '.join(json.loads(text).values())}"


def peer_scores(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Returns the score of each seed of another library on one task."""
    return np.array([row["score"] for row in rows])


def peer_cell(rows: Sequence[dict[str, Any]] | None) -> str:
    """Returns the mean over seeds of another library, with its interval and number of seeds."""
    if not rows:
        return ""
    scores = peer_scores(rows)
    return f"{number(scores.mean())}{interval_text(scores)}, {len(scores)} seeds"


def interval_text(scores: np.ndarray) -> str:
    """Returns the interval of a mean over seeds, or no text if there are too few seeds."""
    ends = mean_interval(scores)
    return "" if ends is None else f" ({number(ends[0])} to {number(ends[1])})"


def number(value: float | None) -> str:
    """Returns a score as text; the empty text for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= DECIMAL_BELOW else f"{value:.1f}"

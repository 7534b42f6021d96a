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
from trpo_jax.running.description import provenance_lines

POINTS = 100  # of a learning curve
DECIMAL_BELOW = 20  # a smaller return is printed with a decimal


def describe(runs: Mapping[str, Mapping[str, Pair]]) -> dict[str, Any]:
    """Returns the results of the finished runs, by method and task, as JSON data."""
    return {
        method: {task: row(run) for task, run in of_method.items() if run.is_finished()}
        for method, of_method in runs.items()
    }


def row(run: Pair) -> dict[str, Any]:
    """Returns the settings of a run, and the score and the learning curve of each seed."""
    summary = read_summary(run.folder)
    metrics = read_run(run.folder, (), MEASURED).metrics
    return {
        **settings_of(run),
        "steps": int(metrics["env_steps"].max()),
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
    return [[None if np.isnan(x) else float(f"{x:.4g}") for x in row] for row in means]


def finished(report: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields the task, the method and the results of each finished run."""
    for task in report["tasks"]:
        for method, of_method in report["rows"].items():
            if task in of_method:
                yield task, method, of_method[task]


def figure(report: dict[str, Any]) -> Figure:
    """Returns the learning curves of a report: one panel for each task."""
    curves: dict[str, dict[str, Curve]] = {}
    for task, method, found in finished(report):
        curves.setdefault(task, {})[method] = curve_of(found["curve"], found["steps"])
    return comparison(curves, [*report["rows"]])


def curve_of(points: Sequence[Sequence[float | None]], steps: int) -> Curve:
    """Returns the learning curve of a run of `steps` steps."""
    return Curve((np.arange(POINTS) + 1) * steps / POINTS, filled(points))


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
    published = report.get("published", {})
    first, *others = report["rows"]
    others = [method for method in others if report["rows"][method]]
    columns = ["task", first, f"IQM of {first}" if others else "IQM", *others, *marks, *published]
    yield "| " + " | ".join(columns) + " |"
    yield "| --- " + "| ---: " * (len(columns) - 1) + "|"
    for task, settings in report["tasks"].items():
        cells = [task, *own_cells(report["rows"][first].get(task), settings)]
        cells += [cell(report["rows"][method].get(task)) for method in others]
        cells += [number(settings.get(name)) for name in marks]
        cells += [number(table.get(task)) for table in published.values()]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    rows = [found for _, _, found in finished(report)]
    episodes = sorted({found["episodes_per_seed"] for found in rows})
    yield (
        "A score is the mean return of the deterministic policy after the last update, over "
        f"{' or '.join(map(str, episodes))} fresh episodes of each seed. The table shows the mean "
        "over seeds, its 95 % interval and the number of seeds, and the interquartile mean over "
        f"seeds (IQM). {INTERVALS}{' Bold scores reach the bar.' if marks else ''}"
    )
    yield from improvement_lines(report)
    yield ""
    yield report["notes"].strip()
    yield ""
    yield "| task | method | return of each seed |"
    yield "| --- | --- | --- |"
    for task, method, found in finished(report):
        yield f"| {task} | {method} | {', '.join(map(number, found['per_seed']))} |"
    yield ""
    yield from setting_lines(report)
    yield from provenance_lines(rows)


def own_cells(found: dict[str, Any] | None, settings: dict[str, Any]) -> list[str]:
    """Returns the cells of the first method: its mean, compared with bar and floor, and its IQM."""
    if found is None:
        return ["not run", ""]
    scores = np.array(found["per_seed"])
    text = f"**{cell(found)}**" if scores.mean() >= settings.get("bar", np.inf) else cell(found)
    below = ", below the floor" if scores.mean() < settings.get("floor", -np.inf) else ""
    return [f"{text}{below}", number(interquartile_mean(scores))]


def cell(found: dict[str, Any] | None) -> str:
    """Returns a mean over seeds with its interval, if there is one, and the number of seeds."""
    return "" if found is None else f"{mean_text(found)}, {len(found['per_seed'])}"


def mean_text(found: dict[str, Any]) -> str:
    """Returns a mean over seeds with its interval, if there is one."""
    scores = np.array(found["per_seed"])
    ends = mean_interval(scores)
    interval = "" if ends is None else f" ({number(ends[0])} to {number(ends[1])})"
    return f"{number(scores.mean())}{interval}"


def improvement_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields how probably a seed of the first method scores higher than one of each other."""
    (first, own), *others = report["rows"].items()
    for method, rows in others:
        tasks = [task for task in own if len(rows.get(task, {"per_seed": ()})["per_seed"]) > 1]
        if not tasks:
            continue
        scores = ([np.array(x[task]["per_seed"]) for task in tasks] for x in (own, rows))
        found = probability_of_improvement(*scores)
        ends = "" if found.ci95 is None else f" ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"
        yield ""
        yield (
            f"A seed of *{first}* scores higher than a seed of *{method}* with a probability of "
            f"{found.value:.2f}{ends}, as a mean over {len(tasks)} tasks."
        )


def setting_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the hyperparameters of each method of this library.

    A value that differs between tasks has the name of its task. Later methods have only the values
    that differ from those of the first method.
    """
    first: dict[str, str] = {}
    for method, of_method in report["rows"].items():
        configs = {task: x["config"] for task, x in of_method.items() if "config" in x}
        values = {name: setting_text(name, configs) for name in field_names(configs)}
        shown = {name: text for name, text in values.items() if first.get(name) != text}
        if shown:
            yield (
                f"Hyperparameters of *{method}*. A value without a task holds for all other tasks."
                f"{' All others are as above.' if first else ''}"
            )
            yield ""
            yield from (f"- `{name}`: {text}" for name, text in shown.items())
            yield ""
        first = first or values


def field_names(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the names of all fields of several configs, each once."""
    return list(dict.fromkeys(name for config in configs.values() for name in config))


def setting_text(name: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the usual value of a field, and the tasks with another value."""
    values = {task: json.dumps(x[name]) for task, x in configs.items() if name in x}
    usual = max(values.values(), key=[*values.values()].count)
    unusual = [f"{task}: {value}" for task, value in values.items() if value != usual]
    return ", ".join([usual, *unusual])


def number(value: float | None) -> str:
    """Returns a score as text; the empty text for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= DECIMAL_BELOW else f"{value:z.1f}"

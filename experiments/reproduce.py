"""Runs a benchmark, and writes learning curves and a table of its results beside published results.

`experiments/reproduce.toml` describes the benchmarks. After an interruption, run the same command
again. It keeps the finished tasks and resumes the unfinished one. `--tasks` runs only some tasks.
The table always shows all finished tasks.
"""

import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import limits
import numpy as np
from rich.console import Console

from trpo_jax.analysis.statistics import summarize
from trpo_jax.cli.command_line import Parser, cache_compilations, user_errors
from trpo_jax.cli.compare import (
    Pair,
    distinct,
    execute,
    read_curve,
    refuse_other_settings,
)
from trpo_jax.cli.main import end_in_order
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.errors import StorageFailure, unknown_name
from trpo_jax.figures.curves import comparison, file_of
from trpo_jax.records.files import locked, write_json, write_whole
from trpo_jax.records.runs import finished_scores, read_description, read_summary

LABEL = "interquartile mean over seeds"
BENCHMARKS_FILE = Path(__file__).parent / "reproduce.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    folder = None
    try:
        with user_errors(StorageFailure):
            args = build_parser().parse_args(argv)
            benchmarks = tomllib.loads(BENCHMARKS_FILE.read_text())
            if args.benchmark not in benchmarks:
                raise unknown_name("benchmark", args.benchmark, benchmarks)
            benchmark = benchmarks[args.benchmark]
            chosen = args.tasks or list(benchmark["tasks"])
            for task in chosen:
                if task not in benchmark["tasks"]:
                    raise unknown_name(f"task of {args.benchmark}", task, benchmark["tasks"])
            folder = args.out or Path("runs", args.benchmark)
            runs = {task: plan(benchmark, task, folder) for task in benchmark["tasks"]}
            for task in chosen:
                plan_of(runs[task].argv)  # refuses wrong settings before anything runs
            reported = [run for task, run in runs.items() if task in chosen or run.is_finished()]
            refuse_other_settings(reported)
            cache_compilations()
            with locked(folder):
                failed = execute([runs[task] for task in chosen], console)
                table = write_files(benchmark, runs, folder, args.benchmark)
    except KeyboardInterrupt:
        goes_on = "To continue, run the same command." if folder else "Nothing was written."
        print(f"Interrupted. {goes_on}", file=sys.stderr)
        return 130
    console.print(f"Table: {table}")
    return 1 if failed else 0


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    about = __doc__.split("\n\n")[0]
    parser = Parser(prog="experiments/reproduce.py", description=about, allow_abbrev=False)
    add = parser.add_argument
    help_text = "name of a benchmark in experiments/reproduce.toml"
    add("--benchmark", required=True, metavar="NAME", help=help_text)
    help_text = "run only these tasks of the benchmark (default: all)"
    add("--tasks", nargs="+", metavar="TASK", help=help_text)
    help_text = "output folder; finished runs in it are kept (default: runs/<benchmark>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    return parser


def plan(benchmark: dict[str, Any], task: str, folder: Path) -> Pair:
    """Returns the run of a task."""
    settings = benchmark["tasks"][task]
    folder = folder / task.replace(", ", "-").replace(" ", "-")
    argv = ["--env", settings["env"], *benchmark["flags"], *settings.get("flags", [])]
    argv += ["--out", str(folder)]
    return Pair(task, settings["env"], folder, tuple(argv), None)


def write_files(benchmark: dict[str, Any], runs: dict[str, Pair], folder: Path, name: str) -> Path:
    """Writes the table and the curves of a benchmark. Returns the file of the table."""
    limited = "limit" in benchmark  # the table shows costs too
    report = limits.describe(benchmark, runs) if limited else describe(benchmark, runs)
    extras = "".join(f" --extra {extra}" for extra in benchmark["extras"])
    script = "experiments/reproduce.py"
    report["command"] = f"python3 -m uv run{extras} {script} --benchmark {name}"
    write_json(folder / f"{name}.json", report)
    table = folder / f"{name}.md"
    lines = limits.table_lines(report) if limited else table_lines(report)
    write_whole(table, "\n".join(lines) + "\n")
    curves = {task: {LABEL: read_curve(runs[task])} for task in report["rows"]}
    if curves:
        write_whole(folder / f"{name}.png", file_of(comparison(curves, [LABEL]), "png", 110))
    return table


def describe(benchmark: dict[str, Any], runs: dict[str, Pair]) -> dict[str, Any]:
    """Returns the contents of the table as JSON data."""
    finished = {task: run for task, run in runs.items() if run.is_finished()}
    configs = {
        task: read_description(run.folder, "config", "versions", "device")
        for task, run in finished.items()
    }
    rows = {}
    for task, run in finished.items():
        summary = read_summary(run.folder)
        scores = finished_scores(summary)
        rows[task] = {
            "env": run.env,
            "per_seed": scores.tolist(),
            **summarize(scores)._asdict(),
            "episodes_per_seed": summary["evaluation"]["episodes_per_seed"],
            "config": configs[task]["config"],
        }
    return {
        "title": benchmark["title"],
        "notes": benchmark["notes"],
        "published": benchmark.get("published", {}),
        "tasks": benchmark["tasks"],
        "versions": distinct(config["versions"] for config in configs.values()),
        "devices": distinct(config["device"] for config in configs.values()),
        "rows": rows,
    }


def table_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the Markdown file."""
    yield f"# {report['title']}"
    yield ""
    yield "```"
    yield report["command"]
    yield "```"
    yield ""
    published = report["published"]
    marks = [x for x in ("bar", "floor") if any(x in task for task in report["tasks"].values())]
    columns = ["task", "this library", "seeds", *marks, *published]
    yield "| " + " | ".join(columns) + " |"
    yield "| --- " + "| ---: " * (len(columns) - 1) + "|"
    for task, settings in report["tasks"].items():
        row = report["rows"].get(task)
        others = [number(settings.get(name)) for name in marks]
        others += [number(table.get(task)) for table in published.values()]
        if row is None:
            yield "| " + " | ".join([task, "not run", "", *others]) + " |"
            continue
        mark = "**" if row["mean"] >= settings.get("bar", np.inf) else ""
        spread = "" if row["std"] is None else f" ± {number(row['std'])}"
        own = f"{mark}{number(row['mean'])}{mark}{spread}"
        own += ", below the floor" if row["mean"] < settings.get("floor", -np.inf) else ""
        yield "| " + " | ".join([task, own, str(len(row["per_seed"])), *others]) + " |"
    yield ""
    episodes = sorted({row["episodes_per_seed"] for row in report["rows"].values()})
    yield (
        "A score is the mean return of the deterministic policy after the last update, over "
        f"{' or '.join(map(str, episodes))} fresh episodes of each seed. The table shows the mean "
        f"and the standard deviation over seeds.{' Bold scores reach the bar.' if marks else ''}"
    )
    yield ""
    yield report["notes"]
    yield ""
    yield "| task | return of each seed |"
    yield "| --- | --- |"
    for task, row in report["rows"].items():
        yield f"| {task} | {', '.join(number(score) for score in row['per_seed'])} |"
    yield ""
    yield "Hyperparameters. A value without a task holds for all other tasks that have this field:"
    yield ""
    configs = {task: row["config"] for task, row in report["rows"].items()}
    for field in dict.fromkeys(name for config in configs.values() for name in config):
        values = {task: json.dumps(x[field]) for task, x in configs.items() if field in x}
        usual = max(values.values(), key=[*values.values()].count)
        unusual = [f"{task}: {value}" for task, value in values.items() if value != usual]
        yield f"- `{field}`: {', '.join([usual, *unusual])}"
    yield ""
    for versions in report["versions"]:
        yield "Versions: " + ", ".join(f"{name} {text}" for name, text in versions.items())
    for device in report["devices"]:
        yield f"Device: {device['platform']}, {device['kind']}"


def number(value: float | None) -> str:
    """Returns a score as text; the empty text for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.1f}"


if __name__ == "__main__":
    end_in_order(lambda: main)

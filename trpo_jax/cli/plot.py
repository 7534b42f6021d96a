"""Draws learning curves of all runs in some folders, and writes their scores with intervals."""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trpo_jax import analysis
from trpo_jax.analysis.comparisons import (
    Overall,
    Task,
    common_steps,
    over_tasks,
    return_range,
    training_scores,
)
from trpo_jax.analysis.groups import Group, join_runs, read_evaluations
from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import INTERVAL
from trpo_jax.cli.command_line import call_of, user_errors
from trpo_jax.cli.display import cost_cell, print_files, spread_text
from trpo_jax.cli.plot_flags import parse
from trpo_jax.cli.plot_report import (
    cost_names,
    cost_title,
    describe,
    fraction,
    fractions,
    notes,
    report_lines,
)
from trpo_jax.errors import ConfigurationError, StorageFailure, unknown_name
from trpo_jax.figures.curves import Figure, comparison, curve_of, file_of
from trpo_jax.figures.scores import aggregates, improvements, performance_profiles
from trpo_jax.records.files import create_run_folder, write_json, write_whole
from trpo_jax.records.runs import NoUpdateError, StoredRun, find_runs, read_run

THRESHOLDS_FILE = Path(analysis.__file__).with_name("thresholds.toml")
NORMALIZATION_FILE = Path(analysis.__file__).with_name("normalization.toml")
DESCRIBED = ("env", "algorithm", "total_steps", "config")  # in config.json
MEASURED = ("seed", "env_steps", "episodic_return", "num_episodes")  # in metrics.csv
NEAR = 0.9  # normalised score of the return to reach, if thresholds.toml has no return
DPI = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    words = list(sys.argv[1:] if argv is None else argv)
    with user_errors(StorageFailure):
        args = parse(words)
        if args.smooth < 1:
            raise ConfigurationError(f"--smooth {args.smooth} must be at least 1.")
        labelled = label_runs(args.folders)
        labels = list(dict.fromkeys(label for label, _ in labelled))
        baseline = labels[0] if args.baseline is None else args.baseline
        if baseline not in labels:
            raise unknown_name("label", baseline, labels)
        tasks = {
            name: compare_on(name, groups, args.score, args.smooth)
            for name, groups in join_runs(labelled, args.smooth).items()
        }
        create_run_folder(args.out)
        overall = over_tasks(tasks, labels, baseline)
        remarks = notes(tasks, overall, args.score, args.smooth)
        report = describe(tasks, overall, baseline, remarks)
        report = {"command": call_of("plot", words)} | report
        write_json(args.out / "statistics.json", report)
        write_whole(args.out / "statistics.md", "\n".join(report_lines(report)) + "\n")
        for name, figure in draw(tasks, overall, labels, baseline).items():
            for kind in args.formats:
                write_whole(args.out / f"{name}.{kind}", file_of(figure, kind, DPI))
    print_results(console, report, args.out)
    return 0


def label_runs(words: Sequence[str]) -> list[tuple[str, StoredRun]]:
    """Returns all runs in FOLDER and LABEL=FOLDER, each once, with their labels.

    Runs without an update are left out, with a warning.

    Raises:
        ConfigurationError: if there is no run, a run cannot be read, or a run has two labels.
    """
    chosen: dict[Path, str] = {}
    found: dict[Path, Path] = {}
    for word in words:
        label, name = split_label(word)
        for folder in find_runs([Path(name)]):
            found.setdefault(folder.resolve(), folder)
            if label and chosen.setdefault(folder.resolve(), label) != label:
                other = chosen[folder.resolve()]
                raise ConfigurationError(f"{folder} is given two labels, {other} and {label}.")
    runs: list[tuple[str, StoredRun]] = []
    for path, folder in found.items():
        try:
            run = read_run(folder, DESCRIBED, MEASURED)
        except NoUpdateError as error:
            if len(found) == 1:
                raise
            print(f"warning: {error} It is left out.", file=sys.stderr)
            continue
        runs.append((chosen.get(path, run.description["algorithm"]), run))
    if not runs:
        raise ConfigurationError("None of these runs has finished an update yet.")
    return runs


def split_label(word: str) -> tuple[str, str]:
    """Returns the label and the folder in LABEL=FOLDER, or an empty label and the folder.

    Raises:
        ConfigurationError: if one of the two is missing, or the label cannot be drawn.
    """
    if "=" not in word or Path(word).is_dir():
        return "", word
    label, _, name = word.partition("=")
    if not (name and re.fullmatch(r"[^\W_][^$|]*", label)):
        raise ConfigurationError(
            f"{word!r} is not of the form LABEL=FOLDER, with a label that begins with a letter or "
            "a digit and has no $ or | in it."
        )
    return label, name


def compare_on(name: str, groups: dict[str, Group], score: str, window: int) -> Task:
    """Returns a task, which has the scores of all groups on one environment, and notes on them.

    Raises:
        ConfigurationError: if a seed has no score.
    """
    env_steps = common_steps(groups)
    if score == "evaluation":
        scores = {label: read_evaluations(group) for label, group in groups.items()}
    else:
        scores = training_scores(groups, env_steps, window)
    said = list(cuts(name, groups, score))
    reference = tomllib.loads(NORMALIZATION_FILE.read_text()).get(name)
    if reference is None:
        low, high = return_range(groups, scores, env_steps)
        said.append(
            f"{name} is not in {NORMALIZATION_FILE.name}. So normalised scores of 0 and 1 are the "
            f"lowest and the highest return in these runs, {return_text(low)} and "
            f"{return_text(high)}."
        )
    else:
        low, high = float(reference["low"]), float(reference["high"])
    threshold = tomllib.loads(THRESHOLDS_FILE.read_text()).get(name)
    if threshold is None:
        threshold = low + NEAR * (high - low)
        said.append(
            f"{name} is not in {THRESHOLDS_FILE.name}. So the return to reach is "
            f"{return_text(threshold)}, a normalised score of {NEAR:g}."
        )
    return Task(groups, env_steps, scores, low, high, float(threshold), tuple(said))


def cuts(name: str, groups: dict[str, Group], score: str) -> Iterator[str]:
    """Yields notes on runs of a task that differ in length, and on the effect."""
    for label, group in groups.items():
        steps = [int(run.metrics["env_steps"][0, -1]) for run in group.runs]
        if max(steps) > min(steps):
            shortest = group.runs[steps.index(min(steps))].folder
            yield (
                f"{name}: runs of {label} are cut to the {min(steps):,} steps of the shortest, "
                f"{shortest}. The longest has {max(steps):,} steps."
            )
    ends = {label: int(group.env_steps[-1]) for label, group in groups.items()}
    shortest = min(ends, key=ends.get)
    if max(ends.values()) > ends[shortest]:
        scores = ", except scores, which are from the end of each run"
        scores = scores if score == "evaluation" else ""
        yield (
            f"{name}: numbers are from the first {ends[shortest]:,} steps, the length of "
            f"{shortest}{scores}. The longest curve has {max(ends.values()):,} steps."
        )


def draw(
    tasks: dict[str, Task], overall: Overall | None, labels: Sequence[str], baseline: str
) -> dict[str, Figure]:
    """Returns the figures, by the names of their files without suffix."""
    curves = {
        name: {label: curve_of(group) for label, group in task.groups.items()}
        for name, task in tasks.items()
    }
    figures = {"learning_curves": comparison(curves, labels)}
    if overall is not None:
        figures["aggregate"] = aggregates(overall.aggregates)
        figures["performance_profile"] = performance_profiles(overall.levels, overall.profiles)
        if overall.improvements:
            figure = improvements(baseline, overall.improvements, labels)
            figures["probability_of_improvement"] = figure
    return figures


def print_results(console: Console, report: dict[str, Any], folder: Path) -> None:
    """Prints the scores, the notes on them, and the names of the files."""
    table = Table()
    for column in ("task", "label"):
        table.add_column(column, overflow="fold")
    costs = dict.fromkeys(name for task in report["tasks"].values() for name in cost_names(task))
    for column in ("seeds", "IQM", INTERVAL, *map(cost_title, costs)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, task in report["tasks"].items():
        table.add_section()
        for place, (label, row) in enumerate(task["labels"].items()):
            spread = spread_text(row["iqm_ci95"], row["scores"], return_text)
            cells = [str(len(row["seeds"])), return_text(row["iqm"]), spread]
            cells += [cost_cell(row.get("costs", {}).get(name)) for name in costs]
            table.add_row("" if place else name, label, *cells)
    if report["overall"] and len(report["overall"]["tasks"]) > 1:
        table.add_section()
        for place, (label, row) in enumerate(report["overall"]["aggregates"]["IQM"].items()):
            cells = fraction(row["value"]), fractions(row["ci95"])
            table.add_row("" if place else "all, normalised", label, "", *cells)
    console.print(table)
    for note in report["notes"]:
        console.print(f"- {note}")
    print_files(console, folder)

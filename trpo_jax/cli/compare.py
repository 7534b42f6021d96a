"""Trains several algorithms on several environments, and writes one table and one figure."""

import argparse
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from trpo_jax import algorithms, analysis, envs
from trpo_jax.analysis import WINDOW
from trpo_jax.analysis.groups import join
from trpo_jax.analysis.returns import first_reached, return_text, running_return
from trpo_jax.analysis.statistics import INTERVAL, INTERVALS, summarize
from trpo_jax.cli.command_line import cache_compilations, call_of, user_errors
from trpo_jax.cli.compare_flags import parse
from trpo_jax.cli.display import cost_cell, spread_text
from trpo_jax.cli.environment_flags import options_from
from trpo_jax.cli.plot_report import table_head, table_row
from trpo_jax.cli.run_flags import parse_run, plan_of
from trpo_jax.errors import ConfigurationError, StorageFailure, unknown_name
from trpo_jax.figures.curves import Curve, comparison, curve_of, file_of
from trpo_jax.records.files import locked, write_json, write_whole
from trpo_jax.records.limits import cost_excess, preference
from trpo_jax.records.resuming import differing_settings
from trpo_jax.records.runs import (
    DESCRIPTION,
    SUMMARY,
    finished_scores,
    read_description,
    read_run,
    read_summary,
)
from trpo_jax.running.loop import broken_text
from trpo_jax.running.plan import INTERRUPT
from trpo_jax.running.train import FAILURES, train

THRESHOLDS_FILE = Path(analysis.__file__).with_name("thresholds.toml")
OWN_FLAGS = {"--algorithm", "--env", "--num-seeds", "--out", "--quiet", "--seed"}
# These settings must be the same as those of a finished run in the folder. Versions may differ.
COMPARED = (
    "env",
    "algorithm",
    "seed",
    "num_seeds",
    "total_steps",
    "evaluation_episodes",
    "config",
    "env_args",
    "wrappers",
    "costs",
)
MEASURED = ("env_steps", "seconds", "episodic_return", "num_episodes")  # in metrics.csv
OVERLAPS = "≈"


class Variant(NamedTuple):
    """An algorithm in the comparison, with its label and its own flags."""

    label: str
    algorithm: str
    flags: tuple[str, ...]


class Pair(NamedTuple):
    """A variant on an environment, with the command line of its run.

    If the variant cannot run on the environment, `unsuitable` is the reason. Otherwise it is None.
    """

    label: str
    env: str
    folder: Path
    argv: tuple[str, ...]
    unsuitable: str | None

    def is_finished(self) -> bool:
        """Returns whether the run has finished."""
        return (self.folder / SUMMARY).is_file()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    words = list(sys.argv[1:] if argv is None else argv)
    folder = None
    try:
        with user_errors(StorageFailure):
            args = parse(words)
            pairs = plan(args)
            refuse_other_settings(pairs)
            folder = args.out
            cache_compilations()
            with locked(folder):
                failed = execute(pairs, console)
                report = compare(pairs, call_of("compare", words))
                write_files(report, pairs, folder)
    except KeyboardInterrupt:
        advice = "Nothing was written."
        if folder:
            advice = f"The same command with --out {folder} continues the comparison."
        print(f"Interrupted. {advice}", file=sys.stderr)
        return 130
    console.print(f"Table and figure: {folder / 'comparison.md'}, {folder / 'comparison.png'}")
    return 1 if failed else 0


def plan(args: argparse.Namespace) -> list[Pair]:
    """Checks the settings of every pair of the comparison, and returns the pairs; writes nothing.

    Raises:
        ConfigurationError: if a name is unknown, or a variant cannot run on any environment.
    """
    variants = [parse_variant(text) for text in args.algorithms]
    labels = [variant.label for variant in variants]
    refuse_repeats("label", labels)
    refuse_repeats("environment", args.envs)
    extra = [parse_setting(text, labels) for text in args.settings]
    options = options_from(args)
    for environment in args.envs:
        envs.make(environment, **options._asdict())
    pairs = [
        plan_pair(args, variant, environment, extra)
        for environment in args.envs
        for variant in variants
    ]
    for label in labels:
        reasons = [pair.unsuitable for pair in pairs if pair.label == label]
        if all(reasons):
            raise ConfigurationError(f"{label} cannot run on any of the environments. {reasons[0]}")
    return pairs


def plan_pair(
    args: argparse.Namespace, variant: Variant, env: str, extra: Sequence[tuple[str, list[str]]]
) -> Pair:
    """Returns the pair of a variant and an environment, with settings checked as in train.py."""
    folder = args.out / envs.folder_of(env) / variant.label
    argv = ["--algorithm", variant.algorithm, "--env", env, "--seed", str(args.seed)]
    argv += ["--num-seeds", str(args.num_seeds)]
    argv += [] if args.total_steps is None else ["--total-steps", str(args.total_steps)]
    argv += [*options_from(args).flags(), *variant.flags]
    argv += [
        word for pattern, flag in extra if fnmatchcase(variant.label, pattern) for word in flag
    ]
    argv += ["--out", str(folder)]
    try:
        plan_of(argv)
    except ConfigurationError as error:
        return Pair(variant.label, env, folder, tuple(argv), str(error))
    return Pair(variant.label, env, folder, tuple(argv), None)


def parse_variant(text: str) -> Variant:
    """Returns the variant that is written as NAME FLAGS or LABEL=NAME FLAGS.

    Raises:
        ConfigurationError: if the text cannot be read, or has a flag that the comparison sets.
    """
    label, rest = re.fullmatch(r"(?:([\w+-][\w.+-]*)=)?(.*)", text, re.DOTALL).groups()
    try:
        algorithm, *flags = shlex.split(rest) or [""]
    except ValueError as error:
        raise ConfigurationError(f"The algorithm {text!r} cannot be read: {error}.") from error
    algorithms.get(algorithm)
    for flag in flags:
        if flag.split("=")[0] in OWN_FLAGS:
            raise ConfigurationError(
                f"{flag} in {text!r} is not allowed: the comparison sets it for all runs."
            )
    return Variant(label or algorithm, algorithm, tuple(flags))


def parse_setting(text: str, labels: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the pattern of labels and the flags of train.py for a text LABEL.FIELD=VALUE.

    Raises:
        ConfigurationError: if the text is not of that form, or its pattern matches no label.
    """
    target, _, value = text.partition("=")
    pattern, _, field = target.rpartition(".")
    if not (pattern and field and value):
        raise ConfigurationError(f"--set {text!r} is not of the form LABEL.FIELD=VALUE.")
    if not any(fnmatchcase(label, pattern) for label in labels):
        raise unknown_name("label", pattern, labels)
    flag = field.replace("_", "-")
    if value in ("true", "false"):
        return pattern, [f"--{flag}" if value == "true" else f"--no-{flag}"]
    return pattern, [f"--{flag}", *value.split()]


def refuse_repeats(kind: str, names: Sequence[str]) -> None:
    """Raises a ConfigurationError if a name is given twice."""
    for name in names:
        if names.count(name) > 1:
            other = " Or give one of them another label, as LABEL=NAME." if kind == "label" else ""
            raise ConfigurationError(f"The {kind} {name!r} is given twice. Remove one.{other}")


def refuse_other_settings(pairs: Sequence[Pair]) -> None:
    """Raises a ConfigurationError if the folder holds a run with other settings."""
    for pair in pairs:
        if pair.unsuitable or not (pair.folder / DESCRIPTION).is_file():
            continue
        asked, found = plan_of(pair.argv).description, read_description(pair.folder)
        if pair.is_finished():
            asked, found = ({name: x.get(name) for name in COMPARED} for x in (asked, found))
        different = differing_settings(asked, found)
        if different:
            raise ConfigurationError(
                f"The run in {pair.folder} has {different}. "
                "Choose another folder with --out or another label, or move that run away."
            )


def execute(pairs: Sequence[Pair], console: Console) -> bool:
    """Trains every pair that is not finished, and returns whether a run failed."""
    failed = False
    for number, pair in enumerate(pairs, start=1):
        name = f"{pair.env:<24} {pair.label:<12}"
        if pair.unsuitable:
            console.print(f"{name} skipped: {pair.unsuitable}")
            continue
        before = pair.is_finished()
        if not before:
            try:
                with console.status(f"{name} ({number} of {len(pairs)})"):
                    run = train(**parse_run(pair.argv)[1] | {"resume": True}, progress=False)
            except FAILURES as error:
                print(f"error: {error}", file=sys.stderr)
                console.print(f"{name} did not finish")
                failed = True
                continue
            jax.clear_caches()  # compiled programs of finished runs would fill the memory
            if run.stopped_by == INTERRUPT:
                raise KeyboardInterrupt
            if run.broken:
                print(f"error: {broken_text(run.broken)}", file=sys.stderr)
                failed = True
        summary = read_summary(pair.folder)
        score = summarize(finished_scores(summary)).iqm
        seconds = summary.get("wall_seconds", np.nan)
        earlier = "  (finished earlier)" if before else ""
        console.print(f"{name} IQM {return_text(score):>10} {seconds:9.1f} s{earlier}")
    return failed


def compare(pairs: Sequence[Pair], command: str) -> dict[str, Any]:
    """Returns the contents of the table as data for JSON."""
    known = tomllib.loads(THRESHOLDS_FILE.read_text())
    thresholds = {env: float(threshold) for env, threshold in known.items()}
    configs = [
        read_description(pair.folder, "config", "versions", "device")
        for pair in pairs
        if not pair.unsuitable and pair.is_finished()
    ]
    return {
        "command": command,
        "versions": distinct(config["versions"] for config in configs),
        "devices": distinct(config["device"] for config in configs),
        "environments": {
            env: {
                "threshold": thresholds.get(env),
                "algorithms": {
                    pair.label: measure(pair, thresholds.get(env))
                    for pair in pairs
                    if pair.env == env
                },
            }
            for env in dict.fromkeys(pair.env for pair in pairs)
        },
    }


def measure(pair: Pair, threshold: float | None) -> dict[str, Any]:
    """Returns a row of the table: the numbers of a finished run, or the reason for no numbers."""
    if pair.unsuitable:
        return {"missing": pair.unsuitable}
    if not pair.is_finished():
        return {"missing": f"The run did not finish. See {pair.folder}."}
    summary, metrics = read_summary(pair.folder), read_run(pair.folder, (), MEASURED).metrics
    scores = finished_scores(summary)
    row = {
        "flags": list(pair.argv),
        "total_steps": int(metrics["env_steps"][0, -1]),
        "seconds": float(metrics["seconds"].max()),
        "per_seed": scores.tolist(),
        **summarize(scores)._asdict(),
    }
    if "costs" in summary["evaluation"]:
        row["costs"] = summary["evaluation"]["costs"]
    if threshold is None:
        return row
    returns = smooth(metrics)
    for name in ("env_steps", "seconds"):
        reached = first_reached(returns, threshold, metrics[name])
        row[f"{name}_to_threshold"] = [None if np.isnan(x) else float(x) for x in reached]
    return row


def smooth(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the running return, which the figure shows and thresholds are compared with."""
    return running_return(metrics["episodic_return"], metrics["num_episodes"])


def write_files(report: dict[str, Any], pairs: Sequence[Pair], folder: Path) -> None:
    """Writes the comparison into its folder, and replaces the files of an earlier call."""
    write_json(folder / "comparison.json", report)
    write_whole(folder / "comparison.md", "\n".join(table_lines(report)) + "\n")
    curves: dict[str, dict[str, Curve]] = {}
    for pair in pairs:
        panel = curves.setdefault(pair.env, {})
        if not pair.unsuitable and pair.is_finished():
            panel[pair.label] = read_curve(pair)
    labels = list(dict.fromkeys(pair.label for pair in pairs))
    write_whole(folder / "comparison.png", file_of(comparison(curves, labels), "png", 130))


def table_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of comparison.md."""
    yield "```"
    yield report["command"]
    yield "```"
    yield ""
    for versions in report["versions"]:
        yield "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items())
    for device in report["devices"]:
        yield f"Device: {device['platform']}, {device['kind']}"
    yield ""
    yield (
        "IQM is the interquartile mean over seeds of the final return of the deterministic policy. "
        f"The best IQM is bold. {OVERLAPS} marks an IQM whose interval overlaps the interval of "
        "the best. A row with a cost above its limit has no mark. It is the best only if all rows "
        f"have such a cost. {INTERVALS} *Steps to* and *seconds to* a threshold are counted until "
        f"the mean return of at least the last {WINDOW} training episodes first reaches it. They "
        "are medians over seeds. If some seeds did not reach the threshold, the cell "
        "has a dash and the number of seeds that did. Seconds are the training time of all seeds "
        "together, since they train in parallel, without compilation."
    )
    for env, section in report["environments"].items():
        yield ""
        yield f"## {env}"
        yield ""
        yield from section_lines(section["threshold"], section["algorithms"])


def section_lines(threshold: float | None, rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yields the table of one environment, then the reason for each missing row."""
    columns = ["algorithm", "steps per seed", "seeds", "IQM", INTERVAL, "seconds"]
    columns += [] if threshold is None else [f"steps to {threshold:g}", f"seconds to {threshold:g}"]
    costs = dict.fromkeys(name for row in rows.values() for name in row.get("costs", ()))
    columns += [f"cost {name}" for name in costs]
    yield from table_head(columns)
    found = [row for row in rows.values() if "missing" not in row]
    best = max(found, key=preferred, default=None)
    for label, row in rows.items():
        if "missing" in row:
            cells = ["-"] * (len(columns) - 1)
        else:
            cells = [f"{row['total_steps']:,}", str(len(row["per_seed"])), score_cell(row, best)]
            cells += [spread_text(row["iqm_ci95"], row["per_seed"], return_text)]
            cells += [f"{row['seconds']:.1f}"]
            if threshold is not None:
                cells += [threshold_cell(row["env_steps_to_threshold"], ",.0f")]
                cells += [threshold_cell(row["seconds_to_threshold"], ".1f")]
            cells += [cost_cell(row.get("costs", {}).get(name)) for name in costs]
        yield table_row([label, *cells])
    for label, row in rows.items():
        if "missing" in row:
            yield ""
            yield f"{label}: {row['missing']}"


def preferred(row: dict[str, Any]) -> tuple[float, float]:
    """Returns the `preference` for a row, from its interquartile mean and its mean costs."""
    limited = [x for x in row.get("costs", {}).values() if "limit" in x]
    costs, limits = (np.array([x[name] for x in limited]) for name in ("mean", "limit"))
    return preference(row["iqm"], float(cost_excess(costs, limits)))


def score_cell(row: dict[str, Any], best: dict[str, Any]) -> str:
    """Returns the interquartile mean of a row as text, bold or with a mark.

    It is bold if no row is better. It has a mark if its interval overlaps the interval of the best.
    """
    text = return_text(row["iqm"])
    if preferred(row) == preferred(best):
        return f"**{text}**"
    if preferred(row)[0] < 0:
        return text
    if row["iqm_ci95"] and best["iqm_ci95"] and row["iqm_ci95"][1] >= best["iqm_ci95"][0]:
        return f"{text} {OVERLAPS}"
    return text


def threshold_cell(reached: Sequence[float | None], style: str) -> str:
    """Returns the median over seeds; if some did not reach the threshold, how many did."""
    known = [value for value in reached if value is not None]
    if len(known) < len(reached):
        return f"- ({len(known)}/{len(reached)})"
    return f"{np.median(known):{style}}"


def distinct(values: Iterator[Any]) -> list[Any]:
    """Returns the values without repetitions."""
    unique: list[Any] = []
    for value in values:
        if value not in unique:
            unique.append(value)
    return unique


def read_curve(pair: Pair) -> Curve:
    """Returns the learning curve of a finished run."""
    return curve_of(join([read_run(pair.folder, (), MEASURED)], WINDOW))

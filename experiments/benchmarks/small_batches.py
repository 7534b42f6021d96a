"""Measures when a confidence interval helps: the true return around updates with small batches.

Each variant trains with several batch sizes. All fields that trpo also has keep the settings of
trpo. At evenly spaced updates, the stochastic policies before and after the update play the same
fresh episodes with the same random numbers. The paired difference of returns shows whether the true
return fell. The same command again keeps the finished rows of the table.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from trpo_jax import algorithms
from trpo_jax.analysis.statistics import INTERVAL, INTERVALS, summarize
from trpo_jax.cli.command_line import Parser, cache_compilations, step_count, user_errors
from trpo_jax.cli.compare import Variant, parse_variant
from trpo_jax.cli.display import spread_text
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.files import create_run_folder, locked, write_json, write_whole
from trpo_jax.running.defaults import defaults
from trpo_jax.running.description import config_to_dict, flags_of, provenance, provenance_lines
from trpo_jax.running.evaluation import make_evaluation
from trpo_jax.running.loop import advance_chunks, compile_program
from trpo_jax.running.plan import RunPlan

FINAL_EPISODES = 64
STEPS = {"Pendulum-v1": 100_000}  # environment steps of a seed, in the published table
# The variants of the published table, by environment and batch. Seeds 50 to 52 chose the settings.
VARIANTS = {
    ("Pendulum-v1", 128): (
        "radius=trpo --kl-penalty 0 --max-kl 0.0006",
        "penalty=trpo --kl-penalty 32",
        "ua_trpo=ua_trpo --kl-penalty 0 --max-kl 0.0006 --c 1",
        "accept=trpo_held_out --kl-penalty 0 --max-kl 0.02",
    ),
    ("Pendulum-v1", 512): (
        "radius=trpo --kl-penalty 0 --max-kl 0.006",
        "penalty=trpo --kl-penalty 8",
        "ua_trpo=ua_trpo --kl-penalty 0 --max-kl 0.006 --c 1",
        "accept=trpo_held_out --kl-penalty 0 --max-kl 0.02",
    ),
    ("Pendulum-v1", 2048): (
        "radius=trpo --kl-penalty 0 --max-kl 0.006",
        "penalty=trpo --kl-penalty 2",
        "ua_trpo=ua_trpo --kl-penalty 0 --max-kl 0.006 --c 1",
        "accept=trpo_held_out --kl-penalty 0 --max-kl 0.02",
    ),
}


class Changes(NamedTuple):
    """Results of the measured updates, leading axes `[num_seeds, num_checks]`.

    Attributes:
        difference: mean paired difference of the true return, after minus before the update.
        error: standard error of `difference`.
        rejected: whether the line search rejected the step.
    """

    difference: np.ndarray
    error: np.ndarray
    rejected: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every variant, environment and batch size, and writes the table."""
    console = Console(highlight=False, soft_wrap=True)
    words = list(sys.argv[1:] if argv is None else argv)
    with user_errors():
        args = build_parser().parse_args(words)
        runs = [
            (env, batch, variant, prepare(args, env, batch, variant))
            for env in args.envs
            for batch in args.batches
            for variant in variants_of(args, env, batch)
        ]
        with locked(args.out):
            report = begin(args, words)
            cache_compilations()
            measure(args, runs, report, console)
            write_whole(args.out / "small_batches.md", "\n".join(table_lines(report, args)) + "\n")
    console.print(f"Table: {args.out / 'small_batches.md'}")
    return 0


def begin(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Returns the report in the output folder. It has no rows if the folder is new.

    Raises:
        ConfigurationError: if the folder holds anything besides a report of the same command.
    """
    suites = sorted({env.partition("/")[0] for env in args.envs if "/" in env})
    uv = " ".join(["python3 -m uv run", *(f"--extra {suite}" for suite in suites)])
    command = f"{uv} experiments/benchmarks/small_batches.py {shlex.join(words)}"
    file = args.out / "small_batches.json"
    if not file.is_file():
        create_run_folder(args.out)
        return {"command": command, "table": []}
    report = json.loads(file.read_text())
    if report["command"] != command:
        raise ConfigurationError(
            f"{file} is the result of another command: {report['command']}. Choose another folder "
            "with --out."
        )
    return report


def measure(
    args: argparse.Namespace,
    runs: Sequence[tuple[str, int, Variant, RunPlan]],
    report: dict[str, Any],
    console: Console,
) -> None:
    """Runs everything that the report lacks, and writes the report after each run.

    A row whose variant has other settings by now is measured again.
    """
    settings_of = lambda variant: shlex.join([variant.algorithm, *variant.flags])
    key_of = lambda row: (row["env"], row["batch"], row["variant"], row["settings"])
    order = [(env, batch, x.label, settings_of(x)) for env, batch, x, _ in runs]
    report["table"] = [row for row in report["table"] if key_of(row) in order]
    finished = {key_of(row) for row in report["table"]}
    for (env, batch, variant, run), key in zip(runs, order, strict=True):
        if key in finished:
            continue
        actor, changes = checked_run(run, args.checks, args.episodes)
        evaluation = make_evaluation(run.env, run.algorithm.policy, FINAL_EPISODES)
        scores = evaluation(actor, run.seeds).returns.mean(axis=1)
        row = {"env": env, "batch": batch, "variant": variant.label, "settings": key[-1]}
        row |= {
            "total_steps": run.description["total_steps"],
            **describe(scores, changes),
            **provenance(env),
        }
        report["table"] = sorted([*report["table"], row], key=lambda x: order.index(key_of(x)))
        jax.clear_caches()  # compiled programs of finished runs would fill the memory
        console.print(
            f"{env:<23} batch {batch:>5}  {variant.label:<8} IQM {row['iqm']:8.1f}  "
            f"fell after {row['fell']:.0%} of updates"
        )
        write_json(args.out / "small_batches.json", report)


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    help_text = (
        "variants: names of algorithms, or 'LABEL=NAME FLAGS' as in compare.py (default: the "
        "variants of the published table)"
    )
    add("--algorithms", nargs="+", metavar="ALGORITHM", help=help_text)
    help_text = f"environments (default: {' '.join(STEPS)})"
    add("--envs", nargs="+", default=list(STEPS), metavar="NAME", help=help_text)
    help_text = "batch sizes: environment steps in one update (default: 128 512 2048)"
    add("--batches", nargs="+", type=int, default=[128, 512, 2048], metavar="N", help=help_text)
    add("--num-seeds", type=int, default=10, metavar="N", help="number of seeds (default: 10)")
    add("--seed", type=int, default=100, metavar="N", help="the first seed (default: 100)")
    help_text = (
        "environment steps of each seed (default: those of the published table, and 50,000 for "
        "other environments)"
    )
    add("--total-steps", type=step_count, metavar="N", help=help_text)
    help_text = "number of measured updates in each run, evenly spaced (default: 12)"
    add("--checks", type=int, default=12, metavar="N", help=help_text)
    help_text = "number of fresh episodes for each measurement (default: 32)"
    add("--episodes", type=int, default=32, metavar="N", help=help_text)
    help_text = "output folder: new, empty, or of the same command (default: runs/small_batches)"
    default = Path("runs/small_batches")
    add("--out", type=Path, default=default, metavar="FOLDER", help=help_text)
    return parser


def variants_of(args: argparse.Namespace, env: str, batch: int) -> list[Variant]:
    """Returns the variants that train on an environment with a batch size.

    Raises:
        ConfigurationError: if the published table has none, and the user named none.
    """
    texts = args.algorithms or VARIANTS.get((env, batch))
    if not texts:
        known = ", ".join(f"{size} on {name}" for name, size in VARIANTS)
        raise ConfigurationError(
            f"The published table has no variants for a batch of {batch} on {env}. It has: {known}."
            " Name your own variants with --algorithms."
        )
    return [parse_variant(text) for text in texts]


def prepare(args: argparse.Namespace, env: str, batch: int, variant: Variant) -> RunPlan:
    """Returns the run of a variant with a batch size. The checks are the same as in train.py.

    Raises:
        ConfigurationError: if the settings cannot work.
    """
    total_steps = args.total_steps or STEPS.get(env, 50_000)
    tuned = defaults("trpo", env, total_steps).config
    reference = tuned.replace(
        num_envs=8,
        num_steps=batch // 8,
        critic_minibatches=4,
        fisher_subsample=1,  # small batches need all their steps
    )
    known = config_to_dict(algorithms.get(variant.algorithm).Config())
    shared = {name: value for name, value in config_to_dict(reference).items() if name in known}
    settings = {"env": env, "algorithm": variant.algorithm, "seed": args.seed, **shared}
    settings |= {"num_seeds": args.num_seeds, "total_steps": total_steps}
    run = plan_of([*flags_of(settings), *variant.flags])
    if batch % 8 or run.num_updates < args.checks or min(args.checks, args.episodes) < 1:
        raise ConfigurationError(
            f"A batch of {batch} over {total_steps:,} steps cannot be measured {args.checks} "
            f"times on {args.episodes} episodes. Choose batches that are multiples of 8 steps, at "
            "least one episode, at least one measurement, and at most one measurement for each "
            "update."
        )
    return run


def checked_run(run: RunPlan, num_checks: int, num_episodes: int) -> tuple[Any, Changes]:
    """Returns the final actors of all seeds, and the results of the measured updates."""
    interval = run.num_updates // num_checks
    play = make_evaluation(run.env, run.algorithm.policy, num_episodes, stochastic=True)
    found = []
    with closing(compile_program(run.algorithm, run.seeds, updates_per_chunk=1)) as program:
        before = jax.device_get(program.state.actor)
        for chunk in advance_chunks(program, run.num_updates):
            check, rest = divmod(chunk.last_update, interval)
            if rest == 0 and check <= num_checks:
                # The seed and the number decide the episodes, so both policies play the same ones.
                returns = [play(x, run.seeds, check).returns for x in (before, chunk.actor)]
                difference = returns[1] - returns[0]
                error = difference.std(axis=1, ddof=1) / np.sqrt(num_episodes)
                found.append((difference.mean(axis=1), error, chunk.metrics["step_rejected"][:, 0]))
            before = chunk.actor
    return before, Changes(*(np.stack(x, axis=1) for x in zip(*found, strict=True)))


def describe(scores: np.ndarray, changes: Changes) -> dict[str, Any]:
    """Returns a row of the table as JSON data."""
    return {
        **summarize(scores)._asdict(),
        "per_seed": scores.tolist(),
        "fell": float(np.mean(changes.difference < 0)),
        "fell_clearly": float(np.mean(changes.difference < -2 * changes.error)),
        "rejected": float(np.mean(changes.rejected)),
        "mean_change": float(np.mean(changes.difference)),
    }


def table_lines(report: dict[str, Any], args: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of small_batches.md."""
    yield from ("```", report["command"], "```", "")
    yield (
        f"Eight environments, {args.num_seeds} seeds. All fields that trpo also has keep the "
        "settings of trpo, except for those of the table. IQM is the interquartile mean over "
        f"seeds of the final return of the deterministic policy. {INTERVALS} *Fell* is the share "
        f"of {args.checks * args.num_seeds} updates after which the true return of the stochastic "
        f"policy was lower, on {args.episodes} paired episodes. *Clearly* means lower by more than "
        "two standard errors. *Rejected* is the share of updates that did not change the "
        "parameters. The statistics of observations still change in these updates, which changes "
        "the return a little."
    )
    for env in dict.fromkeys(row["env"] for row in report["table"]):
        rows = [row for row in report["table"] if row["env"] == env]
        yield from ("", f"### {env}, {rows[0]['total_steps']:,} steps", "")
        yield (
            f"| steps an update | variant | settings | IQM | {INTERVAL} | fell | clearly | "
            "rejected |"
        )
        yield "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |"
        for row in rows:
            spread = spread_text(row["iqm_ci95"], row["per_seed"], "{:.4g}".format)
            shares = (f"{row[name]:.0%}" for name in ("fell", "fell_clearly", "rejected"))
            cells = [str(row["batch"]), row["variant"], f"`{row['settings']}`", f"{row['iqm']:.4g}"]
            yield "| " + " | ".join([*cells, spread, *shares]) + " |"
    yield ""
    yield from provenance_lines(report["table"])


if __name__ == "__main__":
    sys.exit(main())

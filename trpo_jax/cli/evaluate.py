"""Plays fresh episodes with the policies of a run, prints mean returns and writes all returns."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.costs import describe_costs, limit_text
from trpo_jax.analysis.statistics import INTERVALS, LEAST_SEEDS, mean_interval, summarize
from trpo_jax.cli.command_line import cache_compilations, user_errors
from trpo_jax.cli.display import spread_text
from trpo_jax.cli.environment_flags import options_from
from trpo_jax.cli.environments import make_stored
from trpo_jax.cli.evaluate_flags import parse
from trpo_jax.envs.base import Environment
from trpo_jax.errors import (
    ConfigurationError,
    EnvironmentFailure,
    MemoryFailure,
    StorageFailure,
    counted,
)
from trpo_jax.records.files import make_parents, write_json
from trpo_jax.records.limits import cost_limits
from trpo_jax.records.policies import read_policies
from trpo_jax.records.policy_files import with_origin
from trpo_jax.records.runs import read_description, read_run
from trpo_jax.running.estimate import require_evaluation_memory
from trpo_jax.running.evaluation import (
    Played,
    cut_note,
    evaluation_bound,
    make_evaluation,
    require_finite_returns,
)
from trpo_jax.running.progress import evaluation_progress
from trpo_jax.running.settings import MOST, require_at_least, require_at_most

MODES = ("deterministic", "stochastic")
OWN_EPISODES = 2**30  # evaluations during training have smaller numbers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors(EnvironmentFailure, MemoryFailure, StorageFailure):
        args = parse(sys.argv[1:] if argv is None else argv)
        of_checkpoint = f"-{args.checkpoint}" if args.checkpoint else ""
        out = args.out or args.folder / f"evaluation{of_checkpoint}.json"
        if out.exists():
            raise ConfigurationError(
                f"{out} exists, and will not be overwritten. Choose another file with --out."
            )
        if args.episodes < LEAST_SEEDS:
            raise ConfigurationError(
                f"--episodes {args.episodes} must be at least {LEAST_SEEDS}, because an interval "
                f"needs at least {LEAST_SEEDS} returns."
            )
        require_at_least(number=(args.number, 1), evaluation_steps=(args.evaluation_steps, 1))
        require_at_most(number=(args.number, MOST), episodes=(args.episodes, MOST))
        description = read_description(args.folder, "env", "algorithm", "config", "seeds")
        env = make_stored(description, args)
        stored = read_policies(args.folder, env, checkpoint=args.checkpoint)
        env = with_origin(env, stored.observation)
        num_seeds = len(stored.seeds)
        require_evaluation_memory(env, num_seeds, args.episodes, None, "--episodes")
        make_parents(out)
        cache_compilations()
        played = {}
        for mode in MODES:
            evaluation = make_evaluation(
                env,
                stored.policy,
                args.episodes,
                stochastic=mode == "stochastic",
                max_steps=args.evaluation_steps,
                num_envs=description.get("config", {}).get("num_envs"),
                carry=stored.carry,
            )
            title = f"{mode.capitalize()} policy, {counted(args.episodes, 'episode')} per seed"
            number = args.number + OWN_EPISODES
            with evaluation_progress(console, title) as tell:
                played[mode] = evaluation(stored.actor, stored.seeds, number, tell)
            require_finite_returns(env, stored.seeds, played[mode].returns, played[mode].costs)
        limits = None
        if env.costs:  # a schedule may have changed the limits, so the last ones count
            metrics = read_run(args.folder).metrics
            limits = cost_limits(description["config"], metrics, len(env.costs))
        bound = evaluation_bound(env, args.evaluation_steps)
        report = {
            "env": env.name,
            **options_from(args).described(),
            "policies": stored.what,
            "episodes_per_seed": args.episodes,
            "steps_at_most": bound,
            "number": args.number,
            "seeds": list(stored.seeds),
            **{mode: describe(env, limits, values) for mode, values in played.items()},
        }
        title = f"{description['algorithm'].upper()} on {env.name}, {stored.what}"
        print_report(console, report, title)
        note = cut_note(np.stack([values.cut for values in played.values()]), bound)
        if note:
            console.print(note)
        write_json(out, report)
    console.print(f"All returns are in {out}")
    return 0


def describe(env: Environment, limits: np.ndarray | None, played: Played) -> dict[str, Any]:
    """Returns statistics of the returns and costs of episodes as data for JSON.

    Args:
        env: the environment.
        limits: the limit of each cost at each update of the run, `[K, U]`; None without limits.
        played: the episodes, `[num_seeds, E]`.
    """
    described = {
        **summarize(played.returns.mean(axis=1))._asdict(),
        **describe_seeds(played.returns, "returns"),
        "episodes_cut": played.cut.sum(axis=1).tolist(),
    }
    if env.costs:
        last = None if limits is None else limits[:, -1]
        described["costs"] = describe_costs(env.costs, played.costs.mean(axis=1), last)
        for k, name in enumerate(env.costs):
            described["costs"][name] |= describe_seeds(played.costs[..., k], "costs")
    return described


def describe_seeds(values: np.ndarray, name: str) -> dict[str, Any]:
    """Returns the values `[num_seeds, E]` of episodes under a name, and statistics per seed."""
    low, high = mean_interval(values.T)
    return {
        "per_seed": values.mean(axis=1).tolist(),
        "per_seed_ci95": np.stack([low, high], axis=1).tolist(),
        name: values.tolist(),
    }


def print_report(console: Console, report: dict[str, Any], title: str) -> None:
    """Prints a table of returns and a table of each cost."""
    print_table(console, report, [report[mode] for mode in MODES], title, "returns", min)
    console.print(
        f"The numbers are mean returns. {INTERVALS} The interval of a seed is over its episodes."
    )
    for cost in report[MODES[0]].get("costs", ()):
        of_modes = [report[mode]["costs"][cost] for mode in MODES]
        print_table(console, report, of_modes, f"{title}, cost {cost}", "costs", max)
        for mode, described in zip(MODES, of_modes, strict=True):
            if "limit" in described:
                console.print(f"{mode.capitalize()}: {limit_text(cost, described)}")


def print_table(
    console: Console,
    report: dict[str, Any],
    of_modes: Sequence[dict[str, Any]],
    title: str,
    values: str,
    worst: Callable[[Sequence[float]], float],
) -> None:
    """Prints a table with a row for each seed, and statistics over all seeds.

    Args:
        console: where the table goes.
        report: the whole report.
        of_modes: for each mode, the statistics of the returns or of one cost.
        title: the title of the table.
        values: the name of the values of single episodes in the statistics.
        worst: returns the worst of several values.
    """
    played = f"{report['episodes_per_seed']} fresh episodes per seed and mode"
    table = Table(title=f"{title}\n{played}")
    table.add_column("seed")
    for mode in MODES:
        table.add_column(f"{mode}\nmean (95 % interval)", justify="right")
        table.add_column("worst", justify="right")
    for index, seed in enumerate(report["seeds"]):
        cells = [str(seed)]
        for found in of_modes:
            mean, interval = (found[x][index] for x in ("per_seed", "per_seed_ci95"))
            of_seed = found[values][index]
            cells += [with_spread(mean, interval, of_seed), number(worst(of_seed))]
        table.add_row(*cells)
    if len(report["seeds"]) > 1:
        table.add_section()
        for label, name, interval in (("mean", "mean", "ci95"), ("IQM", "iqm", "iqm_ci95")):
            texts = (with_spread(x[name], x[interval], x["per_seed"]) for x in of_modes)
            table.add_row(label, *(cell for text in texts for cell in (text, "")))
    console.print(table)


def with_spread(value: float, ends: Sequence[float] | None, scores: Sequence[float]) -> str:
    """Returns a number with its interval as a cell. Too few scores have a range instead."""
    return f"{number(value)} ({spread_text(ends, scores, number, ', ')})"


def number(value: float) -> str:
    """Returns a return as text, short enough for a table with four columns of returns."""
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"

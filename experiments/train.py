"""Trains an algorithm on an environment, several seeds in one program, and writes what happened.

Without a flag: TRPO on CartPole-v1. `--help` explains every flag; defaults for each environment are
in `experiments/defaults.toml`.
"""

import argparse
import datetime
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from command_line import (
    Parser,
    add_config_flags,
    cache_compilations,
    config_from,
    config_to_dict,
    defaults_for,
    first_pass,
    step_count,
    user_errors,
)
from display import print_evaluation, print_files, with_progress
from rich.console import Console

import trpo_jax
from trpo_jax import algorithms, envs
from trpo_jax.algorithms.base import Actor, Algorithm
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.training.evaluation import evaluate_seeds
from trpo_jax.training.figures import learning_curve
from trpo_jax.training.files import MetricsFile, create_run_folder, write_json
from trpo_jax.training.loop import (
    NonFiniteError,
    choose_chunk,
    compile_program,
    run_chunks,
)
from trpo_jax.training.policies import save_policy
from trpo_jax.training.program import Program
from trpo_jax.training.statistics import summarize


class Run(NamedTuple):
    """A run whose settings were checked."""

    args: argparse.Namespace
    env: Environment
    config: Any
    algorithm: Algorithm
    seeds: tuple[int, ...]
    num_updates: int
    folder: Path


class Outcome(NamedTuple):
    """How far a run came."""

    actor: Actor
    env_steps: np.ndarray
    returns: np.ndarray
    seconds: float
    stopped_by: BaseException | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    started = time.perf_counter()
    run = None
    try:
        with user_errors():
            prepared = prepare(argv)
            create_run_folder(prepared.folder)
            run = prepared
        write_json(run.folder / "config.json", describe(run, argv))
        return execute(run, Console(quiet=run.args.quiet, highlight=False), started)
    except EnvironmentFailure as error:  # before the first update, or in the evaluation
        print(f"error: {error} {run.folder} keeps what was written.", file=sys.stderr)
        write_traceback(run.folder, error)
        return 1
    except KeyboardInterrupt:
        kept = f"{run.folder} keeps what was written." if run else "Nothing was written."
        print(f"Interrupted. {kept}", file=sys.stderr)
        return 130


def execute(run: Run, console: Console, started: float) -> int:
    """Trains, evaluates and writes the files of a run; returns the exit code."""
    per_update = run.algorithm.steps_per_update
    title = f"{run.args.algorithm.upper()} on {run.env.name}"
    first, last = run.seeds[0], run.seeds[-1]
    seeds = f"seed {first}" if first == last else f"each of seeds {first} to {last}"
    console.print(
        f"{title}: {run.num_updates * per_update:,} steps in {run.num_updates:,} updates, {seeds}"
    )
    updates_per_chunk = choose_chunk(run.num_updates)
    cache_compilations()
    with console.status("Compiling"):
        program = compile_program(run.algorithm, run.seeds, updates_per_chunk)
    device = jax.devices()[0].device_kind
    console.print(f"Compiled for {device} in {program.compile_seconds:.1f} s")
    with closing(program):
        outcome = train(run, program, console)
    policy_file = run.folder / "policy.msgpack"
    save_policy(policy_file, run.env, run.config, outcome.actor, run.seeds)
    figure = learning_curve(outcome.env_steps, outcome.returns, title)
    figure.savefig(run.folder / "learning_curve.png", dpi=150)
    if outcome.stopped_by is not None:
        return report_stop(run, outcome, console)

    with console.status("Evaluating"):
        scores = evaluate_seeds(
            run.env, run.algorithm.policy, outcome.actor, run.seeds, run.args.evaluation_episodes
        )
    save_policy(policy_file, run.env, run.config, outcome.actor, run.seeds, scores.tolist())
    summary = summarize(scores)
    all_steps = run.num_updates * per_update * len(run.seeds)
    write_json(
        run.folder / "summary.json",
        {
            "env": run.env.name,
            "algorithm": run.args.algorithm,
            "num_seeds": len(run.seeds),
            "total_steps": run.num_updates * per_update,
            "env_steps_per_second": all_steps / outcome.seconds,
            "compile_seconds": program.compile_seconds,
            "wall_seconds": time.perf_counter() - started,
            "evaluation": {
                "episodes_per_seed": run.args.evaluation_episodes,
                "per_seed": scores.tolist(),
                **summary._asdict(),
            },
        },
    )
    print_evaluation(console, run.seeds, scores, summary, run.args.evaluation_episodes)
    print_files(console, run.folder)
    return 0


def prepare(argv: Sequence[str] | None) -> Run:
    """Parses and checks everything that can be checked before compilation; writes nothing.

    Raises:
        ConfigurationError: if a setting cannot work.
    """
    first = first_pass(argv, env="CartPole-v1", algorithm="trpo")
    module = algorithms.get(first.algorithm)
    args = build_parser(module, first).parse_args(argv)
    env = envs.make(args.env, args.env_processes)
    config = config_from(args, module)
    algorithm = module.make(env, config)
    num_updates = args.total_steps // algorithm.steps_per_update
    if num_updates < 1:
        raise ConfigurationError(
            f"total_steps = {args.total_steps:,} is less than one batch, which takes "
            f"{algorithm.steps_per_update:,} steps of the environment. Raise --total-steps or "
            "collect less in an update, by --num-envs or --num-steps for instance."
        )
    if args.num_seeds < 1:
        raise ConfigurationError(f"num_seeds = {args.num_seeds} must be at least 1.")
    if args.evaluation_episodes < 1:
        raise ConfigurationError(
            f"evaluation_episodes = {args.evaluation_episodes} must be at least 1."
        )
    if not 0 <= args.seed <= 2**32 - args.num_seeds:
        raise ConfigurationError(
            f"seed = {args.seed} must be at least 0, and the last seed less than 2^32."
        )
    time_name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = args.out or Path("runs", args.env, args.algorithm, time_name)
    seeds = tuple(range(args.seed, args.seed + args.num_seeds))
    return Run(args, env, config, algorithm, seeds, num_updates, folder)


def build_parser(module: ModuleType, first: argparse.Namespace) -> Parser:
    """Returns the parser whose defaults are those of the chosen algorithm and environment."""
    defaults = defaults_for(first.algorithm, first.env)
    parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    known = ", ".join(algorithms.ALGORITHMS)
    add("--env", default="CartPole-v1", metavar="NAME", help="environment (default: CartPole-v1)")
    add("--algorithm", default="trpo", metavar="NAME", help=f"one of {known} (default: trpo)")
    add("--seed", default=0, type=int, metavar="N", help="the first seed (default: 0)")
    total_steps, num_seeds = defaults["total_steps"], defaults["num_seeds"]
    help_text = f"number of seeds, trained side by side (default: {num_seeds})"
    add("--num-seeds", default=num_seeds, type=int, metavar="N", help=help_text)
    help_text = (
        f"environment steps of each seed, rounded down to whole updates (default: {total_steps:,})"
    )
    add("--total-steps", default=total_steps, type=step_count, metavar="N", help=help_text)
    episodes = defaults["evaluation_episodes"]
    help_text = f"episodes of each seed that its final policy is judged by (default: {episodes})"
    add("--evaluation-episodes", default=episodes, type=int, metavar="N", help=help_text)
    processes = defaults["env_processes"]
    help_text = (
        "run each environment of gym/ in a process of its own: faster where a step takes a "
        f"millisecond or more (default: {processes})"
    )
    action = argparse.BooleanOptionalAction
    add("--env-processes", default=processes, action=action, help=help_text)
    help_text = "output folder, new or empty (default: runs/<env>/<algorithm>/<time>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    add("--quiet", action="store_true", help="print errors only")
    add_config_flags(parser, module, defaults)
    return parser


def describe(run: Run, argv: Sequence[str] | None) -> dict[str, Any]:
    """Returns everything needed to run it again."""
    device = jax.devices()[0]
    suite, _ = envs.suite_of(run.env.name)
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", *envs.SUITES[suite])
    return {
        "command": ["experiments/train.py", *(sys.argv[1:] if argv is None else argv)],
        "env": run.env.name,
        "algorithm": run.args.algorithm,
        "seed": run.args.seed,
        "num_seeds": run.args.num_seeds,
        "total_steps": run.args.total_steps,
        "evaluation_episodes": run.args.evaluation_episodes,
        "env_processes": run.args.env_processes,
        "config": config_to_dict(run.config),
        "versions": {
            "trpo_jax": trpo_jax.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages if is_installed(package)},
        },
        "device": {"platform": device.platform, "kind": device.device_kind},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def is_installed(package: str) -> bool:
    """Says whether a package is there: not every environment of a suite needs all of its own."""
    return bool(list(distributions(name=package)))


def train(run: Run, program: Program, console: Console) -> Outcome:
    """Trains to the end, or as far as it goes, writing metrics.csv along the way."""
    per_update = run.algorithm.steps_per_update
    actor = jax.device_get(program.state.actor)
    returns = [np.full((len(run.seeds), 0), np.nan)]
    seconds, stopped_by = 0.0, None
    chunks = run_chunks(program, run.num_updates // program.updates_per_chunk)
    try:
        with (
            MetricsFile(run.folder / "metrics.csv", run.seeds, per_update) as metrics,
            closing(with_progress(chunks, console, run.num_updates, per_update)) as shown,
        ):
            for chunk in shown:
                metrics.write(chunk)
                actor, seconds = chunk.actor, chunk.seconds
                returns.append(chunk.metrics["episodic_return"])
    except (KeyboardInterrupt, NonFiniteError, EnvironmentFailure) as error:
        stopped_by = error
    all_returns = np.concatenate(returns, axis=1)
    env_steps = per_update * np.arange(1, all_returns.shape[1] + 1)
    return Outcome(actor, env_steps, all_returns, seconds, stopped_by)


def report_stop(run: Run, outcome: Outcome, console: Console) -> int:
    """Says why a run stopped early and what is left of it; returns the exit code."""
    done = len(outcome.env_steps)
    broken = not isinstance(outcome.stopped_by, KeyboardInterrupt)
    kept = f"metrics.csv holds the run up to update {done} of {run.num_updates}, policy.msgpack "
    kept += "each seed's last good policy." if broken else "the policies of then."
    write_traceback(run.folder, outcome.stopped_by)
    reason = f"error: {outcome.stopped_by}" if broken else "Interrupted."
    print(reason, kept, file=sys.stderr)
    print_files(console, run.folder)
    return 1 if broken else 130


def write_traceback(folder: Path, error: BaseException) -> None:
    """Writes where an environment failed, if that is what happened, for its author."""
    if error.__cause__ is not None:
        lines = traceback.format_exception(error.__cause__)
        (folder / "error.txt").write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())

"""Plays many fresh episodes with the policies of a run, and prints and writes what they return.

Each seed's policy plays once with its mode (deterministic) and once with actions drawn from it
(stochastic).
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax import algorithms
from trpo_jax.algorithms.base import Actor, Algorithm
from trpo_jax.analysis.statistics import INTERVALS, LEAST_SEEDS, mean_interval, summarize
from trpo_jax.cli.command_line import Parser, cache_compilations, command_name, user_errors
from trpo_jax.cli.display import spread_text
from trpo_jax.cli.environment_flags import add_environment_flags, make_stored
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, StorageFailure
from trpo_jax.records.checkpoints import Checkpoints, to_state
from trpo_jax.records.files import make_parents, write_json
from trpo_jax.records.policies import read_policies
from trpo_jax.records.runs import CHECKPOINTS, POLICY, read_description
from trpo_jax.running.evaluation import make_evaluation, require_finite_returns
from trpo_jax.running.program import seed_keys

MODES = ("deterministic", "stochastic")
OWN_EPISODES = 2**30  # numbers of evaluations during training are below


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors(EnvironmentFailure, StorageFailure):
        args = build_parser().parse_args(argv)
        out = args.out or args.folder / "evaluation.json"
        if out.exists():
            raise ConfigurationError(f"{out} exists, and will not be overwritten. Choose --out.")
        if args.episodes < LEAST_SEEDS or args.number < 1:
            raise ConfigurationError(
                f"--episodes {args.episodes} must be at least {LEAST_SEEDS}, as many as an "
                f"interval needs, and --number {args.number} at least 1."
            )
        description = read_description(args.folder)
        env = make_stored(description, args)
        policy, actor, seeds, what = read_actors(args.folder, args.checkpoint, env, description)
        make_parents(out)
        cache_compilations()
        returns = {}
        for mode in MODES:
            stochastic = mode == "stochastic"
            evaluation = make_evaluation(env, policy, args.episodes, stochastic=stochastic)
            with console.status(f"{mode.capitalize()} policy, {args.episodes} episodes a seed"):
                returns[mode] = evaluation(actor, seeds, args.number + OWN_EPISODES)
            require_finite_returns(env, seeds, returns[mode])
        report = {
            "env": env.name,
            "policies": what,
            "episodes_per_seed": args.episodes,
            "number": args.number,
            "seeds": list(seeds),
            **{mode: describe(values) for mode, values in returns.items()},
        }
        print_report(console, report, f"{description['algorithm'].upper()} on {env.name}, {what}")
        write_json(out, report)
    console.print(f"Every return is in {out}")
    return 0


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog=command_name("evaluate"), description=__doc__.replace("\n", " "), allow_abbrev=False
    )
    add = parser.add_argument
    add("folder", type=Path, help="of a run")
    help_text = "episodes of each seed and mode (default: 128)"
    add("--episodes", type=int, default=128, metavar="N", help=help_text)
    help_text = (
        "judge the policies of a checkpoint in place of the final ones: best (by the evaluations "
        "during training), latest, or the number of its update"
    )
    add("--checkpoint", metavar="WHICH", help=help_text)
    help_text = "another environment with the same observations and actions"
    add("--env", metavar="NAME", help=help_text)
    add_environment_flags(parser)
    help_text = "decides the episodes, which are none of those during training (default: 1)"
    add("--number", type=int, default=1, metavar="N", help=help_text)
    help_text = "the file of all returns, a new one (default: evaluation.json in the folder)"
    add("--out", type=Path, metavar="FILE", help=help_text)
    return parser


def read_actors(
    folder: Path, checkpoint: str | None, env: Environment, description: dict[str, Any]
) -> tuple[Any, Actor, tuple[int, ...], str]:
    """Returns the policy, the actors of all seeds, the seeds, and what these policies are.

    Raises:
        ConfigurationError: if there are none, or they cannot act in the environment.
    """
    path = folder / POLICY
    if checkpoint is None:
        if not path.is_file() and (folder / CHECKPOINTS).is_dir():
            raise ConfigurationError(
                f"The run in {folder} was stopped before it wrote policy.msgpack. "
                "--checkpoint latest judges what it had learnt by then."
            )
        stored = read_policies(path, env)
        return stored.policy, stored.actor, stored.seeds, "final policies"
    seeds = tuple(description["seeds"])
    algorithm = stored_algorithm(description, env)
    number, actor = read_checkpoint(folder / CHECKPOINTS, checkpoint, algorithm, seeds)
    return algorithm.policy, actor, seeds, f"policies after update {number} ({checkpoint})"


def stored_algorithm(description: dict[str, Any], env: Environment) -> Algorithm:
    """Returns the algorithm of a stored run, on an environment."""
    module = algorithms.get(description["algorithm"])
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["config"].items()
    }
    return module.make(env, module.Config(**values))


def read_checkpoint(
    folder: Path, which: str, algorithm: Algorithm, seeds: tuple[int, ...]
) -> tuple[int, Actor]:
    """Returns the number of a checkpoint and the actors in it.

    Raises:
        ConfigurationError: if there is no such checkpoint, or it is damaged.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"There are no checkpoints in {folder}.")
    with closing(Checkpoints(folder, read_only=True)) as checkpoints:
        known = {str(number): number for number in checkpoints.numbers()}
        if known:
            known["latest"] = max(known.values())
        if checkpoints.best() is not None:
            known["best"] = checkpoints.best()
        if which not in known:
            raise ConfigurationError(
                f"There is no checkpoint {which!r} in {folder}. There are: {', '.join(known)}."
            )
        try:
            saved = checkpoints.read(known[which])
        except StorageFailure as failure:
            raise ConfigurationError(
                f"The checkpoint of update {known[which]} is damaged: {failure}"
            ) from failure
    shapes = jax.eval_shape(jax.vmap(lambda key: algorithm.init(key).actor), seed_keys(seeds))
    of_actor = (name for name in saved.arrays if name.startswith("actor/"))
    arrays = {name.removeprefix("actor/"): saved.arrays[name] for name in of_actor}
    return known[which], to_state(shapes, arrays)


def describe(returns: np.ndarray) -> dict[str, Any]:
    """Returns statistics of returns `[num_seeds, E]`, within and over seeds, as JSON holds them."""
    low, high = mean_interval(returns.T)
    return {
        **summarize(returns.mean(axis=1))._asdict(),
        "per_seed": returns.mean(axis=1).tolist(),
        "per_seed_ci95": np.stack([low, high], axis=1).tolist(),
        "returns": returns.tolist(),
    }


def print_report(console: Console, report: dict[str, Any], title: str) -> None:
    """Prints a table of each seed and all together."""
    table = Table(title=f"{title}\n{report['episodes_per_seed']} fresh episodes a seed and mode")
    table.add_column("seed")
    for mode in MODES:
        table.add_column(f"{mode}\nmean (95 % interval)", justify="right")
        table.add_column("worst", justify="right")
    for index, seed in enumerate(report["seeds"]):
        cells = [str(seed)]
        for mode in MODES:
            mean, interval = (report[mode][x][index] for x in ("per_seed", "per_seed_ci95"))
            returns = report[mode]["returns"][index]
            cells += [with_spread(mean, interval, returns), number(min(returns))]
        table.add_row(*cells)
    if len(report["seeds"]) > 1:
        table.add_section()
        for label, name, interval in (("mean", "mean", "ci95"), ("IQM", "iqm", "iqm_ci95")):
            of_modes = (report[mode] for mode in MODES)
            texts = (with_spread(x[name], x[interval], x["per_seed"]) for x in of_modes)
            table.add_row(label, *(cell for text in texts for cell in (text, "")))
    console.print(table)
    console.print(f"Mean returns. {INTERVALS} That of a seed is over its episodes.")


def with_spread(value: float, ends: Sequence[float] | None, scores: Sequence[float]) -> str:
    """Returns a number with its interval, or with the range of too few scores, as a cell."""
    return f"{number(value)} ({spread_text(ends, scores, number, ', ')})"


def number(value: float) -> str:
    """Returns a return as it is read, short enough for four columns of them."""
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"

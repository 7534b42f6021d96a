"""Runs many settings and seeds of an algorithm, as few compiled programs as can be.

Real-valued hyperparameters differ inside one program; each value of another kind is compiled for
itself. The same command with the same --out goes on where an interrupted sweep stopped.
"""

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from trpo_jax import algorithms, envs
from trpo_jax.algorithms.base import Actor
from trpo_jax.cli.command_line import (
    Parser,
    add_config_flags,
    add_name_flags,
    cache_compilations,
    command_name,
    config_from,
    config_to_dict,
    first_pass,
    flags_in,
    flags_of,
    require_at_least,
    require_on_device,
    seed_range,
    step_count,
    user_errors,
)
from trpo_jax.cli.display import sweep_progress
from trpo_jax.cli.placement import (
    ABORTED,
    add_process_flags,
    describe_placement,
    exit_with,
    join_processes,
    place_runs,
    without_process_flags,
)
from trpo_jax.cli.run_settings import as_json, differences, provenance
from trpo_jax.cli.run_settings import settings as run_settings_of
from trpo_jax.cli.sweep_plan import Group, Setting, group_settings, plan_settings
from trpo_jax.cli.sweep_report import Outcome, print_ranking, rank, write_ranking
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, PeerFailure
from trpo_jax.figures.curves import file_of
from trpo_jax.figures.sweeps import sweep_figure
from trpo_jax.processes import (
    decided_by_first,
    is_first,
    say_where_aborted,
)
from trpo_jax.records.files import create_run_folder, write_csv, write_json, write_whole
from trpo_jax.records.runs import read_rows
from trpo_jax.running.defaults import defaults_for
from trpo_jax.running.evaluation import make_evaluation
from trpo_jax.running.loop import choose_chunk
from trpo_jax.running.sweeps import compile_sweep, run_block, score_block

MEASURED = ("evaluation_return", "training_return", "kl", "rejected", "broken_update")
DPI = 150
CHUNKS = 10  # of a block at the least, as often as the progress is shown
DESCRIPTION, RESULTS = "sweep.json", "results.csv"

Key = tuple[int, int]  # number of the setting, seed


class Sweep(NamedTuple):
    """A sweep whose settings were checked.

    Attributes:
        args: its flags.
        env: its environment.
        module: its algorithm's.
        base: the config that every setting changes.
        settings: what each changes.
        seeds: of every setting.
        description: what `sweep.json` says.
        results: rows that are there already, by setting and seed.
        placement: which devices it is on; the default one if None.
    """

    args: argparse.Namespace
    env: Environment
    module: ModuleType
    base: Any
    settings: list[Setting]
    seeds: tuple[int, ...]
    description: dict[str, Any]
    results: dict[Key, dict[str, float]]
    placement: Placement | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    folder = None
    try:
        with user_errors():
            join_processes(words)
            sweep = prepare(words)
        folder = sweep.args.out
        if sweep.args.distributed:
            say_where_aborted(f"{ABORTED} {kept_of(folder)}")
        quiet = sweep.args.quiet or not is_first()
        console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        cache_compilations()
        execute(sweep, console)
        if is_first():
            report(sweep, console)
    except PeerFailure as error:
        print(f"error: {error}. {kept_of(folder)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted. {kept_of(folder)}", file=sys.stderr)
        return 130
    return 0


def kept_of(folder: Path | None) -> str:
    """Returns what is left of a sweep that stops."""
    if folder is None:
        return "Nothing was written."
    return f"The same command with --out {folder} goes on from there."


def prepare(words: Sequence[str]) -> Sweep:
    """Parses and checks everything that can be checked before compilation.

    Raises:
        ConfigurationError: if a setting cannot work, or the folder holds another sweep.
    """
    first = first_pass(words, env="CartPole-v1", algorithm="trpo")
    module = algorithms.get(first.algorithm)
    args = build_parser(module, first).parse_args(words)
    env = envs.make(args.env)
    require_on_device(env, "A sweep is")
    base = config_from(args, module)
    settings = plan_settings(module, base, args.grid, args.range, args.random, args.env)
    require_at_least(args, seeds=1, evaluation_episodes=1, batch=1)
    seeds = seed_range(args.seed, args.seeds)
    for setting in settings:
        steps = module.make(env, base.replace(**setting)).steps_per_update
        if args.total_steps < 2 * steps:
            raise ConfigurationError(
                f"total_steps = {args.total_steps:,} is less than two batches of {steps:,} "
                "steps. Raise --total-steps or collect less in an update."
            )
    placement = place_runs(args, env)
    description = as_json(
        {
            "command": [*command_name("sweep").split(), *words],
            "env": args.env,
            "algorithm": args.algorithm,
            "seeds": seeds,
            "total_steps": args.total_steps,
            "evaluation_episodes": args.evaluation_episodes,
            "config": config_to_dict(base),
            "settings": settings,
            "placement": describe_placement(placement),
            **provenance(args.env),
        }
    )
    args.out = Path(decided_by_first(lambda: str(args.out)))  # some are named by time
    rows = decided_by_first(lambda: open_folder(args.out, description))
    results = {(row["setting"], row["seed"]): row for row in rows}
    return Sweep(args, env, module, base, settings, seeds, description, results, placement)


def build_parser(module: ModuleType, first: argparse.Namespace) -> Parser:
    """Returns the parser whose defaults are those of the chosen algorithm and environment."""
    defaults = defaults_for(first.algorithm, first.env)
    parser = Parser(prog=command_name("sweep"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add_name_flags(parser)
    help_text = "seeds of each setting (default: 4)"
    add("--seeds", type=int, default=4, metavar="N", help=help_text)
    add("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    repeated = {"action": "append", "default": []}
    help_text = (
        "values of a hyperparameter, such as max_kl=0.003,0.01 or hidden_sizes=64x64,256x256; "
        "several --grid give every combination"
    )
    add("--grid", **repeated, metavar="NAME=VALUES", help=help_text)
    help_text = (
        "draw N settings at random from every --range, the settings without a sweep being the "
        "first; without --range from search_spaces.toml"
    )
    add("--random", type=int, metavar="N", help=help_text)
    help_text = (
        "a real-valued hyperparameter, such as max_kl=1e-3:1e-1:log; the scale is linear, log, or "
        "log1m (of 1 - value, for discounts)"
    )
    add("--range", **repeated, metavar="NAME=LOW:HIGH[:SCALE]", help=help_text)
    total_steps = defaults["total_steps"]
    help_text = f"environment steps of each run (default: {total_steps:,})"
    add("--total-steps", default=total_steps, type=step_count, metavar="N", help=help_text)
    help_text = "episodes that the final policy of each run is judged by (default: 16)"
    add("--evaluation-episodes", default=16, type=int, metavar="N", help=help_text)
    help_text = (
        "what settings are ranked by: the return of the final deterministic policy, or that of "
        "training episodes in the second half (default: evaluation)"
    )
    add("--score", choices=("evaluation", "training"), default="evaluation", help=help_text)
    help_text = (
        "runs side by side at the most (default: 16 on a CPU, elsewhere as many as half of the "
        "free memory holds)"
    )
    add("--batch", type=int, metavar="N", help=help_text)
    time_name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    help_text = "output folder; a sweep in it goes on (default: runs/sweeps/<time>)"
    add(
        "--out", type=Path, default=Path("runs/sweeps", time_name), metavar="FOLDER", help=help_text
    )
    add("--quiet", action="store_true", help="print errors only")
    add_process_flags(parser)
    add_config_flags(parser, module, defaults)
    return parser


def open_folder(folder: Path, description: dict[str, Any]) -> list[dict[str, float]]:
    """Returns the results that are in the folder of a sweep, which is created if need be.

    Raises:
        ConfigurationError: if it holds something else, or a sweep with other settings.
    """
    if not (folder / DESCRIPTION).is_file():
        create_run_folder(folder)
        write_json(folder / DESCRIPTION, description)
        return []
    found = run_settings_of(json.loads((folder / DESCRIPTION).read_text()))
    different = differences(run_settings_of(description), found)
    if different:
        raise ConfigurationError(
            f"The sweep in {folder} has {different}. Choose another folder with --out, or go on "
            "with the command that it was started with."
        )
    if not (folder / RESULTS).is_file():
        return []
    columns, rows = read_rows(folder / RESULTS)
    table = (dict(zip(columns, row, strict=True)) for row in rows)
    return [
        {name: int(row[name]) for name in ("setting", "seed")}
        | {name: float(row[name] or "nan") for name in MEASURED}
        for row in table
    ]


def execute(sweep: Sweep, console: Console) -> None:
    """Runs what is not done yet, writing `results.csv` after every block."""
    num_settings, num_seeds = len(sweep.settings), len(sweep.seeds)
    title = f"{sweep.args.algorithm.upper()} on {sweep.env.name}"
    console.print(
        f"{title}: {num_settings} settings x {num_seeds} seeds = {num_settings * num_seeds} runs, "
        f"{sweep.args.total_steps:,} steps each"
    )
    if sweep.results:
        console.print(f"{len(sweep.results)} of them were done before")
    for group in group_settings(sweep.module, sweep.settings):
        pending = [
            (index, seed)
            for index in group.indices
            for seed in sweep.seeds
            if (index, seed) not in sweep.results
        ]
        if pending:
            run_group(sweep, group, pending, console)
            jax.clear_caches()  # programs of finished groups would fill the memory


def run_group(sweep: Sweep, group: Group, pending: Sequence[Key], console: Console) -> None:
    """Runs what is pending of a group, as blocks of one compiled program."""
    config = sweep.base.replace(**group.static)
    fields = [name for name in sweep.settings[0] if name not in group.static]
    algorithm = sweep.module.make(sweep.env, config)
    num_updates = sweep.args.total_steps // algorithm.steps_per_update
    make = lambda values: sweep.module.make(sweep.env, config.replace(**values))
    updates_per_chunk = choose_chunk(num_updates, num_chunks=CHUNKS)
    with console.status("Compiling"):
        program = compile_sweep(
            make, fields, len(pending), updates_per_chunk, sweep.args.batch, sweep.placement
        )
    values = ", ".join(f"{name} = {value}" for name, value in group.static.items())
    size = program.block_size
    on_each = "" if sweep.placement is None else " on each device"
    console.print(
        f"Compiled for {values or 'all of them'}, on {describe_placement(sweep.placement)}, in "
        f"{program.runs.seconds:.1f} s; {size} runs side by side take "
        f"{program.runs.num_bytes / 1e6:,.0f} MB{on_each}"
    )
    evaluation = make_evaluation(
        sweep.env, algorithm.policy, sweep.args.evaluation_episodes, placement=sweep.placement
    )
    blocks = [pending[start : start + size] for start in range(0, len(pending), size)]
    per_update = algorithm.steps_per_update
    with sweep_progress(console, len(pending), num_updates, per_update) as show:
        for block in blocks:
            seeds = [seed for _, seed in block]
            columns = {
                name: np.array([sweep.settings[index][name] for index, _ in block], np.float32)
                for name in fields
            }
            chunks = run_block(program, seeds, columns, num_updates)
            scores, actor = score_block(show(chunks, len(block)), num_updates)
            returns = evaluate_block(evaluation, actor, seeds, size)
            measured = {"evaluation_return": returns, **scores._asdict()}
            for place, key in enumerate(block):
                row = {name: float(values[place]) for name, values in measured.items()}
                if row["broken_update"]:
                    row |= {"evaluation_return": np.nan, "training_return": np.nan}
                sweep.results[key] = row
            if is_first():
                write_results(sweep)


def evaluate_block(evaluation: Any, actor: Actor, seeds: Sequence[int], size: int) -> np.ndarray:
    """Returns the mean return of each run's policy, `[R]`; NaN where the environment broke."""
    filled = [*seeds, *[seeds[-1]] * (size - len(seeds))]  # as a block is, so as not to recompile
    return evaluation(actor, filled)[: len(seeds)].mean(axis=1)


def write_results(sweep: Sweep) -> None:
    """Writes one row a run, in the order of settings and seeds, over those of before."""
    rows = [
        [index, *sweep.settings[index].values(), seed, *(row[name] for name in MEASURED)]
        for (index, seed), row in sorted(sweep.results.items())
    ]
    columns = ["setting", *sweep.settings[0], "seed", *MEASURED]
    write_csv(sweep.args.out / RESULTS, columns, rows)


def report(sweep: Sweep, console: Console) -> None:
    """Ranks the settings, and writes and prints the ranking and its picture."""
    name = f"{sweep.args.score}_return"
    outcomes = [
        Outcome(
            index,
            setting,
            np.array([sweep.results[index, seed][name] for seed in sweep.seeds]),
        )
        for index, setting in enumerate(sweep.settings)
    ]
    ranking = rank(outcomes)
    folder = sweep.args.out
    write_ranking(folder / "settings.csv", ranking)
    title = f"{sweep.args.algorithm.upper()} on {sweep.env.name}"
    figure = sweep_figure(
        {name: [x.setting[name] for x in outcomes] for name in sweep.settings[0]},
        np.stack([x.scores for x in outcomes]),
        title,
    )
    for kind in ("png", "pdf"):
        write_whole(folder / f"sweep.{kind}", file_of(figure, kind, DPI))
    print_ranking(console, ranking, f"{title}, by {sweep.args.score} return")
    console.print(
        f"The best of {len(ranking)} looks better than it is. Seeds of its own judge it:\n"
        f"  {command_name('train')} {shlex.join(command_of(sweep, ranking[0].outcome.setting))}"
    )
    console.print(f"Files in {folder}: {', '.join(sorted(x.name for x in folder.iterdir()))}")


def command_of(sweep: Sweep, setting: Setting) -> list[str]:
    """Returns the flags of train.py that train a setting with seeds that the sweep did not see."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in ("grid", "range", "random", "seeds", "seed", "evaluation-episodes", "score"):
        parser.add_argument(f"--{name}", action="append")
    for name in ("batch", "out"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--quiet", action="store_true")
    words = without_process_flags(flags_in(sweep.description["command"]))
    words = parser.parse_known_args(words)[1]
    first = sweep.seeds[-1] + 1
    own = ["--seed", str(first), "--num-seeds", str(len(sweep.seeds))]
    return [*words, *own, *flags_of(setting)]


if __name__ == "__main__":
    exit_with(main)

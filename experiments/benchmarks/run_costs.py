"""Measures the costs around training: a sweep beside its runs alone, and logs and checkpoints.

The script writes run-costs.md and run-costs.json. No other program should run at the same time.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import jax
from rich.console import Console

from trpo_jax.cli.command_line import Parser, cache_compilations, user_errors
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.processes import to_host
from trpo_jax.records.files import create_run_folder, write_json
from trpo_jax.running.description import provenance
from trpo_jax.running.loop import advance_chunks, most_updates
from trpo_jax.running.plan import RunPlan
from trpo_jax.running.program import CompiledRuns, Program, as_seeds, compile_runs
from trpo_jax.running.recorder import Recorder
from trpo_jax.running.train import learn

SCRIPTS = Path(__file__).parent.parent
SEEDS, SETTINGS, PROCESSES = 16, 16, 8
GRID = ["--grid", "max_kl=0.003,0.006,0.01,0.02", "--grid", "damping=0.03,0.06,0.1,0.2"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        parser = Parser(description=__doc__.replace("\n", " "), allow_abbrev=False)
        help_text = "number of turns of each measurement (default: 3)"
        parser.add_argument("--repeats", type=int, default=3, metavar="N", help=help_text)
        help_text = "environment steps of each run in the sweep; the runs that measure logs and "
        help_text += "checkpoints have five times as many (default: 100,000)"
        parser.add_argument("--steps", type=int, default=100_000, metavar="N", help=help_text)
        help_text = "output folder; it must be new or empty (default: runs/run-costs)"
        default = Path("runs/run-costs")
        parser.add_argument("--out", type=Path, default=default, metavar="FOLDER", help=help_text)
        args = parser.parse_args(words)
        folder = create_run_folder(args.out)
    cache_compilations()
    report = {
        "command": ["experiments/benchmarks/run_costs.py", *words],
        **provenance("CartPole-v1"),
        "sweep": sweep_cost(args.steps, args.repeats, console),
        "around_training": costs_around_training(5 * args.steps, args.repeats, console),
    }
    write_json(folder / "run-costs.json", report)
    (folder / "run-costs.md").write_text("\n".join(table_lines(report)) + "\n")
    console.print(f"Table: {folder / 'run-costs.md'}")
    return 0


def sweep_cost(steps: int, repeats: int, console: Console) -> dict[str, Any]:
    """Returns the seconds of a sweep, of its runs as plain batched programs, and as processes."""
    sweeps, programs, processes = [], [], []
    total = ["--total-steps", str(steps)]
    plan = plan_of(["--num-seeds", str(SEEDS), *total])
    runs = compiled(plan)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            out = ["--quiet", "--out", f"{folder}/sweep-{turn}"]
            sweeps.append(seconds_of(["sweep.py", "--num-seeds", str(SEEDS), *GRID, *total, *out]))
            programs.append(bare_seconds(plan, runs) * SETTINGS)
            console.print(f"Sweep {sweeps[-1]:.1f} s, its runs alone {programs[-1]:.1f} s")
        for number in range(PROCESSES):
            out = ["--quiet", "--out", f"{folder}/process-{number}"]
            flags = ["--num-seeds", "1", "--seed", str(number), "--evaluation-episodes", "16"]
            processes.append(seconds_of(["train.py", *flags, *total, *out]))
    console.print(f"A process for one run {median(processes):.1f} s")
    return {
        "steps": plan.num_updates * plan.algorithm.steps_per_update,
        "sweep_seconds": sweeps,
        "runs_alone_seconds": programs,
        "process_seconds": processes,
        "ratio": median(sweeps) / median(programs),
        "extrapolated_processes_seconds": median(processes) * SEEDS * SETTINGS,
    }


def seconds_of(words: Sequence[str]) -> float:
    """Returns the seconds of a script, from the start of its process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, str(SCRIPTS / words[0]), *words[1:]], check=True)
    return time.perf_counter() - started


def compiled(plan: RunPlan) -> CompiledRuns:
    """Returns the compiled program of a run."""
    make = lambda _: plan.algorithm
    return compile_runs(make, len(plan.seeds), (), most_updates(len(plan.seeds)))


def fresh(plan: RunPlan, runs: CompiledRuns) -> Program:
    """Returns a program at the start of the run, without another compilation."""
    state = runs.init(as_seeds(plan.seeds), ())
    advance = lambda state, count, alive: runs.advance(state, (), count, alive)
    room = most_updates(len(plan.seeds))
    return Program(plan.env.name, state, advance, plan.seeds, room, runs.seconds)


def bare_seconds(plan: RunPlan, runs: CompiledRuns) -> float:
    """Returns the seconds of the program of a run, without logs and checkpoints."""
    program = fresh(plan, runs)
    started = time.perf_counter()
    for _ in advance_chunks(program, plan.num_updates, pace=plan.pace):
        pass
    return time.perf_counter() - started


def costs_around_training(steps: int, repeats: int, console: Console) -> list[dict[str, Any]]:
    """Returns the seconds of training with logs and checkpoints, and of its program alone."""
    quiet = Console(quiet=True)
    rows = []
    plan = plan_of(["--total-steps", str(steps)])
    runs = compiled(plan)
    for name, every in (
        ("default: metrics.csv, and checkpoints by their cost", None),
        ("about 50 checkpoints", max(1, plan.num_updates // 50)),
    ):
        bare, whole, outside, checkpoints = [], [], [], []
        for _ in range(repeats):
            bare.append(bare_seconds(plan, runs))
            with tempfile.TemporaryDirectory() as folder:
                program = fresh(plan, runs)
                jax.block_until_ready(program.state.key)
                started = time.perf_counter()
                own = plan._replace(folder=Path(folder), checkpoint_every=every)
                with ExitStack() as stack:
                    recorder = Recorder(own, None, None, to_host(program.state.actor), stack)
                    learn(own, program, recorder, quiet)
                whole.append(time.perf_counter() - started)
                outside.append(whole[-1] - recorder.seconds)
                checkpoints.append(recorder.costs()["checkpoints"])
        rows.append(
            {
                "what": name,
                "bare_seconds": bare,
                "whole_seconds": whole,
                "outside_seconds": outside,
                "checkpoint_seconds": checkpoints,
                "ratio": median(whole) / median(bare),
                "share": median(outside) / (median(whole) - median(outside)),
            }
        )
        console.print(f"{name}: {rows[-1]['share']:.1%} more time than the program")
    return rows


def table_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of run-costs.md."""
    sweep = report["sweep"]
    yield from ("# What a sweep, logs and checkpoints cost", "")
    yield from ("```", f"python3 -m uv run {' '.join(report['command'])}", "```", "")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield f"{report['device']['kind']}, {versions}. Times are medians over turns."
    yield ""
    runs = f"{SETTINGS} settings x {SEEDS} seeds = {SETTINGS * SEEDS} runs"
    yield f"## A sweep of CartPole-v1: {runs} of {sweep['steps']:,} steps"
    yield ""
    yield "| | seconds | ratio to the second row |"
    yield "| --- | ---: | ---: |"
    alone = median(sweep["runs_alone_seconds"])
    processes = sweep["extrapolated_processes_seconds"]
    whole = median(sweep["sweep_seconds"])
    for what, seconds in (
        ("`sweep.py`, from the start of its process to its pictures", whole),
        (f"{SETTINGS} times the training of `train.py` with {SEEDS} seeds, nothing else", alone),
        (f"{SETTINGS * SEEDS} processes of `train.py`, extrapolated from {PROCESSES}", processes),
    ):
        yield f"| {what} | {seconds:,.1f} | {seconds / alone:.2f} |"
    yield ""
    yield "## Logs and checkpoints"
    yield ""
    yield (
        "The runs have eight seeds of CartPole-v1. A run calls its compiled program again and "
        "again, and writes files between two calls. The table shows the time of the program alone "
        "and of the whole run. The time between calls is measured directly, because it is smaller "
        "than the noise of both times. The share is this time divided by the time of the program."
    )
    yield ""
    yield "| | program alone, s | whole run, s | between calls, s | checkpoints, s | share |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for row in report["around_training"]:
        seconds = (median(row[f"{x}_seconds"]) for x in ("bare", "whole", "outside", "checkpoint"))
        cells = [row["what"], *(f"{x:.1f}" for x in seconds), f"{row['share']:.1%}"]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

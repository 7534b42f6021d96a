"""Trains an algorithm on an environment, several seeds in one program, and writes what happened.

Without a flag: TRPO on CartPole-v1. `--help` explains every flag; defaults for each environment are
in `experiments/defaults.toml`.
"""

import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from trpo_jax.algorithms.base import Actor
from trpo_jax.analysis.statistics import summarize
from trpo_jax.cli.command_line import cache_compilations, command_name, user_errors
from trpo_jax.cli.display import print_evaluation, print_files, with_progress
from trpo_jax.cli.placement import ABORTED, SEEDS, exit_with, join_processes, placement_words
from trpo_jax.cli.run_settings import Run, differences, prepare, settings, stored_description
from trpo_jax.errors import (
    ConfigurationError,
    EnvironmentFailure,
    PeerFailure,
    StorageFailure,
)
from trpo_jax.figures.curves import learning_curve
from trpo_jax.processes import (
    decided_by_first,
    is_first,
    say_where_aborted,
    to_host,
)
from trpo_jax.records.checkpoints import (
    NOT_EVALUATED,
    Checkpoints,
    RunCheckpoints,
    Saved,
    to_state,
)
from trpo_jax.records.files import create_run_folder, write_json
from trpo_jax.records.logs import Log, chunk_rows, csv_log, tensorboard_log, wandb_log
from trpo_jax.records.policies import save_policy
from trpo_jax.records.runs import DESCRIPTION, METRICS, read_metrics
from trpo_jax.running.evaluation import make_evaluation, require_finite_returns
from trpo_jax.running.loop import NonFiniteError, compile_program, go_on, run_chunks
from trpo_jax.running.program import Program

CHECKPOINTS, EVALUATIONS = "checkpoints", "evaluations.csv"
STOPPED_BY = (KeyboardInterrupt, NonFiniteError, EnvironmentFailure, PeerFailure, OSError)
NOTHING = -1  # of the logs of a run that starts again: not even what came before update 1

Evaluation = Callable[..., np.ndarray]


class Outcome(NamedTuple):
    """How far a run came.

    Attributes:
        actor: of all seeds, in the end.
        num_updates: updates done, and in metrics.csv.
        seconds: training time, without all else.
        costs: seconds of what training did not need, since it was started or resumed, by name.
        stopped_by: why it ended early, if it did.
    """

    actor: Actor
    num_updates: int
    seconds: float
    costs: dict[str, float]
    stopped_by: BaseException | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    started = time.perf_counter()
    words = list(sys.argv[1:] if argv is None else argv)
    run = None
    try:
        with user_errors():
            join_processes(words)
            prepared = prepare(words)
            folder = Path(decided_by_first(lambda: str(prepared.folder)))  # some are named by time
            prepared = prepared._replace(folder=folder)
            saved = begin(prepared)
            run = prepared
        quiet = run.args.quiet or not is_first()
        return execute(run, saved, Console(quiet=quiet, highlight=False), started)
    except EnvironmentFailure as error:  # before the first update, or in the evaluation
        print(f"error: {error} {run.folder} keeps what was written.", file=sys.stderr)
        write_traceback(run.folder, error)
        return 1
    except PeerFailure as error:  # before the first update, or in the evaluation
        print(f"error: {error}. {resumption(run) if run else ''}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. What was written before stays.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f"{run.folder} keeps what was written." if run else "Nothing was written."
        print(f"Interrupted. {kept}", file=sys.stderr)
        return 130


def begin(run: Run) -> Saved | None:
    """Creates the folder of a new run, or returns what a resumed one goes on from.

    Raises:
        ConfigurationError: if the folder is no place for it.
        StorageFailure: if a process cannot read what the first one has found.
        PeerFailure: if another process is gone.
    """
    found = None

    def decide():
        nonlocal found
        if run.args.resume is not None:
            found = find_checkpoint(run)
            return found and found.num_updates
        create_run_folder(run.folder)
        write_json(run.folder / DESCRIPTION, run.description)
        return None

    number = decided_by_first(decide)
    if not (run.folder / DESCRIPTION).is_file():
        raise ConfigurationError(
            f"The first process has created {run.folder}, and this one does not see it. All of "
            "them have to: choose a folder on a shared disk with --out."
        )
    if number is None or found is not None:
        return found
    with closing(Checkpoints(run.folder / CHECKPOINTS)) as checkpoints:
        return checkpoints.read(number)


def find_checkpoint(run: Run) -> Saved | None:
    """Returns the latest checkpoint that a run can go on from, and says which ones it cannot.

    Raises:
        ConfigurationError: if it is from a run with other settings.
    """
    folder = run.folder / CHECKPOINTS
    if not folder.is_dir():
        return None
    path = run.folder / METRICS
    metrics = read_metrics(path) if path.is_file() else {}
    num_updates = metrics["update"].shape[1] if metrics else 0
    with closing(Checkpoints(folder)) as checkpoints:
        for found in checkpoints.newest_first():
            if isinstance(found, StorageFailure):
                print(f"warning: {found} It was renamed; the one before is tried.", file=sys.stderr)
                continue
            different = differences(settings(run.description), settings(found.description))
            if different:
                raise ConfigurationError(
                    f"The checkpoint of update {found.num_updates} in {folder} is from a run with "
                    f"{different}. Take it out of that folder to go on with an earlier one."
                )
            if num_updates >= found.num_updates:
                return found
            print(
                f"warning: {path} lacks rows of updates up to {found.num_updates}, which the "
                f"latest checkpoint is of; the one before is tried.",
                file=sys.stderr,
            )
    return None


def execute(run: Run, saved: Saved | None, console: Console, started: float) -> int:
    """Trains, evaluates and writes the files of a run; returns the exit code."""
    per_update = run.algorithm.steps_per_update
    title = f"{run.args.algorithm.upper()} on {run.env.name}"
    first, last = run.seeds[0], run.seeds[-1]
    seeds = f"seed {first}" if first == last else f"each of seeds {first} to {last}"
    console.print(
        f"{title}: {run.num_updates * per_update:,} steps in {run.num_updates:,} updates, {seeds}"
    )
    if run.args.resume is not None:
        print_resumption(run, saved, console)
    num_done = saved.num_updates if saved else 0
    if run.args.distributed:
        say_where_aborted(f"{ABORTED} {resumption(run, 'after its latest checkpoint')}")
    cache_compilations()
    with console.status("Compiling"):
        program = compile_program(
            run.algorithm, run.seeds, run.updates_per_chunk, num_done, run.placement
        )
    where = run.description["placement"]
    console.print(f"Compiled for {where} in {program.compile_seconds:.1f} s")
    evaluation = make_evaluation(
        run.env,
        run.algorithm.policy,
        run.args.evaluation_episodes,
        placement=run.placement if run.args.shard == SEEDS else None,
    )
    with closing(program):
        if saved:
            with user_errors():
                program = go_on(program, to_state(program.state, saved.arrays))
        outcome = train(run, program, evaluation, saved, console)
    if isinstance(outcome.stopped_by, OSError):
        return report_stop(run, outcome, console)
    policy_file = run.folder / "policy.msgpack"
    if is_first():
        save_policy(policy_file, run.env, run.config, outcome.actor, run.seeds)
        metrics = read_metrics(run.folder / METRICS) if outcome.num_updates else {}
        env_steps = per_update * np.arange(1, outcome.num_updates + 1)
        curves = metrics.get("episodic_return", np.zeros((len(run.seeds), 0)))
        figure = learning_curve(env_steps, curves, title)
        figure.savefig(run.folder / "learning_curve.png", dpi=150)
    if outcome.stopped_by is not None:
        return report_stop(run, outcome, console)
    with console.status("Evaluating"):
        returns = evaluation(outcome.actor, run.seeds)
    require_finite_returns(run.env, run.seeds, returns)
    if not is_first():
        return 0
    scores = returns.mean(axis=1)
    save_policy(policy_file, run.env, run.config, outcome.actor, run.seeds, scores.tolist())
    write_summary(run, outcome, scores, program.compile_seconds, time.perf_counter() - started)
    print_evaluation(console, run.seeds, scores, summarize(scores), run.args.evaluation_episodes)
    print_costs(console, outcome)
    print_files(console, run.folder)
    return 0


def write_summary(
    run: Run, outcome: Outcome, scores: np.ndarray, compile_seconds: float, wall_seconds: float
) -> None:
    """Writes `summary.json` of a run that came to its end."""
    total_steps = run.num_updates * run.algorithm.steps_per_update
    write_json(
        run.folder / "summary.json",
        {
            "env": run.env.name,
            "algorithm": run.args.algorithm,
            "num_seeds": len(run.seeds),
            "total_steps": total_steps,
            "env_steps_per_second": total_steps * len(run.seeds) / outcome.seconds,
            "compile_seconds": compile_seconds,
            "training_seconds": outcome.seconds,
            **{f"{name}_seconds": seconds for name, seconds in outcome.costs.items()},
            "wall_seconds": wall_seconds,
            "evaluation": {
                "episodes_per_seed": run.args.evaluation_episodes,
                "per_seed": scores.tolist(),
                **summarize(scores)._asdict(),
            },
        },
    )


def print_costs(console: Console, outcome: Outcome) -> None:
    """Prints what evaluations during training and checkpoints took."""
    costs = [
        f"{name.replace('_', ' ')} {seconds:.1f} s"
        for name, seconds in outcome.costs.items()
        if seconds
    ]
    if costs:
        beside = f"Beside {outcome.seconds:.1f} s of training: {', '.join(costs)}"
        console.print(beside, soft_wrap=True)


def print_resumption(run: Run, saved: Saved | None, console: Console) -> None:
    """Says where a run goes on, and what will not be as if it had never stopped."""
    if saved is None:
        console.print("There is no checkpoint to go on from: it starts again")
        return
    console.print(f"Goes on after update {saved.num_updates:,}")
    if run.env.open is not None:
        console.print(
            "Environments on the host cannot be stored: their episodes begin anew, and the numbers "
            "are not those of a run that never stopped"
        )
    before = saved.description["placement"]
    if before != run.description["placement"]:
        console.print(f"It ran on {before} before: numbers may differ in rounding")


def train(
    run: Run, program: Program, evaluation: Evaluation, saved: Saved | None, console: Console
) -> Outcome:
    """Trains to the end, or as far as it goes, writing logs and checkpoints along the way."""
    per_update = run.algorithm.steps_per_update
    num_done, seconds = (saved.num_updates, saved.seconds) if saved else (0, 0.0)
    actor, stopped_by = to_host(program.state.actor), None
    checkpoints = RunCheckpoints(
        run.folder / CHECKPOINTS,
        run.description,
        run.args.checkpoint_every,
        run.args.keep_checkpoints,
        num_done,
    )
    chunks = run_chunks(program, run.num_updates, num_done, seconds)
    with ExitStack() as stack:
        stack.callback(checkpoints.close)
        services = [entered(stack, log) for log in open_services(run, saved)]
        logs = [entered(stack, log) for log in open_csv(run, METRICS, saved)] + services
        evaluations = Evaluations(run, evaluation, saved, services, stack)
        shown = with_progress(chunks, console, run.num_updates, per_update)
        stack.callback(shown.close)
        try:
            if num_done == 0:
                evaluations.offer(0, actor, 0.0)
            for chunk in shown:
                rows = chunk_rows(chunk, run.seeds, per_update, seconds)
                for log in logs:
                    log.write(rows)
                actor, num_done, seconds = chunk.actor, chunk.last_update, chunk.seconds
                checkpoints.offer(chunk, evaluations.offer(num_done, actor, seconds))
        except STOPPED_BY as error:
            stopped_by = error
    costs = {
        "first_evaluation_and_its_compilation": evaluations.first_cost,
        "later_evaluations": evaluations.later_cost,
        "checkpoints": checkpoints.cost,
    }
    return Outcome(actor, num_done, seconds, costs, stopped_by)


class Evaluations:
    """Judges the policies during training, where that is asked for, and writes what they scored.

    Attributes:
        first_cost: seconds that the first evaluation took, with its compilation.
        later_cost: seconds of all others.
    """

    def __init__(
        self,
        run: Run,
        evaluation: Evaluation,
        saved: Saved | None,
        services: Sequence[Log],
        stack: ExitStack,
    ):
        """Opens `evaluations.csv` if the run is to be judged, until the stack closes."""
        self.first_cost, self.later_cost = 0.0, 0.0
        self._every = run.args.eval_every
        self._evaluation, self._env, self._seeds = evaluation, run.env, run.seeds
        self._steps_per_update = run.algorithm.steps_per_update
        self._logs = list(services)
        if self._every:
            self._logs += [entered(stack, log) for log in open_csv(run, EVALUATIONS, saved)]

    def offer(self, num_updates: int, actor: Actor, seconds: float) -> float:
        """Returns the mean return over all seeds after an update, or `NOT_EVALUATED`."""
        if not self._every or num_updates % self._every:
            return NOT_EVALUATED
        started = time.perf_counter()
        returns = self._evaluation(actor, self._seeds, num_updates)
        cost = time.perf_counter() - started
        require_finite_returns(self._env, self._seeds, returns)
        scores = returns.mean(axis=1)
        if self.first_cost:
            self.later_cost += cost
        else:
            self.first_cost = cost
        rows = [
            {
                "seed": seed,
                "update": num_updates,
                "env_steps": num_updates * self._steps_per_update,
                "seconds": seconds,
                "evaluation_return": score,
                "evaluation_seconds": cost,
            }
            for seed, score in zip(self._seeds, scores, strict=True)
        ]
        for log in self._logs:
            log.write(rows)
        return float(scores.mean())


def open_csv(run: Run, name: str, saved: Saved | None) -> Iterator[Log]:
    """Yields the log that is a CSV file of a run, going on where the run does."""
    if is_first():
        yield csv_log(run.folder / name, updates_kept(run, saved))


def open_services(run: Run, saved: Saved | None) -> Iterator[Log]:
    """Yields the logs that a run is asked to keep beside its CSV files."""
    if not is_first():
        return
    if "tensorboard" in run.args.log:
        kept = updates_kept(run, saved)
        steps_done = None if kept is None else kept * run.algorithm.steps_per_update
        yield tensorboard_log(run.folder / "tensorboard", run.seeds, steps_done)
    if "wandb" in run.args.log:
        yield wandb_log(run.folder, run.seeds, stored_description(run.folder))


def updates_kept(run: Run, saved: Saved | None) -> int | None:
    """Returns the update up to which the logs of a resumed run are kept, or None for a new run."""
    if run.args.resume is None:
        return None
    return NOTHING if saved is None else saved.num_updates


def entered(stack: ExitStack, log: Log) -> Log:
    """Returns a log that is closed with a stack."""
    stack.callback(log.close)
    return log


def report_stop(run: Run, outcome: Outcome, console: Console) -> int:
    """Says why a run stopped early and what is left of it; returns the exit code."""
    broken = not isinstance(outcome.stopped_by, KeyboardInterrupt)
    write_traceback(run.folder, outcome.stopped_by)
    reason = f"error: {outcome.stopped_by}".rstrip(".") if broken else "Interrupted"
    kept = f"metrics.csv holds the run up to update {outcome.num_updates} of {run.num_updates}"
    if not isinstance(outcome.stopped_by, OSError):
        policies = "each seed's last good policy" if broken else "the policies of then"
        kept += f", policy.msgpack {policies}"
    print(f"{reason}. {kept}.", file=sys.stderr)
    if not isinstance(outcome.stopped_by, NonFiniteError):  # which would come again
        print(resumption(run), file=sys.stderr)
    print_files(console, run.folder)
    return 1 if broken else 130


def resumption(run: Run, after: str | None = None) -> str:
    """Returns how a run goes on, and after what: its newest checkpoint, if nothing is said."""
    if after is None:
        names = [path.name for path in (run.folder / CHECKPOINTS).glob("*")]
        numbers = [int(name) for name in names if name.isdigit()]
        after = f"after update {max(numbers)}" if numbers else "from its start"
    words = ["--resume", str(run.folder), *placement_words(run.args)]
    return f"{command_name('train')} {shlex.join(words)} goes on {after}."


def write_traceback(folder: Path, error: BaseException) -> None:
    """Writes where an environment failed, if that is what happened, for its author."""
    if isinstance(error, EnvironmentFailure) and error.__cause__ is not None:
        lines = traceback.format_exception(error.__cause__)
        (folder / "error.txt").write_text("".join(lines))


if __name__ == "__main__":
    exit_with(main)

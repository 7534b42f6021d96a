"""Keeps the numbers of a run while it runs, and writes them to files if it has a folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trpo_jax.algorithms.base import Learnt
from trpo_jax.analysis.returns import running_return
from trpo_jax.envs.base import cost_metrics
from trpo_jax.errors import ConfigurationError
from trpo_jax.processes import decided_by_first, is_first
from trpo_jax.records.checkpoints import NOT_EVALUATED, Checkpoints, Saved
from trpo_jax.records.limits import cost_excess
from trpo_jax.records.logs import Log, Row, csv_log, tensorboard_log, wandb_log
from trpo_jax.records.resuming import BROKEN_SEEDS
from trpo_jax.records.runs import CHECKPOINTS, EVALUATIONS, METRICS, read_description, read_metrics
from trpo_jax.running.evaluation import Played, require_finite_returns
from trpo_jax.running.loop import Broken, Chunk, finish, learnt_by, stop_if_interrupted
from trpo_jax.running.plan import RunPlan

BEFORE_THE_FIRST = -1  # lower than the number of any update; evaluations may be of update 0
SHARE_OF_TIME = 0.03  # share that checkpoints may take if `checkpoint_every` is None
FIRST_SECONDS = 0.7  # expected time of the first checkpoint, which loads Orbax

Columns = dict[str, np.ndarray]


def columns_of(
    seeds: Sequence[int],
    first_update: int,
    steps_per_update: int,
    seconds: np.ndarray,
    numbers: Mapping[str, np.ndarray],
) -> Columns:
    """Returns columns `[num_seeds, U]`: seed, update, env_steps, seconds, then the numbers.

    Args:
        seeds: the seeds.
        first_update: number of the first of the U updates.
        steps_per_update: environment steps of a seed in an update.
        seconds: training time at the end of each update, `[U]`.
        numbers: further columns by name, each `[num_seeds, U]`.
    """
    updates = np.arange(first_update, first_update + len(seconds))
    places = {"update": updates, "env_steps": updates * steps_per_update, "seconds": seconds}
    shape = len(seeds), len(seconds)
    return {
        "seed": np.repeat(np.array(seeds)[:, None], len(seconds), axis=1),
        **{name: np.broadcast_to(x, shape) for name, x in places.items()},
        **numbers,
    }


def chunk_columns(
    chunk: Chunk, seeds: Sequence[int], steps_per_update: int, seconds_before: float
) -> Columns:
    """Returns the columns of a chunk. Its training time is spread evenly over its updates."""
    num_updates = chunk.last_update - chunk.first_update + 1
    seconds = np.linspace(seconds_before, chunk.seconds, num_updates + 1)[1:]
    return columns_of(seeds, chunk.first_update, steps_per_update, seconds, chunk.metrics)


def rows_of(columns: Columns) -> list[Row]:
    """Returns the rows of columns `[num_seeds, U]`: for each update, one row for each seed."""
    rows = np.stack([x.T.ravel().astype(object) for x in columns.values()], axis=1)
    return [dict(zip(columns, row, strict=True)) for row in rows]


class Table:
    """Columns that grow with each update, and logs that get each new row."""

    def __init__(self, before: Columns, logs: Sequence[Log]):
        """Starts with columns that the logs already have."""
        self._parts = [before] if before else []
        self._logs = logs

    def add(self, columns: Columns) -> None:
        """Writes the rows of further columns to the logs, and then appends the columns."""
        rows = rows_of(columns) if self._logs else []
        for log in self._logs:
            log.write(rows)
        self._parts.append(columns)

    def columns(self, *names: str) -> Columns:
        """Returns the columns of these names, or all columns, each `[num_seeds, U]`.

        There are no columns before the first rows.
        """
        names = (names or self._parts[-1]) if self._parts else ()
        return {name: np.concatenate([x[name] for x in self._parts], axis=1) for name in names}


class Recorder:
    """Takes the chunks of a run, writes logs and checkpoints, and evaluates the policies.

    Attributes:
        learnt: everything that the seeds have learnt.
        num_updates: number of updates done.
        seconds: training time of these updates.
        metrics: the metrics of each update.
        evaluations: the evaluations during training.
        broken: the seeds that have stopped because their numbers were not finite.
    """

    def __init__(
        self,
        plan: RunPlan,
        evaluation: Callable[..., Played],
        saved: Saved | None,
        learnt: Learnt,
        stack: ExitStack,
    ):
        """Opens the files of a run.

        Args:
            plan: the plan of the run.
            evaluation: from `make_evaluation`.
            saved: the checkpoint that the run continues from, or None.
            learnt: what the seeds have learnt at the start of this call.
            stack: closes the files when it closes.
        """
        self.learnt = learnt
        self.num_updates, self.seconds = (saved.num_updates, saved.seconds) if saved else (0, 0.0)
        found = saved.description.get(BROKEN_SEEDS, {}) if saved else {}
        self.broken = {int(seed): Broken(*x) for seed, x in found.items()}
        self._latest: Chunk | None = None
        self._plan, self._evaluation = plan, evaluation
        self._evaluation_costs: list[float] = []
        kept = (self.num_updates if saved else BEFORE_THE_FIRST) if plan.resumed else None
        services = [_closed_by(stack, log) for log in _open_services(plan, kept)]
        self.metrics = self._open_table(METRICS, kept, services, stack)
        names = EVALUATIONS if plan.eval_every else None
        self.evaluations = self._open_table(names, kept, services, stack)
        self.checkpoints = None
        if plan.folder is not None:
            self.checkpoints = RunCheckpoints(
                plan.folder / CHECKPOINTS,
                plan.description,
                plan.checkpoint_every,
                plan.keep_checkpoints,
                self.num_updates,
            )
            stack.callback(self.checkpoints.close)

    def _open_table(self, name, kept, services, stack) -> Table:
        folder = self._plan.folder
        if folder is None or name is None:
            return Table({}, [])
        path = folder / name
        before = columns_until(path, kept) if kept is not None else {}
        own = [_closed_by(stack, csv_log(path, kept))] if is_first() else []
        return Table(before, [*own, *services])

    def start(self) -> None:
        """Evaluates the policies if an evaluation is due and was not done before a stop."""
        done = self.evaluations.columns("update").get("update")
        if done is None or self.num_updates not in done[0]:
            self._evaluate()

    def take(self, chunk: Chunk) -> None:
        """Takes a chunk of the run. Ctrl-C waits until the files are written.

        Raises:
            StorageFailure: if a file cannot be written.
            EnvironmentFailure: if the environment fails in an evaluation.
        """
        finish(partial(self._keep, chunk))
        stop_if_interrupted()
        found = self._evaluate()
        if self.checkpoints is not None and self._alive().any():
            self.checkpoints.offer(chunk, *found)

    def _keep(self, chunk: Chunk) -> None:
        per_update = self._plan.algorithm.steps_per_update
        self.metrics.add(chunk_columns(chunk, self._plan.seeds, per_update, self.seconds))
        self.learnt = learnt_by(chunk.state)._replace(actor=chunk.actor)
        self.num_updates, self.seconds = chunk.last_update, chunk.seconds
        self.broken, self._latest = dict(chunk.broken), chunk

    def save_state(self) -> None:
        """Writes a checkpoint of the latest update, if it is missing and checkpoints are wanted.

        Raises:
            StorageFailure: if the checkpoint cannot be written.
        """
        chunk = self._latest
        if self.checkpoints is None or chunk is None or not self._alive().any():
            return
        arrays = (x for x in jax.tree.leaves(chunk.state) if isinstance(x, jax.Array))
        if not any(x.is_deleted() for x in arrays):  # a second Ctrl-C in a chunk deletes the state
            self.checkpoints.save(chunk)

    def reached(self, threshold: float) -> bool:
        """Returns whether the running return of each seed that has not stopped reaches a threshold.

        Raises:
            ConfigurationError: if the algorithm has no metrics of the return.
        """
        names = ("episodic_return", "num_episodes")
        if self._latest is None or not self._latest.metrics.keys() >= set(names):
            raise ConfigurationError(
                f"stop_at_return needs the metrics {' and '.join(names)}, and this algorithm does "
                "not return them. Remove stop_at_return, or let the algorithm return them."
            )
        columns = self.metrics.columns(*names)
        latest = running_return(columns["episodic_return"], columns["num_episodes"])[:, -1]
        return bool((latest[self._alive()] >= threshold).all())

    def _alive(self) -> np.ndarray:
        return np.array([seed not in self.broken for seed in self._plan.seeds])

    def evaluate(self, number: int = 0, tell: Callable[[str], None] | None = None) -> Played:
        """Plays episodes with the policies and returns the results. Stopped seeds have NaN.

        Args:
            number: the number of the evaluation; see `make_evaluation`.
            tell: is called with messages about the progress.

        Raises:
            EnvironmentFailure: if the environment fails, or returns numbers that are not finite.
        """
        plan, alive = self._plan, self._alive()
        seeds, actor = np.array(plan.seeds), self.learnt.actor
        if plan.env.open is not None:  # on the host, each seed takes time
            seeds, actor = seeds[alive], jax.tree.map(lambda x: x[alive], actor)
        played = self._evaluation(actor, seeds.tolist(), number, tell)
        if len(seeds) == len(alive):
            played = jax.tree.map(lambda x: x[alive], played)
        living = [seed for seed in plan.seeds if seed not in self.broken]
        require_finite_returns(plan.env, living, played.returns, played.costs)

        def of_all_seeds(x):
            none = np.nan if np.issubdtype(x.dtype, np.floating) else False
            whole = np.full((len(alive), *x.shape[1:]), none, x.dtype)
            whole[alive] = x
            return whole

        return jax.tree.map(of_all_seeds, played)

    def _evaluate(self) -> tuple[float, float]:
        """Evaluates the policies if that is due.

        Returns:
            The mean return over all seeds, or `NOT_EVALUATED` if no evaluation is due, and how far
            the mean costs are above their limits.
        """
        plan = self._plan
        due = plan.eval_every and self.num_updates % plan.eval_every == 0
        if not due or not self._alive().any():
            return NOT_EVALUATED, 0.0
        started = time.perf_counter()
        played = self.evaluate(self.num_updates)
        cost = time.perf_counter() - started
        self._evaluation_costs.append(cost)
        scores = played.returns.mean(axis=1, keepdims=True)
        numbers = {
            "evaluation_return": scores,
            "evaluation_seconds": np.full_like(scores, cost),
            "evaluation_episodes_cut": played.cut.sum(axis=1, keepdims=True),
        }
        alive, excess = self._alive(), 0.0
        if plan.env.costs:
            costs = played.costs.mean(axis=1)
            excess = float(cost_excess(costs[alive].mean(axis=0), plan.cost_limits))
        for k, name in enumerate(cost_metrics(plan.env.costs, "evaluation_cost")):
            numbers[name] = costs[:, k : k + 1]
        per_update, seconds = plan.algorithm.steps_per_update, np.array([self.seconds])
        self.evaluations.add(columns_of(plan.seeds, self.num_updates, per_update, seconds, numbers))
        return float(scores[alive].mean()), excess

    def costs(self) -> dict[str, float]:
        """Returns the seconds that evaluations and checkpoints took, by name."""
        return {
            "first_evaluation_and_its_compilation": sum(self._evaluation_costs[:1], 0.0),
            "later_evaluations": sum(self._evaluation_costs[1:], 0.0),
            "checkpoints": 0.0 if self.checkpoints is None else self.checkpoints.cost,
        }


class RunCheckpoints:
    """The checkpoints that a run writes, and the time that they take.

    Attributes:
        latest: the update of the latest checkpoint; 0 if there is none.
        cost: seconds spent on checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        description: Mapping[str, Any],
        every: int | None,
        keep: int,
        latest: int,
    ):
        """Keeps the settings. The folder is opened only for the first checkpoint.

        Args:
            folder: the folder of the checkpoints.
            description: the description of the run.
            every: number of updates from one checkpoint to the next; 0 for no checkpoints; None for
                as often as takes at most the share `SHARE_OF_TIME` of the time.
            keep: number of latest checkpoints to keep.
            latest: the update of the checkpoint that the run continues from, or 0.
        """
        self.latest, self.cost = latest, 0.0
        self._description, self._every = description, every
        self._open = lambda: Checkpoints(folder, keep, together=True)
        self._opened: Checkpoints | None = None
        self._last_seconds: float | None = None
        self._expected = FIRST_SECONDS

    def offer(
        self, chunk: Chunk, evaluation_return: float = NOT_EVALUATED, excess: float = 0.0
    ) -> None:
        """Writes a checkpoint after a chunk if one is due. One is due after every evaluation.

        Raises:
            StorageFailure: if the checkpoint cannot be written. Earlier checkpoints stay.
        """
        if self._last_seconds is None:
            self._last_seconds = chunk.seconds
        if self._every is None:
            passed = chunk.seconds - self._last_seconds
            due = decided_by_first(lambda: passed * SHARE_OF_TIME >= self._expected)
        else:
            due = self._every > 0 and chunk.last_update % self._every == 0
        evaluated = evaluation_return > NOT_EVALUATED and self._every != 0
        if due or evaluated:
            self.save(chunk, evaluation_return, excess)

    def save(
        self, chunk: Chunk, evaluation_return: float = NOT_EVALUATED, excess: float = 0.0
    ) -> None:
        """Writes a checkpoint after a chunk, unless it exists. Ctrl-C waits until it is written.

        Raises:
            StorageFailure: if the checkpoint cannot be written. Earlier checkpoints stay.
        """
        if self.latest == chunk.last_update or self._every == 0:
            return
        started = time.perf_counter()
        finish(partial(self._write, chunk, evaluation_return, excess))
        self._expected = time.perf_counter() - started
        self._last_seconds = chunk.seconds
        self.latest = chunk.last_update
        self.cost += self._expected
        stop_if_interrupted()

    def _write(self, chunk: Chunk, *score: float) -> None:
        self._opened = self._opened or self._open()
        about = self._description | ({BROKEN_SEEDS: dict(chunk.broken)} if chunk.broken else {})
        self._opened.save(chunk.last_update, chunk.state, chunk.seconds, about, *score)

    def close(self) -> None:
        """Releases the resources of Orbax."""
        if self._opened is not None:
            self._opened.close()


def columns_until(path: Path, num_updates: int) -> Columns:
    """Returns the columns of a CSV file of a run up to an update. An empty file has none."""
    columns = read_metrics(path) if path.is_file() else {}
    if not columns:
        return {}
    kept = columns["update"][0] <= num_updates
    whole = ("seed", "update", "env_steps")
    return {
        name: x[:, kept].astype(np.int64 if name in whole else x.dtype)
        for name, x in columns.items()
    }


def _open_services(plan: RunPlan, kept: int | None) -> list[Log]:
    """Returns the further logs of a run. If the run is resumed, they continue after an update."""
    opened = []
    if is_first() and "tensorboard" in plan.log:
        steps_done = None if kept is None else kept * plan.algorithm.steps_per_update
        folder, about = plan.folder / "tensorboard", read_description(plan.folder)
        opened.append(tensorboard_log(folder, plan.seeds, about, steps_done))
    if is_first() and "wandb" in plan.log:
        opened.append(wandb_log(plan.folder, plan.seeds, read_description(plan.folder)))
    return opened


def _closed_by(stack: ExitStack, log: Log) -> Log:
    stack.callback(log.close)
    return log

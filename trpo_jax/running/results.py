"""The results of a run: numbers and policies, and the files that hold them."""

import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, Learnt
from trpo_jax.analysis.costs import describe_costs
from trpo_jax.analysis.diagnosis import describe, find_limit_warnings
from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import ScoreSummary
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import split_part
from trpo_jax.errors import ConfigurationError, FileGone, StorageFailure, counted
from trpo_jax.processes import is_first
from trpo_jax.records.acting import ActingPolicy, make_act
from trpo_jax.records.files import write_json, write_whole
from trpo_jax.records.limits import cost_excess, cost_limits, last_limits
from trpo_jax.records.policies import index_of
from trpo_jax.records.policy_files import save_policy
from trpo_jax.records.resuming import BROKEN_SEEDS
from trpo_jax.records.runs import POLICY, SUMMARY, StoredRun, cost_columns
from trpo_jax.running.description import config_to_dict
from trpo_jax.running.evaluation import evaluation_bound
from trpo_jax.running.loop import Broken
from trpo_jax.running.plan import RunPlan
from trpo_jax.running.recorder import Columns


class PolicyFailure(StorageFailure):
    """The policies could not be written into the folder of the run.

    The message says where they were written instead.
    """


class Evaluation(NamedTuple):
    """The returns of the final policies over fresh episodes.

    Attributes:
        returns: the return of each episode, `[num_seeds, E]`.
        cut: whether the limit on steps cut the episode, `[num_seeds, E]`.
        per_seed: the mean return of each seed, `[num_seeds]`.
        summary: statistics over seeds.
        costs: the costs of each episode, `[num_seeds, E, K]`; `()` if the environment has no costs.
    """

    returns: np.ndarray
    cut: np.ndarray
    per_seed: np.ndarray
    summary: ScoreSummary
    costs: np.ndarray | tuple[()] = ()

    @property
    def costs_per_seed(self) -> np.ndarray:
        """The mean costs of an episode for each seed, `[num_seeds, K]`."""
        return np.mean(self.costs, axis=1)


class Run(NamedTuple):
    """The results of a run, from `trpo_jax.train`. The run is finished, or was stopped.

    Attributes:
        env: the environment.
        algorithm: the algorithm.
        config: the config of the algorithm; None if it was made without one.
        seeds: the seeds.
        metrics: the columns of `metrics.csv`, each `[num_seeds, U]`: `seed`, `update`, `env_steps`
            (of one seed), `seconds` (of training) and every metric of the algorithm. If the
            environment has one cost, `episodic_cost` is a metric. If it has several,
            `episodic_cost_<name>` is a metric for each of them. `episodic_return`, `episode_length`
            and costs are NaN in an update in which no episode ended. All metrics of a seed are
            NaN after it has stopped. The updates that a resumed run has read from the file have
            seven digits. Before the first update there are no columns.
        evaluation: the evaluation of the final policies. Seeds that stopped are NaN, and its
            summary leaves them out. None if Ctrl-C or the callback stopped the run.
        evaluations: the columns of `evaluations.csv`, each `[num_seeds, K]`, from evaluations
            during training.
        learnt: everything that the seeds have learnt, leading axis `[num_seeds]`, on the host.
        num_updates: number of updates that were done.
        seconds: training time, without compilation, evaluations and checkpoints.
        compile_seconds: time spent compiling.
        costs: seconds of evaluations during training and of checkpoints, by name.
        folder: the folder of the files, or None.
        stopped_by: why the run ended early: "interrupt" (Ctrl-C), "callback", "return" (all seeds
            reached `stop_at_return`), or the name of an exception. None if it did not end early.
        title: the algorithm and the environment, for headings.
        name: the name of the algorithm.
        broken: for each seed that stopped because its numbers were not finite, the update and the
            reason.

    Examples:
        >>> run = trpo_jax.train("CartPole-v1", seeds=2, total_steps=2_048, progress=False)
        >>> run.seeds, run.num_updates, run.stopped_by
        ((0, 1), 1, None)
        >>> run.metrics["kl"].shape  # [num_seeds, U]
        (2, 1)
        >>> act = run.policy()  # the policy of the seed with the best evaluation
    """

    env: Environment
    algorithm: Algorithm
    config: Any
    seeds: tuple[int, ...]
    metrics: Columns
    evaluation: Evaluation | None
    evaluations: Columns
    learnt: Learnt
    num_updates: int
    seconds: float
    compile_seconds: float
    costs: dict[str, float]
    folder: Path | None
    stopped_by: str | None
    title: str
    name: str
    broken: dict[int, Broken]

    @property
    def actor(self) -> Actor:
        """Everything that the policies need to act, leading axis `[num_seeds]`, on the host."""
        return self.learnt.actor

    @property
    def cost_limits(self) -> np.ndarray | None:
        """The limit of each cost at each update, `[K, U]`; None if the algorithm has no limits."""
        metrics = {"update": np.empty((1, 0)), **self.metrics}  # empty before the first update
        return cost_limits(config_to_dict(self.config), metrics, len(self.env.costs))

    @property
    def evaluated_costs(self) -> dict[str, dict[str, Any]]:
        """For each cost by name, its limit and statistics over seeds of the evaluation."""
        if not self.env.costs or self.evaluation is None:
            return {}
        return describe_costs(self.env.costs, self.evaluation.costs_per_seed, self._last_limits)

    @property
    def evaluated_excess(self) -> np.ndarray:
        """How far the evaluated costs of each seed are above their limits, `[num_seeds]`."""
        if not self.env.costs:
            return np.zeros(len(self.seeds))
        return cost_excess(self.evaluation.costs_per_seed, self._last_limits)

    @property
    def _last_limits(self) -> np.ndarray | None:
        return last_limits(config_to_dict(self.config), self.metrics, len(self.env.costs))

    @property
    def limit_warnings(self) -> list[str]:
        """A paragraph for each limit on a cost that no policy of the run kept."""
        if "update" not in self.metrics:
            return []
        about = {"config": config_to_dict(self.config), "cost_names": self.env.costs}
        stored = StoredRun(self.folder, about, self.metrics)
        return [f"{x.name}: {describe(x)}" for x in find_limit_warnings(stored)]

    def policy(self, seed: int | None = None) -> ActingPolicy:
        """Returns a function `(observation, key=None) -> action`, as `load_policy` does.

        Args:
            seed: the seed whose policy is returned. None for the seed with the best evaluation, or
                the first seed if there was no evaluation. Seeds that keep the limits on costs come
                before other seeds.

        Raises:
            ConfigurationError: if the run has no such seed.
        """
        scores, excess = [0.0], [0.0]
        if self.evaluation is not None:
            scores, excess = self.evaluation.per_seed, self.evaluated_excess
        index = index_of(seed, self.seeds, scores, excess)
        env, algorithm = self.env, self.algorithm
        hidden = algorithm.agent and algorithm.agent.critic_observation
        return make_act(
            algorithm.policy,
            algorithm.carry,
            jax.tree.map(lambda x: x[index], self.actor),
            env.name,
            split_part(env.observation, hidden)[0],
            env.action,
            algorithm.agent and algorithm.agent.policy.settings,
            getattr(self.config, "normalize_observations", False),
        )

    def plot(self) -> Any:
        """Returns a matplotlib figure of the returns and the costs of training episodes.

        Raises:
            ConfigurationError: if there is no metric `episodic_return`.
        """
        from trpo_jax.figures.curves import Costs, learning_curve

        if "episodic_return" not in self.metrics:
            found = ", ".join(self.metrics) or "none, since no update was done"
            raise ConfigurationError(
                f"There is no metric episodic_return to plot. The metrics are: {found}."
            )
        env_steps = self.metrics["env_steps"][0]
        returns = self.metrics["episodic_return"]
        columns = cost_columns(self.metrics, order=self.env.costs)
        limits = self.cost_limits
        costs = {
            name: Costs(self.metrics[column], None if limits is None else limits[k])
            for k, (name, column) in enumerate(columns.items())
        }
        return learning_curve(env_steps, returns, self.title, self.name, costs)

    def __repr__(self) -> str:
        """Returns the run in one line."""
        parts = [f"Run of {self.title}", counted(len(self.seeds), "seed")]
        parts += [counted(self.num_updates, "update"), f"{self.seconds:.1f} s"]
        if self.evaluation is not None:
            parts.append(f"mean return {return_text(self.evaluation.summary.mean)}")
            for name, x in self.evaluated_costs.items():
                parts.append(f"mean cost {name} {return_text(x['mean'])}")
        parts += [f"stopped by {self.stopped_by}"] if self.stopped_by else []
        parts += [f"without seed {seed}" for seed in self.broken]
        return f"<{', '.join(parts)}>"


def write_policy(plan: RunPlan, run: Run, cause: Exception | None = None) -> None:
    """Writes the policies of a run, and the figure of its learning curve if there are returns.

    Args:
        plan: the plan of the run.
        run: the run.
        cause: the error that ended the run, or None.

    Raises:
        PolicyFailure: if the folder cannot take the policies, because the disk is full or the
            folder was removed. The message names the cause too, and says where the policies are.
        StorageFailure: if the figure cannot be written, and the run had no other error.
    """
    if plan.folder is None or not is_first():
        return
    scores = excess = None
    if run.evaluation is not None:  # a seed that has stopped must not be the best one
        scores = np.nan_to_num(run.evaluation.per_seed, nan=-np.inf)
        excess = np.nan_to_num(run.evaluated_excess, nan=np.inf)
    save = lambda path: save_policy(path, run.algorithm, run.learnt, run.seeds, scores, excess)
    try:
        if isinstance(cause, FileGone):  # the folder may belong to another run by this time
            raise cause
        save(plan.folder / POLICY)
    except OSError as error:
        said = str(error) if cause in (None, error) else f"{str(cause).rstrip('.')}. {error}"
        try:
            path = Path(tempfile.mkdtemp(prefix="trpo_jax-"), POLICY)
            save(path)
            failure = PolicyFailure(f"{said}. The policies are in {path}")
        except OSError as other:
            failure = PolicyFailure(f"{said}. The policies are lost: {other}")
        failure.run = run
        raise failure from error
    if "episodic_return" in run.metrics:
        from trpo_jax.figures.curves import file_of

        picture = file_of(run.plot(), "png", 150)
        # After an error, the same disk may well refuse the figure too.
        with nullcontext() if cause is None else suppress(StorageFailure):
            write_whole(plan.folder / "learning_curve.png", picture)


def write_summary(plan: RunPlan, run: Run, wall_seconds: float) -> None:
    """Writes the policies of a finished run with their scores, and `summary.json`."""
    write_policy(plan, run)
    if plan.folder is None or not is_first():
        return
    total_steps = run.num_updates * plan.algorithm.steps_per_update
    per_seed = run.evaluation.per_seed
    write_json(
        plan.folder / SUMMARY,
        {
            "env": plan.env.name,
            "algorithm": plan.name,
            "num_seeds": len(run.seeds),
            "total_steps": total_steps,
            "env_steps_per_second": total_steps * len(run.seeds) / run.seconds,
            "compile_seconds": run.compile_seconds,
            "training_seconds": run.seconds,
            **{f"{name}_seconds": seconds for name, seconds in run.costs.items()},
            "wall_seconds": wall_seconds,
            "stopped_by": run.stopped_by,
            BROKEN_SEEDS: {str(seed): x._asdict() for seed, x in run.broken.items()},
            "evaluation": {
                "episodes_per_seed": plan.evaluation_episodes,
                "steps_at_most": evaluation_bound(plan.env, plan.evaluation_steps),
                "episodes_cut": int(run.evaluation.cut.sum()),
                "per_seed": [None if np.isnan(x) else x for x in per_seed.tolist()],
                **run.evaluation.summary._asdict(),
                **({"costs": run.evaluated_costs} if run.env.costs else {}),
            },
            **({"limit_warnings": run.limit_warnings} if run.env.costs else {}),
        },
    )

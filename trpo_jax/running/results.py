"""What comes of a run: numbers, policies, and the files that hold them."""

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
from trpo_jax.envs.base import Environment, split_part
from trpo_jax.errors import (
    ConfigurationError,
    FileGone,
    StorageFailure,
)
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
from trpo_jax.running.loop import (
    Broken,
)
from trpo_jax.running.plan import RunPlan
from trpo_jax.running.recorder import Columns


class PolicyFailure(StorageFailure):
    """Policies that the folder of their run could not take; the message says where they are."""


class Evaluation(NamedTuple):
    """What the final policies returned over fresh episodes.

    Attributes:
        returns: of each episode, `[num_seeds, E]`.
        cut: whether it was cut by the bound on its steps, `[num_seeds, E]`.
        per_seed: mean return of each seed, `[num_seeds]`.
        summary: statistics over seeds.
        costs: of each episode, `[num_seeds, E, K]`; `()` in an environment without costs.
    """

    returns: np.ndarray
    cut: np.ndarray
    per_seed: np.ndarray
    summary: ScoreSummary
    costs: np.ndarray | tuple[()] = ()

    @property
    def costs_per_seed(self) -> np.ndarray:
        """Mean costs of an episode of each seed, `[num_seeds, K]`."""
        return np.mean(self.costs, axis=1)


class Run(NamedTuple):
    """A run that came to its end, or as far as it came.

    Attributes:
        env: the environment.
        algorithm: the algorithm.
        config: of the algorithm; None if it was made from none.
        seeds: the seeds.
        metrics: columns of `metrics.csv`, each `[num_seeds, U]`: `seed`, `update`, `env_steps` (of
            one seed) and `seconds` (of training), then every metric of the algorithm, NaN in
            `episodic_return`, `episode_length` and costs where no episode ended, and in all of them
            once a seed has stopped. An environment with one cost has `episodic_cost`, one with
            several `episodic_cost_<name>` for each. What a resumed run did before comes from the
            file, which has seven digits. Empty before the first update.
        evaluation: of the final policies, NaN for seeds that stopped, which its summary is without;
            None if the run was interrupted, or stopped by the callback.
        evaluations: columns of `evaluations.csv`, each `[num_seeds, K]`: those during training.
        learnt: what the seeds have learnt, leading axis `[num_seeds]`, on the host.
        num_updates: updates done.
        seconds: training time, without compilation and all else.
        compile_seconds: time spent compiling.
        costs: seconds of evaluations during training and of checkpoints, by name.
        folder: where its files are, if it has files.
        stopped_by: why it ended early: "interrupt" (Ctrl-C), "callback", "return" (all seeds
            reached `stop_at_return`), or the name of an exception; None if it did not.
        title: algorithm and environment in words.
        name: of the algorithm.
        broken: the seeds that stopped since their numbers were not finite: at which update, why.
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
        """What acting needs, leading axis `[num_seeds]`, on the host."""
        return self.learnt.actor

    @property
    def cost_limits(self) -> np.ndarray | None:
        """Limit of each cost at each update, `[K, U]`; None of an algorithm without limits."""
        return cost_limits(config_to_dict(self.config), self.metrics, len(self.env.costs))

    @property
    def evaluated_costs(self) -> dict[str, dict[str, Any]]:
        """Statistics over seeds of each cost of the evaluation, with its limit, by its name."""
        if not self.env.costs or self.evaluation is None:
            return {}
        return describe_costs(self.env.costs, self.evaluation.costs_per_seed, self._last_limits)

    @property
    def evaluated_excess(self) -> np.ndarray:
        """How far the costs of each seed's evaluation are above their limits, `[num_seeds]`."""
        if not self.env.costs:
            return np.zeros(len(self.seeds))
        return cost_excess(self.evaluation.costs_per_seed, self._last_limits)

    @property
    def _last_limits(self) -> np.ndarray | None:
        return last_limits(config_to_dict(self.config), self.metrics, len(self.env.costs))

    @property
    def limit_warnings(self) -> list[str]:
        """Which limits on costs no policy of the run kept, a paragraph each."""
        if "update" not in self.metrics:
            return []
        about = {"config": config_to_dict(self.config), "cost_names": self.env.costs}
        stored = StoredRun(self.folder, about, self.metrics)
        return [f"{x.name}: {describe(x)}" for x in find_limit_warnings(stored)]

    def policy(self, seed: int | None = None) -> ActingPolicy:
        """Returns a function `(observation, key=None) -> action`, as `load_policy` does.

        Args:
            seed: whose policy; that with the best evaluation if None, or the first without one. A
                seed that keeps the limits on costs comes before one that does not.

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
        """Returns a matplotlib figure of the return of training episodes, and of their costs.

        Raises:
            ConfigurationError: if the metrics have no return.
        """
        from trpo_jax.figures.curves import Costs, learning_curve

        if "episodic_return" not in self.metrics:
            found = ", ".join(self.metrics) or "none, for there was no update"
            raise ConfigurationError(f"There is no metric episodic_return to plot: {found}.")
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
        parts = [f"Run of {self.title}", f"{len(self.seeds)} seeds", f"{self.num_updates} updates"]
        parts.append(f"{self.seconds:.1f} s")
        if self.evaluation is not None:
            parts.append(f"mean return {return_text(self.evaluation.summary.mean)}")
            for name, x in self.evaluated_costs.items():
                parts.append(f"mean cost {name} {return_text(x['mean'])}")
        parts += [f"stopped by {self.stopped_by}"] if self.stopped_by else []
        parts += [f"without seed {seed}" for seed in self.broken]
        return f"<{', '.join(parts)}>"


def write_policy(plan: RunPlan, run: Run, cause: Exception | None = None) -> None:
    """Writes the policies of a run, and its picture where there is something to draw.

    Raises:
        PolicyFailure: if the folder cannot take the policies, on a full disk or where it was
            removed. It tells what else went wrong, and where the policies are.
        StorageFailure: if the picture cannot be written, and nothing went wrong before.
    """
    if plan.folder is None or not is_first():
        return
    scores = excess = None
    if run.evaluation is not None:  # a seed that has stopped is never the best
        scores = np.nan_to_num(run.evaluation.per_seed, nan=-np.inf)
        excess = np.nan_to_num(run.evaluated_excess, nan=np.inf)
    save = lambda path: save_policy(path, run.algorithm, run.learnt, run.seeds, scores, excess)
    try:
        if isinstance(cause, FileGone):  # and the folder may be that of another run by now
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
        with nullcontext() if cause is None else suppress(StorageFailure):  # of the same disk
            write_whole(plan.folder / "learning_curve.png", picture)


def write_summary(plan: RunPlan, run: Run, wall_seconds: float) -> None:
    """Writes the policies with their scores and `summary.json` of a run that is finished."""
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

"""One call trains all seeds of a run, shows progress, evaluates the policies and writes files."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from rich.console import Console

from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.schedules import Schedule
from trpo_jax.analysis.statistics import summarize
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment, wide_bounds
from trpo_jax.envs.options import Cost, Wrapper
from trpo_jax.errors import EnvironmentFailure, MemoryFailure, PeerFailure, counted
from trpo_jax.processes import is_first
from trpo_jax.records.checkpoints import Saved, to_state
from trpo_jax.records.files import causes_kept
from trpo_jax.records.policies import learnt_from
from trpo_jax.records.resuming import differing_patches
from trpo_jax.running.defaults import DEFAULTS_FILE, sources_of
from trpo_jax.running.description import splits_runs
from trpo_jax.running.estimate import require_memory
from trpo_jax.running.evaluation import cut_note, evaluation_bound, make_evaluation
from trpo_jax.running.folder import open_folder
from trpo_jax.running.loop import (
    AgreedStop,
    Chunk,
    NonFiniteError,
    broken_text,
    compile_program,
    learnt_by,
    most_updates,
    resume_program,
    run_chunks,
    start_from,
)
from trpo_jax.running.plan import INTERRUPT, STOP_EVERY, RunPlan, plan_run
from trpo_jax.running.program import Program
from trpo_jax.running.progress import evaluation_progress, has_bar, progress_console, with_progress
from trpo_jax.running.recorder import Recorder
from trpo_jax.running.results import Evaluation, PolicyFailure, Run, write_policy, write_summary
from trpo_jax.running.task import DEFAULT_ENV

# The errors that may end a run which has begun.
FAILURES = (NonFiniteError, EnvironmentFailure, PeerFailure, MemoryFailure, OSError)
CALLBACK, RETURN = "callback", "return"  # values of `Run.stopped_by`, like INTERRUPT


def train(
    env: str | Environment = DEFAULT_ENV,
    config: Any = None,
    *,
    algorithm: str | ModuleType | Algorithm | None = None,
    agent: Any = None,
    seeds: int | Sequence[int] | None = None,
    total_steps: int | None = None,
    evaluation_episodes: int | None = None,
    env_processes: bool | None = None,
    env_args: Mapping[str, Any] | None = None,
    wrappers: Sequence[Wrapper] = (),
    env_timeout: float | None = None,
    costs: Sequence[Cost] = (),
    eval_every: int = 0,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 3,
    out: str | Path | None = None,
    resume: bool = False,
    log: Sequence[str] = (),
    progress: bool = True,
    callback: Callable[[Chunk], Any] | None = None,
    placement: Placement | None = None,
    schedules: Mapping[str, str | Schedule] | None = None,
    evaluation_steps: int | None = None,
    init_from: str | Path | None = None,
    stop_at_return: float | None = None,
) -> Run:
    """Trains an algorithm on an environment with several seeds in parallel, and returns the run.

    Settings that are not given have the values of `trpo_jax.defaults`, as in
    `experiments/train.py`. The same settings give the same numbers.

    An algorithm may return any metrics, or none: a flat dictionary of finite scalars for each
    update. Progress shows `episodic_return` and `kl`. The figure needs `episodic_return`, and
    `stop_at_return` also needs `num_episodes`, the number of episodes that `episodic_return` is the
    mean of. If a metric is missing, only the features that need it do not work.

    If an error ends a run that has begun, its attribute `run` holds everything that was done.

    Args:
        env: the name of an environment, or an `Environment`.
        config: the config of the algorithm.
        algorithm: the name of an algorithm, its module, or an `Algorithm`, which already has an
            environment, a config and an agent. None takes the module of the config's class, or
            TRPO if there is no config either.
        agent: a policy, a critic and an exploration that replace those of the config.
        seeds: a number n for the seeds 0 to n - 1, or the seeds themselves.
        total_steps: environment steps of each seed, rounded down to whole updates.
        evaluation_episodes: number of episodes for evaluating the policy of a seed.
        env_processes: whether the copies of a Gymnasium or PettingZoo environment run in processes,
            one for each core.
        env_args: keyword arguments for an environment that is given by its name.
        wrappers: functions that wrap the environment, or their names as "module:name", applied in
            order; see `trpo_jax.make_env`.
        env_timeout: the run fails if a reset or a step of the copies of an environment on the host
            takes more seconds than this. None for no limit.
        costs: costs of each step, in addition to those that the environment has; see
            `trpo_jax.make_env`.
        eval_every: evaluate during training too, before the first update and after every n-th
            update. 0 evaluates only at the end. The policies with the best mean return are kept as
            a checkpoint. Policies whose mean costs keep the limits of the last update come before
            others.
        checkpoint_every: number of updates from one checkpoint to the next. 0 for no checkpoints.
            None chooses the number so that checkpoints take at most 3 % of the time. Unless it is
            0, there is also a checkpoint at the end, even if the run stops early. Without `out`
            there are none.
        keep_checkpoints: number of latest checkpoints to keep, in addition to the best one.
        out: folder for the files of the run, which must be new or empty. None writes no files.
        resume: whether to continue the unfinished run in `out`, if there is one, as if it had never
            stopped. A larger `total_steps` makes the run longer, even if it is finished. Its
            schedules stay the same.
        log: names of further logs in `out`: "tensorboard", "wandb".
        progress: whether to show progress.
        callback: is called with each `Chunk` of updates, about once per second. If it returns a
            true value, the run saves its state and stops.
        placement: the devices of the run, from `trpo_jax.devices`; None for the default device.
        schedules: real-valued hyperparameters that change during the run, by name. A schedule is a
            text such as "linear:0.02:0.005", or a function of the environment steps that a seed has
            done, such as `optax.linear_schedule(0.02, 0.005, 100_000)`. The metrics contain the
            values.
        evaluation_steps: maximum number of steps of an evaluation episode. None for the time limit
            of the environment; without one, 100,000 on the device and 1,000 on the host.
        init_from: folder of a finished run, or its `policy.msgpack`. Every seed starts with the
            policy, the critic and the statistics of the best seed of that run, as
            `trpo_jax.load_policy` chooses it.
        stop_at_return: stop the run and evaluate it once the mean return of every seed over at
            least its last 20 training episodes reaches this number. This is checked after every
            tenth update.

    Returns:
        The run. If Ctrl-C or the callback stops it early, it holds everything that was done. A seed
        whose numbers are not finite stops alone, and `broken` names it.

    Raises:
        ConfigurationError: if a setting cannot work. It is raised before anything is compiled.
        NonFiniteError: if the numbers of all seeds are not finite.
        EnvironmentFailure: if the environment fails.
        MemoryFailure: if there is not enough memory.
        StorageFailure: if a file cannot be written.
        PeerFailure: if another process of the run is gone.

    Examples:
        >>> run = trpo_jax.train("CartPole-v1", seeds=2, total_steps=2_048, progress=False)
        >>> run.metrics["episodic_return"].shape  # [num_seeds, U]
        (2, 1)
        >>> run.evaluation.returns.shape  # [num_seeds, E]
        (2, 64)
        >>> action = run.policy(seed=1)(jnp.zeros(4))
    """
    settings = {name: x for name, x in locals().items() if name not in ("progress", "callback")}
    started = time.perf_counter()
    plan = plan_run(**settings)
    require_memory(plan.algorithm, len(plan.seeds), plan.evaluation_episodes, plan.placement)
    console = progress_console(progress and is_first())
    with ExitStack() as stack:
        saved = open_folder(plan, stack)
        say_plan(plan, saved, console)
        with causes_kept(plan.folder):
            host = " and starting environments" if plan.env.open else ""
            with console.status(f"Compiling{host}") as status:
                tell = status.update if has_bar(console) else console.print
                program = compile_plan(plan, saved, tell)
            console.print(
                f"Compiled for {plan.description['placement']} in {program.compile_seconds:.1f} s"
            )
            with closing(program):
                return run_program(plan, program, saved, console, callback, started)


def say_plan(plan: RunPlan, saved: Saved | None, console: Console) -> None:
    """Prints the algorithm, the environment, the seeds and the length of a run, and warnings.

    For a resumed run, prints where it continues and how it differs from one without a stop.
    """
    seeds, total = plan.seeds, plan.num_updates * plan.algorithm.steps_per_update
    ends = f"{seeds[0]} to {seeds[-1]}" if len(seeds) == seeds[-1] - seeds[0] + 1 else f"{seeds}"
    of_seeds = f"for seed {seeds[0]}" if len(seeds) == 1 else f"for each of the seeds {ends}"
    updates = counted(plan.num_updates, "update")
    console.print(f"{plan.title}: {total:,} steps in {updates} {of_seeds}")
    for note in plan.notes if is_first() else ():
        print(f"warning: {note}", file=sys.stderr)
    if is_first() and (wide := wide_bounds(plan.env)):
        print(f"warning: {wide}", file=sys.stderr)
    if not plan.resumed:
        say_defaults(plan, console)
        return
    if saved is None:
        console.print("There is no checkpoint to continue from, so the run starts again")
        return
    console.print(f"Continues after update {saved.num_updates:,}")
    if plan.env.open is not None:
        console.print(
            "Environments on the host cannot be stored. So their episodes start again, and the "
            "numbers differ from those of a run that never stopped"
        )
    patches = differing_patches(plan.description, saved.description)
    if patches and is_first():
        print(
            f"warning: The run continues with {patches}. So its numbers may differ in rounding "
            "from those of a run that never stopped, and environments may differ in details.",
            file=sys.stderr,
        )
    before = saved.description["placement"]
    if before != plan.description["placement"]:
        console.print(f"The run was on {before} before, so its numbers may differ in rounding")


def say_defaults(plan: RunPlan, console: Console) -> None:
    """Prints which tables of `defaults.toml` a run takes its defaults from.

    Nothing is printed if there is only the table of its own environment, or no table.
    """
    sources = sources_of(plan.name, plan.description["env"])
    if sources and sources != [plan.description["env"]]:
        tables = f"table{'s' * (len(sources) > 1)} {' and '.join(sources)}"
        console.print(f"Defaults: {tables} of {DEFAULTS_FILE.name}")


def compile_plan(plan: RunPlan, saved: Saved | None, tell: Callable[[str], None]) -> Program:
    """Returns the program of a run. If there is a checkpoint, the program has its state."""
    num_done = saved.num_updates if saved else 0
    program = compile_program(
        plan.algorithm, plan.seeds, most_updates(len(plan.seeds)), num_done, plan.placement, tell
    )
    if saved is None and plan.init_from is None:
        return program
    try:
        if saved is None:
            return start_from(program, learnt_from(plan.init_from, plan.algorithm, plan.seeds))
        return resume_program(program, to_state(program.state, saved.arrays))
    except BaseException:
        program.close()
        raise


def run_program(
    plan: RunPlan,
    program: Program,
    saved: Saved | None,
    console: Console,
    callback: Callable[[Chunk], Any] | None,
    started: float,
) -> Run:
    """Runs a compiled plan until it ends or is stopped, and writes its files."""
    whole_runs = plan.placement is not None and splits_runs(plan.placement)
    evaluation = make_evaluation(
        plan.env,
        plan.algorithm.policy,
        plan.evaluation_episodes,
        placement=plan.placement if whole_runs else None,
        max_steps=plan.evaluation_steps,
        num_envs=plan.num_envs if plan.env.open else None,
        carry=plan.algorithm.carry,
    )
    with ExitStack() as stack:
        recorder = Recorder(plan, evaluation, saved, learnt_by(program.state), stack)
        unfinished = lambda reason: Run(
            plan.env,
            plan.algorithm,
            plan.config,
            plan.seeds,
            recorder.metrics.columns(),
            None,
            recorder.evaluations.columns(),
            recorder.learnt,
            recorder.num_updates,
            recorder.seconds,
            program.compile_seconds,
            recorder.costs(),
            plan.folder,
            reason,
            plan.title,
            plan.name,
            recorder.broken,
        )
        try:
            try:
                reason = learn(plan, program, recorder, console, callback)
                recorder.save_state()
            except KeyboardInterrupt as interrupt:
                reason = INTERRUPT
                if jax.process_count() == 1 or isinstance(interrupt, AgreedStop):
                    recorder.save_state()
            stack.close()
            run = unfinished(reason)
            write_policy(plan, run)
            if reason in (INTERRUPT, CALLBACK):
                return run
            program.close()  # otherwise twice as many environments would be open
            try:
                with evaluation_progress(console, "Evaluating") as tell:
                    played = recorder.evaluate(tell=tell)
            except KeyboardInterrupt:
                return run._replace(stopped_by=INTERRUPT)
        except Exception as error:
            error.run = unfinished(type(error).__name__)
            if isinstance(error, EnvironmentFailure) and jax.process_count() == 1:
                recorder.save_state()
            if not isinstance(error, PolicyFailure):
                write_policy(plan, error.run, error)
            raise
    scores = played.returns.mean(axis=1)
    summary = summarize(scores[~np.isnan(scores)])
    found = Evaluation(played.returns, played.cut, scores, summary, played.costs)
    run = run._replace(evaluation=found)
    note = cut_note(played.cut, evaluation_bound(plan.env, plan.evaluation_steps))
    if note:
        console.print(note, soft_wrap=True)
    for warning in run.limit_warnings if is_first() else ():
        print(f"warning: {warning}", file=sys.stderr)
    write_summary(plan, run, time.perf_counter() - started)
    return run


def learn(
    plan: RunPlan,
    program: Program,
    recorder: Recorder,
    console: Console,
    callback: Callable[[Chunk], Any] | None = None,
) -> str | None:
    """Runs a program and gives its chunks to a recorder. Returns what stopped it early, or None."""
    recorder.start()
    chunks = run_chunks(
        program,
        plan.num_updates,
        recorder.num_updates,
        recorder.seconds,
        plan.pace,
        recorder.broken,
    )
    per_update = plan.algorithm.steps_per_update
    with closing(
        with_progress(chunks, console, len(plan.seeds), plan.num_updates, per_update)
    ) as displayed:
        for chunk in displayed:
            new = {seed: x for seed, x in chunk.broken.items() if seed not in recorder.broken}
            if new:
                console.print(f"warning: {broken_text(new)}", soft_wrap=True)
            recorder.take(chunk)
            if callback is not None and callback(chunk):
                return CALLBACK
            last, threshold = chunk.last_update, plan.stop_at_return
            if threshold is None or last == plan.num_updates or last % STOP_EVERY:
                continue
            if recorder.reached(threshold):
                return RETURN
    return None

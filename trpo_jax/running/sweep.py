"""One call runs many settings with several seeds each, and ranks the settings."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from trpo_jax import envs
from trpo_jax.analysis.returns import return_text
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, counted, unknown_name
from trpo_jax.processes import decided_by_first, is_first
from trpo_jax.records.files import (
    causes_kept,
    cell,
    create_run_folder,
    locked,
    write_csv,
    write_json,
    write_whole,
)
from trpo_jax.records.resuming import differing_settings
from trpo_jax.records.runs import as_numbers, damaged, read_object, read_rows
from trpo_jax.running.defaults import SPACES_FILE, defaults_for
from trpo_jax.running.description import (
    as_json,
    config_to_dict,
    describe_placement,
    provenance,
    refuse_other_processes,
)
from trpo_jax.running.estimate import require_memory
from trpo_jax.running.evaluation import make_evaluation
from trpo_jax.running.loop import most_updates
from trpo_jax.running.plan import INTERRUPT
from trpo_jax.running.progress import progress_console, sweep_progress
from trpo_jax.running.settings import SCORES, choose_seeds, require_at_least
from trpo_jax.running.sweep_plan import Compilation, Setting, compilations, plan_settings
from trpo_jax.running.sweep_program import compile_host_sweep, compile_sweep, run_block, score_block
from trpo_jax.running.sweep_ranking import (
    STEPS,
    Key,
    Ranked,
    measure,
    measured_with,
    rank,
    write_ranking,
)
from trpo_jax.running.task import (
    DEFAULT_ENV,
    Task,
    choose_task,
    command_of,
    make_of,
    require_on_device,
)

DPI = 150
DESCRIPTION, RESULTS, RANKING = "sweep.json", "results.csv", "settings.csv"


class Sweep(NamedTuple):
    """The results of a sweep, from `trpo_jax.sweep`. The sweep is finished, or was stopped.

    Attributes:
        title: the algorithm and the environment, for headings.
        name: the name of the algorithm.
        config: the config that every setting changes.
        settings: for each setting, the values of the swept hyperparameters by name.
        seeds: the seeds of every setting.
        score: the score that ranks the settings, "evaluation" or "training".
        results: one row for each finished run, in the order of settings and seeds. A row has
            `setting` (the number of the setting), the swept values, `seed`, `evaluation_return` (of
            the final policy), `training_return` (of the episodes that ended in the second half of
            the run), `kl` and `rejected` (means over updates), and `broken_update` (the first
            update whose numbers were not finite, or 0). A missing number is NaN. If the environment
            has one cost, `evaluation_cost` and `training_cost` follow the returns. If it has
            several, `evaluation_cost_<name>` and `training_cost_<name>` follow for each cost.
        ranking: the settings whose runs are all finished, the best first. Settings whose mean costs
            over seeds keep their limits come before other settings.
        folder: the folder of the files, or None.
        stopped_by: "interrupt" if Ctrl-C stopped the sweep, otherwise None.
        check: the command line that trains the best setting with seeds that the sweep did not use;
            None if there is no such command.

    Examples:
        >>> small = trpo_jax.trpo.Config(num_envs=4, num_steps=128)
        >>> options = {"total_steps": 1_024, "evaluation_episodes": 2, "progress": False}
        >>> found = trpo_jax.sweep(config=small, grid={"max_kl": [0.005, 0.02]}, seeds=2, **options)
        >>> len(found.results), len(found.ranking)  # runs, settings
        (4, 2)
        >>> found.ranking[0].scores.shape  # the best setting, [num_seeds]
        (2,)
    """

    title: str
    name: str
    config: Any
    settings: list[Setting]
    seeds: tuple[int, ...]
    score: str
    results: list[dict[str, Any]]
    ranking: list[Ranked]
    folder: Path | None
    stopped_by: str | None
    check: list[str] | None

    def plot(self) -> Any:
        """Returns a matplotlib figure of the scores over the swept hyperparameters.

        Raises:
            ConfigurationError: if no setting is done.
        """
        from trpo_jax.figures.sweeps import sweep_figure

        if not self.ranking:
            raise ConfigurationError(
                "No setting of the sweep is finished, so there is nothing to plot."
            )
        done = sorted(self.ranking, key=lambda x: x.index)
        return sweep_figure(
            {name: [x.setting[name] for x in done] for name in done[0].setting},
            np.stack([x.scores for x in done]),
            self.title,
            self.name,
            np.array([x.excess for x in done]),
        )

    @property
    def over_limits(self) -> bool:
        """Whether only limits on costs were swept, and one of the settings is finished."""
        swept_alone = set(self.settings[0]) == {"cost_limit"}
        return swept_alone and bool(self.ranking) and bool(self.ranking[0].costs)

    def plot_costs(self) -> Any:
        """Returns a matplotlib figure of return against cost, for a sweep over only limits.

        Raises:
            ConfigurationError: if something else was swept, or no setting is finished.
        """
        from trpo_jax.figures.sweeps import limits_figure

        if not self.over_limits:
            raise ConfigurationError(
                "A figure of return against cost needs a sweep over only cost_limit, such as grid "
                '= {"cost_limit": (5, 10, 20)}, and at least one finished setting.'
            )
        return limits_figure(
            [x.setting["cost_limit"] for x in self.ranking],
            np.stack([x.scores for x in self.ranking]),
            {
                name: np.stack([x.costs[name] for x in self.ranking])
                for name in self.ranking[0].costs
            },
            self.title,
            self.name,
        )

    def __repr__(self) -> str:
        """Returns the sweep in one line."""
        parts = [f"Sweep of {self.title}", counted(len(self.settings), "setting")]
        parts += [counted(len(self.seeds), "seed")]
        if self.ranking and self.ranking[0].summary is not None:
            values = ", ".join(f"{name} = {x}" for name, x in self.ranking[0].setting.items())
            parts.append(f"best {values} with {return_text(self.ranking[0].summary.iqm)}")
        parts += [f"stopped by {self.stopped_by}"] if self.stopped_by else []
        return f"<{', '.join(parts)}>"


class SweepPlan(NamedTuple):
    """A sweep whose settings have been checked.

    Attributes:
        task: the environment, the algorithm and the config that every setting changes.
        settings: for each setting, the values of the swept hyperparameters.
        seeds: the seeds of every setting.
        total_steps: environment steps of each run.
        evaluation_episodes: number of episodes for evaluating the final policy of each run.
        batch: maximum number of runs in parallel; None for the default.
        folder: the folder of the files; None for no files.
        description: the contents of `sweep.json`.
        placement: the devices of the sweep; None for the default device.
    """

    task: Task
    settings: list[Setting]
    seeds: tuple[int, ...]
    total_steps: int
    evaluation_episodes: int
    batch: int | None
    folder: Path | None
    description: dict[str, Any]
    placement: Placement | None


def sweep(
    env: str | Environment = DEFAULT_ENV,
    config: Any = None,
    *,
    algorithm: str | ModuleType | None = None,
    grid: Mapping[str, Any] | None = None,
    ranges: Mapping[str, Any] | None = None,
    random: int | None = None,
    seeds: int | Sequence[int] = 4,
    total_steps: int | None = None,
    evaluation_episodes: int = 16,
    score: str = "evaluation",
    batch: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    placement: Placement | None = None,
    env_processes: bool | None = None,
    env_args: Mapping[str, Any] | None = None,
    wrappers: Sequence[envs.Wrapper] = (),
    env_timeout: float | None = None,
    costs: Sequence[envs.Cost] = (),
) -> Sweep:
    """Trains an algorithm with many settings of its hyperparameters, and ranks the settings.

    Settings that differ only in real-valued hyperparameters share one compiled program. Each value
    of another hyperparameter needs a program of its own.

    Args:
        env: the name of an environment, or an `Environment`.
        config: the config that every setting changes; None for the tuned config.
        algorithm: the name of an algorithm, or its module; None as in `trpo_jax.train`.
        grid: values of each hyperparameter by name. Every combination is a setting.
        ranges: `(low, high, scale)` of real-valued hyperparameters by name. The scale is "linear",
            "log" or "log1m". None for the ranges of `search_spaces.toml`.
        random: number of settings to draw at random from the ranges. The first one has the values
            of the config.
        seeds: number of seeds for each setting, or the seeds themselves.
        total_steps: environment steps of each run; None for the tuned number.
        evaluation_episodes: number of episodes for evaluating the final policy of each run.
        score: the score that ranks the settings. "evaluation" is the return of the final policy.
            "training" is the return of the training episodes in the second half of a run. If there
            are limits on costs, the settings whose mean costs of these episodes keep their own
            limits come first.
        batch: maximum number of runs in parallel. If the environment runs on the host, None stands
            for as many whole settings as keep twice the number of cores busy, and for at least one
            setting. Otherwise it stands for 16 on a CPU, and for as many as fit into half of the
            free memory on an accelerator.
        out: folder for files, which are written after every block of runs. If it holds the same
            sweep, that sweep is continued. None writes no files.
        progress: whether to show progress.
        placement: the devices that the runs are split over; None for the default device.
        env_processes: whether the copies of a Gymnasium or PettingZoo environment run in processes,
            one for each core.
        env_args: keyword arguments for an environment that is given by its name.
        wrappers: functions that wrap the environment, or their names; see `trpo_jax.make_env`.
        env_timeout: most seconds that a reset or a step of an environment on the host may take.
        costs: costs of each step, in addition to those that the environment has; see
            `trpo_jax.make_env`.

    Returns:
        The sweep. If Ctrl-C stops it early, it holds the finished runs.

    Raises:
        ConfigurationError: if a setting cannot work, or the folder holds something else.
        EnvironmentFailure: if an environment on the host fails. Earlier results are kept.
        MemoryFailure: if there is not enough memory.
        StorageFailure: if a file cannot be written.
        PeerFailure: if another process of the sweep is gone.

    Examples:
        >>> small = trpo_jax.trpo.Config(num_envs=4, num_steps=128)
        >>> options = {"total_steps": 1_024, "evaluation_episodes": 2, "progress": False}
        >>> ranges = {"max_kl": (1e-3, 1e-1, "log")}
        >>> found = trpo_jax.sweep(config=small, ranges=ranges, random=2, seeds=2, **options)
        >>> found.settings[0]  # the first setting has the values of the config
        {'max_kl': 0.01}
        >>> [row["seed"] for row in found.results]
        [0, 1, 0, 1]
    """
    if score not in SCORES:
        raise unknown_name("score", score, SCORES)
    require_at_least(evaluation_episodes=(evaluation_episodes, 1), batch=(batch, 1))
    options = envs.Options(env_args or {}, wrappers, env_processes, env_timeout, costs)
    task = choose_task(env, config, algorithm, total_steps, options)
    if placement is not None:
        require_on_device(task.env, "Several devices share")
    spaces = defaults_for(task.name, task.env_name, SPACES_FILE)
    plan = SweepPlan(
        task,
        plan_settings(task.config, grid or {}, ranges or {}, random, spaces),
        choose_seeds(seeds),
        task.tuned.total_steps if total_steps is None else total_steps,
        evaluation_episodes,
        batch,
        None if out is None else Path(out),
        {},
        placement,
    )
    require_two_batches(plan)
    description = describe(plan, score, grid or {}, ranges or {}, random)
    plan = plan._replace(description=description)
    refuse_other_processes(description, score=score, batch=batch)
    console = progress_console(progress and is_first())
    with ExitStack() as stack, causes_kept(plan.folder):
        return run_sweep(plan, score, console, stack)


def run_sweep(plan: SweepPlan, score: str, console: Console, stack: ExitStack) -> Sweep:
    """Runs the unfinished runs of a sweep. Its folder is locked until the stack closes."""
    rows = [] if plan.folder is None else decided_by_first(lambda: open_folder(plan, stack))
    results = {(row["setting"], row["seed"]): row for row in rows}
    say_plan(plan, len(results), console)
    stopped_by = None
    try:
        for compilation in compilations(plan.task.config, plan.settings):
            pending = [
                (index, seed)
                for index in compilation.indices
                for seed in plan.seeds
                if (index, seed) not in results
            ]
            if pending:
                run_compilation(plan, compilation, pending, results, console)
                jax.clear_caches()  # programs of finished runs would fill the memory
    except KeyboardInterrupt:
        stopped_by = INTERRUPT
    config = config_to_dict(plan.task.config)
    ranking = rank(plan.settings, plan.seeds, results, f"{score}_return", config)
    found = Sweep(
        f"{plan.task.name.upper()} on {plan.task.env.name}",
        plan.task.name,
        plan.task.config,
        plan.settings,
        plan.seeds,
        score,
        table(plan, results),
        ranking,
        plan.folder,
        stopped_by,
        check_command(plan, ranking),
    )
    if plan.folder is not None and is_first() and stopped_by is None:
        write_ranking(plan.folder / RANKING, ranking)
        write_figures(found)
    return found


def require_two_batches(plan: SweepPlan) -> None:
    """Raises a ConfigurationError if a setting cannot work, or a run has fewer than two updates."""
    task = plan.task
    for setting in plan.settings:
        steps = make_of(task, task.config.replace(**setting)).steps_per_update
        if plan.total_steps < 2 * steps:
            raise ConfigurationError(
                f"total_steps = {plan.total_steps:,} is less than two batches of {steps:,} steps. "
                "Raise total_steps, or make a batch smaller."
            )


def describe(
    plan: SweepPlan,
    score: str,
    grid: Mapping[str, Any],
    ranges: Mapping[str, Any],
    num_random: int | None,
) -> dict[str, Any]:
    """Returns the contents of `sweep.json`: everything that is needed to repeat the sweep."""
    task, seeds = plan.task, plan.seeds
    given = {"random": num_random, "seed": seeds[0], "num_seeds": len(seeds), "batch": plan.batch}
    given |= {"evaluation_episodes": plan.evaluation_episodes, "score": score, "out": plan.folder}
    usual = {"random": None, "seed": 0, "num_seeds": 4, "batch": None}
    usual |= {"evaluation_episodes": 16, "score": "evaluation", "out": None}
    given = {name: x for name, x in given.items() if x != usual[name]}
    command = command_of(task, "sweep", total_steps=plan.total_steps, **given)
    for name, values in grid.items():
        command.append(f"--grid={name}={','.join(map(_word, values))}")
    for name, values in ranges.items():
        command.append(f"--range={name}={':'.join(map(str, values))}")
    consecutive = seeds == tuple(range(seeds[0], seeds[0] + len(seeds)))
    return as_json(
        {
            "command": command if task.named and consecutive else None,
            "env": task.env_name,
            "algorithm": task.name,
            "seeds": seeds,
            "total_steps": plan.total_steps,
            "evaluation_episodes": plan.evaluation_episodes,
            **task.options.described(),
            "config": config_to_dict(task.config),
            "settings": plan.settings,
            "placement": describe_placement(plan.placement),
            **provenance(task.env_name),
        }
    )


def _word(value: Any) -> str:
    """Returns a value in the form that a flag takes."""
    if isinstance(value, tuple | list):
        return "x".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def open_folder(plan: SweepPlan, stack: ExitStack) -> list[dict[str, Any]]:
    """Returns the results in the folder of a sweep, and creates the folder if there is none.

    The folder is locked until the stack closes.

    Raises:
        ConfigurationError: if the folder holds something else, or a sweep with other settings.
    """
    folder = plan.folder
    stack.enter_context(locked(folder))
    if not (folder / DESCRIPTION).is_file():
        create_run_folder(folder)
        write_json(folder / DESCRIPTION, plan.description)
        return []
    found = read_object(folder / DESCRIPTION, ("env", "config", "versions"))
    different = differing_settings(plan.description, found)
    if different:
        raise ConfigurationError(
            f"The sweep in {folder} has {different}. Choose another folder with --out, or continue "
            "it with the command that it was started with."
        )
    if not (folder / RESULTS).is_file():
        return []
    return read_results(folder / RESULTS, plan)


def read_results(path: Path, plan: SweepPlan) -> list[dict[str, Any]]:
    """Returns the runs of a sweep whose results are in a file.

    Raises:
        ConfigurationError: if the file is damaged. It names the line.
    """
    columns, rows = read_rows(path)
    names = ("setting", "seed", *measured_with(plan.task.env.costs))
    lacking = [name for name in names if columns.count(name) != 1]
    if rows and lacking:
        raise damaged(path, 1, f"it has no column {lacking[0]}, or has it twice")
    chosen = [[row[columns.index(name)] for name in names] for row in rows]
    table = as_numbers(path, names, chosen)
    known = {(index, seed) for index in range(len(plan.settings)) for seed in plan.seeds}
    found: list[dict[str, Any]] = []
    for line, (row, numbers) in enumerate(zip(rows, table.tolist(), strict=True), start=2):
        key, cells = tuple(numbers[:2]), dict(zip(columns, row, strict=True))
        if key not in known or any(
            cells.get(name) != cell(value) for name, value in plan.settings[int(key[0])].items()
        ):
            raise damaged(path, line, "it is not a run of this sweep, or it occurs twice")
        known.remove(key)
        places = {"setting": int(key[0]), "seed": int(key[1])}
        found.append(places | dict(zip(names[2:], numbers[2:], strict=True)))
    return found


def say_plan(plan: SweepPlan, num_done: int, console: Console) -> None:
    """Prints the algorithm, the environment and the number of runs of a sweep."""
    num_settings, num_seeds = len(plan.settings), len(plan.seeds)
    console.print(
        f"{plan.task.name.upper()} on {plan.task.env.name}: {counted(num_settings, 'setting')} x "
        f"{counted(num_seeds, 'seed')} = {counted(num_settings * num_seeds, 'run')}, "
        f"{plan.total_steps:,} steps each",
        soft_wrap=True,
    )
    if num_done:
        console.print(f"{num_done} of these runs are finished already")


def run_compilation(
    plan: SweepPlan,
    compilation: Compilation,
    pending: Sequence[Key],
    results: dict[Key, dict[str, Any]],
    console: Console,
) -> None:
    """Runs the pending runs of a compilation, block by block, and adds them to the results.

    The file of results is written after every block.
    """
    config, module = plan.task.config.replace(**compilation.static), plan.task.module
    fields = [name for name in plan.settings[0] if name not in compilation.static]
    algorithm = module.make(plan.task.env, config)
    num_updates = plan.total_steps // algorithm.steps_per_update
    make = lambda values: module.make(plan.task.env, config.replace(**values))
    room = most_updates(len(pending))
    require_memory(algorithm, 1, plan.evaluation_episodes, plan.placement)
    with console.status("Compiling"):
        if plan.task.env.open is None:
            program = compile_sweep(make, fields, len(pending), room, plan.batch, plan.placement)
        else:
            program = compile_host_sweep(make, fields, plan.batch or host_block(plan.seeds), room)
    values = ", ".join(f"{name} = {value}" for name, value in compilation.static.items())
    size = program.block_size
    takes = f"{counted(size, 'run')} at a time"
    if program.num_bytes is not None:
        on_each = "" if plan.placement is None else " on each device"
        takes += f": {program.num_bytes / 1e6:,.0f} MB{on_each}"
    console.print(
        f"Compiled for {values or 'all settings'}, on {describe_placement(plan.placement)}, in "
        f"{program.seconds:.1f} s; {takes}",
        soft_wrap=True,
    )
    evaluation = make_evaluation(
        plan.task.env,
        algorithm.policy,
        plan.evaluation_episodes,
        placement=plan.placement,
        num_envs=config.num_envs,
        carry=algorithm.carry,
    )
    blocks = [pending[start : start + size] for start in range(0, len(pending), size)]
    per_update = algorithm.steps_per_update
    with sweep_progress(console, len(pending), num_updates, per_update) as show:
        for block in blocks:
            seeds = [seed for _, seed in block]
            columns = {
                name: np.array([plan.settings[index][name] for index, _ in block], np.float32)
                for name in fields
            }
            chunks = run_block(program, seeds, columns, num_updates)
            scores, actor = score_block(show(chunks, len(block)), num_updates)
            copies = len(scores.broken_update) - len(seeds)  # they fill up a block on the device
            filled = [*seeds, *[seeds[-1]] * copies]
            measured = measure(plan.task.env, evaluation(actor, filled), scores)
            for place, (index, seed) in enumerate(block):
                row = {name: float(x[place]) for name, x in measured.items()}
                if row["broken_update"]:
                    row |= {name: np.nan for name in row if name not in STEPS}
                results[index, seed] = {"setting": index, "seed": seed, **row}
            if plan.folder is not None and is_first():
                rows = table(plan, results)
                write_csv(plan.folder / RESULTS, list(rows[0]), [row.values() for row in rows])


def host_block(seeds: Sequence[int]) -> int:
    """Returns the default number of runs in parallel if the environment runs on the host.

    A block has whole settings, with two runs for each core.
    """
    return len(seeds) * max(1, 2 * (os.cpu_count() or 1) // len(seeds))


def table(plan: SweepPlan, results: Mapping[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of all results, in the order of settings and seeds."""
    names = measured_with(plan.task.env.costs)
    return [
        {"setting": index, **plan.settings[index], "seed": seed}
        | {name: row[name] for name in names}
        for (index, seed), row in sorted(results.items())
    ]


def check_command(plan: SweepPlan, ranking: Sequence[Ranked]) -> list[str] | None:
    """Returns the command line that trains the best setting with fresh seeds, or None."""
    if not ranking or not plan.task.named:
        return None
    best = plan.task._replace(config=plan.task.config.replace(**ranking[0].setting))
    fresh = {"seed": max(plan.seeds) + 1, "num_seeds": len(plan.seeds)}
    return command_of(best, **fresh, total_steps=plan.total_steps)


def write_figures(found: Sweep) -> None:
    """Writes the figures of a sweep, each as PNG and as PDF."""
    from trpo_jax.figures.curves import file_of

    figures = {"sweep": found.plot()}
    if found.over_limits:
        figures["return_against_cost"] = found.plot_costs()
    for name, figure in figures.items():
        for kind in ("png", "pdf"):
            write_whole(found.folder / f"{name}.{kind}", file_of(figure, kind, DPI))

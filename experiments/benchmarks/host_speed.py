"""Compares training on host environments with the bare environments under random actions.

All other flags go to train.py. Training and the bare environments take turns in one process, so a
busy machine slows both. Times leave out compilation. A bare environment is one pool with the
environments of one seed, made as in training, that has the machine for itself.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.envs.specs import Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, counted
from trpo_jax.host_rollout import failures_named
from trpo_jax.running.loop import compile_program
from trpo_jax.running.plan import RunPlan

UPDATES = 5  # in each turn of training
TASKS = ("envpool/Hopper-v4", "envpool/HalfCheetah-v4")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        args, flags = build_parser().parse_known_args(argv)
        if args.repeats < 1:
            raise ConfigurationError(f"repeats = {args.repeats} must be at least 1.")
        seeds = ["--num-seeds", str(args.num_seeds)]
        runs = [plan_of(["--env", env, *seeds, *flags]) for env in args.env or TASKS]
        for run in runs:
            if run.env.open is None:
                raise ConfigurationError(
                    f"{run.env.name} does not run on the host. Choose an environment of gym/ or "
                    "envpool/."
                )
    try:
        with ExitStack() as stack:
            tasks = [start(run, stack) for run in runs]
            turns = [[turn() for turn in tasks] for _ in range(args.repeats)]
    except EnvironmentFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seeds, repeats = counted(args.num_seeds, "seed"), counted(args.repeats, "turn")
    title = f"{seeds}, medians of {repeats}, steps/s"
    table = Table("environment", "environments a seed", "training", "bare", "share", title=title)
    for run, (bare, training) in zip(runs, np.moveaxis(turns, 0, -1), strict=True):
        rates = (f"{np.median(x):,.0f}" for x in (training, bare))
        share = f"{np.median(training / bare):.0%}"
        table.add_row(run.env.name, str(run.config.num_envs), *rates, share)
    console.print(table)
    return 0


def start(run: RunPlan, stack: ExitStack) -> Callable[[], tuple[float, float]]:
    """Returns a function that measures steps per second of the bare environment and of training.

    Steps of training are summed over all seeds.

    Args:
        run: the run.
        stack: closes the environments.

    Raises:
        EnvironmentFailure: if the environment fails.
    """
    num_envs, steps = run.config.num_envs, run.algorithm.steps_per_update * UPDATES
    pool = stack.enter_context(closing(run.env.open(0, num_envs)))
    program = stack.enter_context(closing(compile_program(run.algorithm, run.seeds, UPDATES)))
    with failures_named(run.env):
        pool.reset(np.ones(num_envs, bool))
    actions = random_actions(run.env, num_envs, steps // num_envs)
    state, _ = program.advance(program.state, UPDATES)  # the first call compiles the policy

    def turn() -> tuple[float, float]:
        nonlocal state
        started = time.perf_counter()
        with failures_named(run.env):
            step_with(pool, actions)
        between = time.perf_counter()
        state, _ = program.advance(state, UPDATES)
        trained = steps * len(run.seeds) / (time.perf_counter() - between)
        return steps / (between - started), trained

    return turn


def random_actions(env: Environment, num_envs: int, num_steps: int) -> np.ndarray:
    """Returns uniform random actions in the form that the environment takes, `[T, B, ...]`."""
    generator, shape = np.random.default_rng(0), (num_steps, num_envs)
    match env.action:
        case Discrete(num_actions, start):
            return start + generator.integers(num_actions, size=shape)
        case MultiDiscrete(num_actions, start):
            return (start or 0) + generator.integers(num_actions, size=(*shape, len(num_actions)))
        case Box(low, high):
            low, high = np.where(np.isfinite(low), low, -1), np.where(np.isfinite(high), high, 1)
            return generator.uniform(low, high, size=(*shape, *low.shape))


def step_with(pool: Pool, actions: np.ndarray) -> None:
    """Steps a pool with these actions. Resets the environments whose episode has ended."""
    for action in actions:
        result = pool.step(action)
        done = result.terminated | result.truncated
        if done.any():
            pool.reset(done)


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.replace("\n", " "), allow_abbrev=False)
    add = parser.add_argument
    help_text = "name of an environment of gym/ or envpool/. May be given several times (default: "
    help_text += f"{' and '.join(TASKS)})"
    add("--env", action="append", metavar="NAME", help=help_text)
    help_text = "number of seeds that train side by side (default: 2)"
    add("--num-seeds", type=int, default=2, metavar="N", help=help_text)
    help_text = "number of turns; use at least 5 for a number to publish (default: 9)"
    add("--repeats", type=int, default=9, metavar="N", help=help_text)
    return parser


if __name__ == "__main__":
    sys.exit(main())

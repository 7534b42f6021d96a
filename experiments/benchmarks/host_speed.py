"""Compares training on a host environment with the bare environment under random actions.

All other flags go to train.py. Training and the bare environment take turns in one process, so a
busy machine slows both. Times leave out compilation. The bare environment is one pool, made as in
training, that has the machine for itself.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from rich.console import Console

from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.envs.specs import Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.host_rollout import failures_named
from trpo_jax.running.loop import compile_program
from trpo_jax.running.plan import RunPlan

UPDATES = 5  # in each turn of training


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        args, flags = build_parser().parse_known_args(argv)
        if args.repeats < 1:
            raise ConfigurationError(f"repeats = {args.repeats} must be at least 1.")
        run = plan_of(["--env", args.env, "--num-seeds", str(args.num_seeds), *flags])
        if run.env.open is None:
            raise ConfigurationError(
                f"{args.env} does not run on the host. Choose an environment of gym/ or envpool/."
            )
    try:
        bare, training = measure(run, args.repeats)
    except EnvironmentFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(
        f"{args.env}, {run.config.num_envs} environments a seed, {args.num_seeds} seeds, "
        f"medians of {args.repeats} turns: bare environment {np.median(bare):,.0f} steps/s, "
        f"training {np.median(training):,.0f} steps/s "
        f"({np.median(np.divide(training, bare)):.0%} of the bare environment)"
    )
    return 0


def measure(run: RunPlan, repeats: int) -> tuple[list[float], list[float]]:
    """Returns steps per second of the bare environment and of training, for each turn.

    Steps of training are summed over all seeds.

    Raises:
        EnvironmentFailure: if the environment fails.
    """
    num_envs, steps = run.config.num_envs, run.algorithm.steps_per_update * UPDATES
    bare, training = [], []
    with (
        closing(run.env.open(0, num_envs)) as pool,
        closing(compile_program(run.algorithm, run.seeds, UPDATES)) as program,
    ):
        with failures_named(run.env):
            pool.reset(np.ones(num_envs, bool))
        actions = random_actions(run.env, num_envs, steps // num_envs)
        state, _ = program.advance(program.state, UPDATES)  # the first call compiles the policy
        for _ in range(repeats):
            started = time.perf_counter()
            with failures_named(run.env):
                step_with(pool, actions)
            between = time.perf_counter()
            state, _ = program.advance(state, UPDATES)
            bare.append(steps / (between - started))
            training.append(steps * len(run.seeds) / (time.perf_counter() - between))
    return bare, training


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
    help_text = "name of an environment of gym/ or envpool/ (default: envpool/Hopper-v4)"
    add("--env", default="envpool/Hopper-v4", metavar="NAME", help=help_text)
    help_text = "number of seeds that train side by side (default: 2)"
    add("--num-seeds", type=int, default=2, metavar="N", help=help_text)
    help_text = "number of turns; use at least 5 for a number to publish (default: 9)"
    add("--repeats", type=int, default=9, metavar="N", help=help_text)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Random search over the real-valued hyperparameters of an algorithm, all trials in one program.

The first trial is the settings as they are; the others are drawn from `search_spaces.toml`.
The score of a trial is the mean return of the training episodes that end in the second half of the
run, averaged over its seeds. Every algorithm gets the same number of trials, seeds and steps.
"""

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from command_line import (
    Parser,
    add_config_flags,
    cache_compilations,
    config_from,
    defaults_for,
    first_pass,
    require_on_device,
    step_count,
    user_errors,
)

from trpo_jax import algorithms, envs
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.training.files import create_run_folder

SPACES_FILE = Path(__file__).parent / "search_spaces.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the search, writes `trials.csv` and prints the best trial as a table of defaults."""
    with user_errors():
        first = first_pass(argv, env="CartPole-v1", algorithm="trpo")
        module = algorithms.get(first.algorithm)
        defaults = defaults_for(first.algorithm, first.env)
        spaces = defaults_for(first.algorithm, first.env, SPACES_FILE)
        parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
        parser.add_argument("--env", default="CartPole-v1", help="environment")
        parser.add_argument("--algorithm", default="trpo", help="algorithm")
        parser.add_argument("--num-trials", type=int, default=8, help="settings tried (default: 8)")
        parser.add_argument("--num-seeds", type=int, default=3, help="seeds of each (default: 3)")
        parser.add_argument("--total-steps", type=step_count, default=defaults["total_steps"])
        parser.add_argument("--out", type=Path, required=True, help="folder, new or empty")
        add_config_flags(parser, module, defaults)
        args = parser.parse_args(argv)
        env = envs.make(args.env)
        require_on_device(env, "Trials run")
        config = config_from(args, module)
        num_updates = args.total_steps // module.make(env, config).steps_per_update
        if min(num_updates // 2, args.num_trials, args.num_seeds) < 1:
            raise ConfigurationError("Choose at least two updates, one trial and one seed.")
        folder = create_run_folder(args.out)
    cache_compilations()
    trials = draw_trials(spaces, config, args.num_trials)
    started = time.perf_counter()
    scores = run_trials(env, module, config, trials, args.num_seeds, num_updates)
    with (folder / "trials.csv").open("x", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*trials, *(f"seed_{seed}" for seed in range(args.num_seeds))])
        writer.writerows(np.column_stack([*trials.values(), scores]).tolist())
    means = np.nan_to_num(scores.mean(axis=1), nan=-np.inf)
    best = int(np.argmax(means))
    seconds = time.perf_counter() - started
    print(f"# score {means[best]:.1f}, as they were {means[0]:.1f}; {seconds:.0f} s")
    print(f'[{first.algorithm}."{args.env}"]')
    for name, values in trials.items():
        print(f"{name} = {values[best]:.3g}")
    return 0


def draw_trials(
    spaces: dict[str, tuple[str, float, float]], config: Any, num_trials: int
) -> dict[str, np.ndarray]:
    """Returns the values of each searched field, `[num_trials]`; trial 0 is the config itself."""
    generator = np.random.default_rng(0)
    trials = {}
    for name, (scale, low, high) in spaces.items():
        uniform = generator.random(num_trials)
        match scale:
            case "log":
                values = low * (high / low) ** uniform
            case "log1m":
                values = 1 - (1 - low) * ((1 - high) / (1 - low)) ** uniform
            case _:
                values = low + (high - low) * uniform
        trials[name] = np.concatenate([[getattr(config, name)], values[1:]])
    return trials


def run_trials(
    env: Environment,
    module: ModuleType,
    config: Any,
    trials: dict[str, np.ndarray],
    num_seeds: int,
    num_updates: int,
) -> np.ndarray:
    """Returns the score of each trial and seed, `[num_trials, num_seeds]`; NaN where it broke."""

    def run(values, seed):
        algorithm = module.make(env, config.replace(**values))
        state = algorithm.init(jax.random.key(seed))
        _, metrics = jax.lax.scan(lambda s, _: algorithm.update(s), state, length=num_updates)
        late = jnp.arange(num_updates) >= num_updates // 2
        counts = jnp.where(late, metrics["num_episodes"], 0)
        returns = jnp.where(counts > 0, metrics["episodic_return"], 0)
        finite = jnp.all(jnp.isfinite(metrics["kl"]))
        return jnp.where(finite, jnp.sum(counts * returns) / jnp.sum(counts), jnp.nan)

    over_seeds = jax.vmap(run, in_axes=(None, 0))
    over_trials = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))
    values = {name: jnp.asarray(column, jnp.float32) for name, column in trials.items()}
    return np.asarray(over_trials(values, jnp.arange(num_seeds)))


if __name__ == "__main__":
    sys.exit(main())

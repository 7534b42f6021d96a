"""Allowed values of the settings of runs and sweeps, and checks of them. They need no JAX."""

from collections.abc import Sequence
from numbers import Integral

from trpo_jax.errors import ConfigurationError

MOST_SEEDS = 2**32
MOST_RUNS = 10**6  # in parallel; the list of more runs would fill the memory
MOST = 2**31 - 1  # compiled programs count in 32 bits
STOP_EVERY = 10  # number of updates from one check of `stop_at_return` to the next
SCORES = ("evaluation", "training")  # of a setting in a sweep
SERVICES = ("tensorboard", "wandb")  # logs


def choose_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds 0 to n - 1 for a number n, and given seeds as they are.

    Raises:
        ConfigurationError: if there is no seed, a seed is given twice, or a seed is out of range.
    """
    if isinstance(seeds, Integral):
        require_at_least(seeds=(seeds, 1))
        require_at_most(seeds=(seeds, MOST_RUNS))
        seeds = range(seeds)
    chosen = tuple(int(seed) for seed in seeds)
    wrong = [seed for seed in chosen if not 0 <= seed < MOST_SEEDS]
    if wrong:
        raise ConfigurationError(f"seed = {wrong[0]} must be at least 0 and less than 2^32.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigurationError(
            f"seeds = {list(chosen)} must be one or more seeds, and each seed may be given once."
        )
    return chosen


def require_at_least(**numbers: tuple[int | None, int]) -> None:
    """Raises a ConfigurationError for the first `name=(number, low)` whose number is too small."""
    for name, (number, low) in numbers.items():
        if number is not None and number < low:
            raise ConfigurationError(f"{name} = {number} must be at least {low}.")


def require_at_most(**numbers: tuple[int, int]) -> None:
    """Raises a ConfigurationError for the first `name=(number, high)` whose number is too large."""
    for name, (number, high) in numbers.items():
        if number > high:
            raise ConfigurationError(f"{name} = {number:,} must be at most {high:,}.")

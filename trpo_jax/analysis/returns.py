"""Returns of runs: as text, as running means, and when they reached a threshold."""

import numpy as np

from trpo_jax.analysis import WINDOW


def return_text(value: float | np.floating | None) -> str:
    """Returns a return as text with at least three significant digits; a dash for None and NaN.

    Examples:
        >>> [return_text(x) for x in (12345.6, 500.0, -16.24, 0.01234, 0.0, None)]
        ['12,346', '500.0', '-16.2', '0.0123', '0.0', '-']
    """
    if value is None or np.isnan(value):
        return "-"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 10 or size == 0:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def running_return(
    returns: np.ndarray, num_episodes: np.ndarray, window: int = WINDOW
) -> np.ndarray:
    """Returns the mean return of the latest episodes at each update.

    The window counts episodes, not updates, so it means the same for algorithms whose batches
    differ in size. The mean is over whole updates: the fewest latest updates in which at least
    `window` episodes ended.

    Args:
        returns: mean return of the episodes that ended in each update, `[num_seeds, U]`.
        num_episodes: number of episodes that ended in each update, `[num_seeds, U]`.
        window: least number of episodes to average over.

    Returns:
        `[num_seeds, U]`, NaN until `window` episodes have ended.
    """
    result = np.full(returns.shape, np.nan)
    totals = np.where(num_episodes > 0, returns, 0.0) * num_episodes
    for row, total, count in zip(result, totals, num_episodes, strict=True):
        total, count = (np.concatenate([[0.0], np.cumsum(x)]) for x in (total, count))
        (ends,) = np.nonzero(count >= window)
        starts = np.searchsorted(count, count[ends] - window, side="right") - 1
        row[ends - 1] = (total[ends] - total[starts]) / (count[ends] - count[starts])
    return result


def first_reached(values: np.ndarray, threshold: float, at: np.ndarray) -> np.ndarray:
    """Returns the place where the values of each seed first reach a threshold; NaN if never.

    Args:
        values: values of each seed, `[num_seeds, U]`; NaN is below any threshold.
        threshold: the least value that counts.
        at: the place of each value, such as the environment steps, `[num_seeds, U]`.

    Returns:
        The place of each seed, `[num_seeds]`.
    """
    reached = values >= threshold
    first = np.take_along_axis(at, reached.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(reached.any(axis=1), first, np.nan)

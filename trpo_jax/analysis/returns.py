"""Returns of runs: as text, as running means, and when they passed a mark."""

import numpy as np

WINDOW = 20  # episodes in a running return


def return_text(value: float | np.floating | None) -> str:
    """Returns a return as text with three significant digits or more, and a dash for none.

    Example:
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

    A window of episodes, not of updates, means the same to algorithms whose batches differ in size.
    It reaches back whole updates, to the latest one that leaves at least `window` episodes in it.

    Args:
        returns: mean return of the episodes that ended in each update, `[num_seeds, U]`.
        num_episodes: how many ended, `[num_seeds, U]`.
        window: episodes to average over, at the least.

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
    """Returns where each seed's values first were at least the threshold, NaN if never.

    Args:
        values: `[num_seeds, U]`; NaN reaches nothing.
        threshold: the mark.
        at: what to report, such as the environment steps, `[num_seeds, U]`.

    Returns:
        `[num_seeds]`.
    """
    reached = values >= threshold
    first = np.take_along_axis(at, reached.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(reached.any(axis=1), first, np.nan)

import numpy as np

from trpo_jax.analysis.returns import first_reached, running_return

NAN = np.nan


def test_the_running_return_matches_numbers_by_hand():
    returns = np.array([[10.0, NAN, 40.0, 70.0, 100.0]])
    num_episodes = np.array([[2.0, 0.0, 1.0, 2.0, 5.0]])
    by_hand = [[NAN, NAN, (2 * 10 + 40) / 3, (40 + 2 * 70) / 3, 100.0]]
    np.testing.assert_allclose(running_return(returns, num_episodes, window=3), by_hand)


def test_the_running_return_is_the_mean_over_the_latest_episodes():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (3, 30))
    episodes = [[rng.normal(size=n) for n in row] for row in counts]
    returns = np.array([[x.mean() if len(x) else NAN for x in row] for row in episodes])
    result = running_return(returns, counts.astype(float), window=5)
    for row, seed in zip(result, episodes, strict=True):
        for update, value in enumerate(row):
            windows = [np.concatenate(seed[s : update + 1]) for s in range(update, -1, -1)]
            expected = next((x.mean() for x in windows if len(x) >= 5), NAN)
            np.testing.assert_allclose(value, expected)


def test_the_first_step_at_a_threshold_is_found():
    values = np.array([[NAN, 1.0, 5.0, 2.0], [NAN, NAN, 4.0, 4.9], [5.0, 0.0, 9.0, 9.0]])
    steps = np.broadcast_to([64.0, 128.0, 192.0, 256.0], values.shape)
    np.testing.assert_array_equal(first_reached(values, 5.0, steps), [192, NAN, 64])

import io

import numpy as np
import pytest
from rich.console import Console

from trpo_jax.cli.sweep_report import print_ranking
from trpo_jax.running.sweep_ranking import rank

FIVE = {"max_kl": 0.0123, "damping": 0.1, "gae_lambda": 0.951, "critic_lr": 1e-3}
FIVE |= {"hidden_sizes": (64, 64)}


def printed(setting, scores):
    """Returns the ranking of settings alike but for max_kl, one for each row of scores."""
    settings = [setting | {"max_kl": 0.01 * (1 + row)} for row in range(len(scores))]
    results = {(row, seed): {"x": x} for (row, seed), x in np.ndenumerate(scores)}
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    ranking = rank(settings, range(scores.shape[1]), results, "x")
    print_ranking(console, ranking, "TRPO on Test")
    return console.file.getvalue()


def test_five_fields_fit_80_columns():
    text = printed(FIVE, np.array([[-1234.5, -1000.0, -900.0]] * 3))
    table = [line for line in text.splitlines() if line[:1] in "│┃"]
    assert max(map(len, table)) <= 80
    assert "hidden_sizes" in text
    assert "64x64" in text
    assert "-1,234" in text


@pytest.mark.parametrize("setting", [{}, FIVE])
def test_settings_without_a_score_are_named(setting):
    text = printed(setting, np.array([[1.0, np.nan], [0.012, 0.034]]))
    assert "1 of 2 without" in text
    assert "1 of 2 settings have seeds without a score" in text
    assert "range 0.012 to 0.034" in text
    assert "2 of 2 without" in printed(setting, np.full((2, 2), np.nan))


def test_equal_scores_are_no_ranking():
    assert "the order says nothing" in printed({}, np.ones((2, 3)))
    assert "the order says nothing" not in printed({}, np.arange(6.0).reshape(2, 3))

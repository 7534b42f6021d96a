import io

import numpy as np
import pytest
from rich.console import Console

from trpo_jax.cli.sweep_report import print_ranking
from trpo_jax.running.sweep_ranking import rank, write_ranking

FIVE = {"max_kl": 0.0123, "damping": 0.1, "gae_lambda": 0.951, "critic_lr": 1e-3}
FIVE |= {"hidden_sizes": (64, 64)}


def printed(setting, scores):
    """Returns a ranking with a setting for each row of scores. They differ in max_kl."""
    settings = [setting | {"max_kl": 0.01 * (1 + row)} for row in range(len(scores))]
    results = {(row, seed): {"x": x} for (row, seed), x in np.ndenumerate(scores)}
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    ranking = rank(settings, range(scores.shape[1]), results, "x")
    print_ranking(console, ranking, "TRPO on Test")
    return console.file.getvalue()


def test_a_ranking_of_five_fields_fits_into_80_columns():
    text = printed(FIVE, np.array([[-1234.5, -1000.0, -900.0]] * 3))
    table = [line for line in text.splitlines() if line[:1] in "│┃"]
    assert max(map(len, table)) <= 80
    assert "hidden_sizes" in text
    assert "64x64" in text
    assert "-1,234" in text


@pytest.mark.parametrize("setting", [{}, FIVE])
def test_the_ranking_says_which_settings_have_no_score(setting):
    text = printed(setting, np.array([[1.0, np.nan], [0.012, 0.034]]))
    assert "1 of 2 missing" in text
    assert "1 of 2 settings have seeds without a score" in text
    assert "range 0.012 to 0.034" in text
    assert "2 of 2 missing" in printed(setting, np.full((2, 2), np.nan))


def test_a_note_says_that_equal_scores_have_no_order():
    assert "their order means nothing" in printed({}, np.ones((2, 3)))
    assert "their order means nothing" not in printed({}, np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("swept", [False, True])
def test_settings_within_their_limits_come_first(swept):
    returns, costs = [9.0, 2.0, 3.0, 8.0], [[7.0, 9.0], [4.0, 5.9], [1.0, 2.0], [5.0, 5.6]]
    settings = [{"max_kl": 0.01 * (1 + row)} for row in range(4)]
    config = {"cost_limit": 5.0}
    if swept:
        settings = [{"cost_limit": limit} for limit in (10.0, 5.0, 1.0, 5.0)]
    results = {
        (row, seed): {"x_return": returns[row], "x_cost": costs[row][seed]}
        for row in range(4)
        for seed in range(2)
    }
    ranking = rank(settings, range(2), results, "x_return", config)
    # The mean costs are 8, 4.95, 1.5 and 5.3.
    assert [x.index for x in ranking] == ([0, 1, 3, 2] if swept else [2, 1, 3, 0])
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    print_ranking(console, ranking, "CPO on Test")
    text = " ".join(console.file.getvalue().split())
    assert "5.30*" in text
    assert "4.95*" not in text
    assert "keep their limits come first" in text
    assert ("judged by its own cost_limit" in text) == swept
    assert "No setting keeps" not in text
    without = rank(settings, range(2), results, "x_return", {})
    if not swept:
        assert [x.index for x in without] == [0, 3, 2, 1]


def test_a_note_says_that_no_setting_keeps_its_limit(tmp_path):
    results = {(row, 0): {"x_return": 1.0, "x_cost": 6.0 - row} for row in range(2)}
    ranking = rank([{"a": 1.0}, {"a": 2.0}], [0], results, "x_return", {"cost_limit": 4.0})
    assert [x.index for x in ranking] == [1, 0]
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    print_ranking(console, ranking, "CPO on Test")
    assert "No setting keeps its limits." in console.file.getvalue()
    assert "their order means nothing" not in console.file.getvalue()
    write_ranking(tmp_path / "settings.csv", ranking)
    head, *rows = (line.split(",") for line in (tmp_path / "settings.csv").read_text().split())
    assert head[-2:] == ["mean_cost", "excess"]
    assert [row[-2:] for row in rows] == [["5", "1"], ["6", "2"]]

import io

import numpy as np
import pytest
from rich.console import Console

from trpo_jax.analysis.costs import describe_costs
from trpo_jax.analysis.statistics import summarize
from trpo_jax.cli.display import (
    print_broken_episodes,
    print_evaluation,
    print_missing_episodes,
    spread_text,
)


def test_many_seeds_are_summarised():
    console = Console(file=io.StringIO(), width=80)
    scores = np.arange(40.0)
    print_evaluation(console, range(40), scores, summarize(scores), 64)
    text = console.file.getvalue()
    assert "24 more in summary.json" in text
    assert "19.5" in text


@pytest.mark.parametrize(
    ("scores", "told"), [([1.0, 4.0], "range"), ([1.0, 4.0, 7.0], "95 % interval of the mean")]
)
def test_fewer_than_three_seeds_have_a_range(scores, told):
    console = Console(file=io.StringIO(), width=80)
    scores = np.array(scores)
    print_evaluation(console, range(len(scores)), scores, summarize(scores), 64)
    text = console.file.getvalue()
    assert told in text
    assert ("interval" in text) == (len(scores) > 2)
    assert ("1.00 to 4.00" in text) == (len(scores) == 2)


def test_an_interval_or_a_range_is_written_as_text():
    assert spread_text((1.0, 2.5), [1.0, 2.0, 3.0], "{:g}".format) == "1 to 2.5"
    assert spread_text(None, [3.0, 1.0], "{:g}".format) == "range 1 to 3"
    assert spread_text(None, [3.0, 1.0], "{:g}".format, ", ") == "range 1, 3"
    assert spread_text(None, [3.0], "{:g}".format) == "one seed"


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        ([[0, 0], [0, 0]], "No training episode ended within 200"),
        ([[0, 1], [0, 0]], "No training episode of seed 5"),
        ([[0, 1], [2, 0]], ""),
    ],
)
def test_a_note_names_seeds_without_an_episode(ended, told):
    console = Console(file=io.StringIO(), width=80)
    seeds, steps = np.array([[4, 4], [5, 5]]), np.array([[100, 200]] * 2)
    metrics = {"seed": seeds, "env_steps": steps, "num_episodes": np.array(ended)}
    print_missing_episodes(console, metrics)
    assert console.file.getvalue().startswith(told)
    assert bool(console.file.getvalue()) == bool(told)


def test_broken_episodes_are_counted_for_each_seed():
    console = Console(record=True, width=200)
    metrics = {"seed": np.array([[3] * 2, [4] * 2]), "broken_episodes": np.array([[0, 0], [1, 2]])}
    print_broken_episodes(console, metrics)
    text = console.export_text()
    assert "3 training episodes ended with numbers that are not finite" in text
    assert "left out: 3 of seed 4." in text
    for silent in ({}, {"seed": np.zeros((1, 2)), "broken_episodes": np.zeros((1, 2))}):
        print_broken_episodes(console, silent)
    assert not console.export_text(clear=False).strip()


def test_costs_have_columns_and_a_line_about_their_limit():
    console = Console(file=io.StringIO(), width=80)
    scores, costs = np.array([1.0, 4.0, 7.0]), np.array([[2.0], [3.0], [7.0]])
    described = describe_costs(["toll"], costs, np.array([3.5]))
    print_evaluation(console, range(3), scores, summarize(scores), 64, described)
    text = " ".join(console.file.getvalue().split())
    assert "mean cost toll" in text
    assert "│ 2 │ 7.00 │ 7.00 │" in text
    assert "exceed the limit of 3.5 on the cost 'toll': 4.00 on average, 1 of 3 seeds" in text

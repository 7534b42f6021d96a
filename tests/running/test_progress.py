import io

import numpy as np
import pytest
from rich.console import Console

from trpo_jax.running.loop import Chunk
from trpo_jax.running.progress import duration, has_bar, progress_console, with_progress


def chunks(returns=(20.0, 30.0)):
    for index, value in enumerate(returns):
        metrics = {"kl": np.full((2, 5), 0.0123), "episodic_return": np.full((2, 5), value)}
        yield Chunk(5 * index + 1, 5 * index + 5, metrics, None, None, None, index + 1.0)


def shown(terminal, **kwargs):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    assert len(list(with_progress(chunks(**kwargs), console, 2, 10, 100))) == 2
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_return_kl_speed_and_time_left(terminal):
    text = shown(terminal)
    for part in ("10/10", "return 30.0", "KL 0.012", "1,000 steps/s", "left"):
        assert part in text
    assert ("\x1b" in text) == terminal


def test_plain_lines_are_spread_over_the_run():
    lines = shown(terminal=False).splitlines()
    assert lines[0].startswith("update 5/10  return 20.0")
    assert lines[0].endswith("1 s left")
    assert len(lines) == 2


def test_progress_says_that_no_episode_has_ended_yet():
    assert "return none yet" in shown(terminal=False, returns=(np.nan, np.nan))


@pytest.mark.parametrize("numbers", [{}, {"loss": np.full((2, 5), np.nan)}])
def test_metrics_that_are_not_there_are_not_shown(numbers):
    console = Console(file=io.StringIO(), width=80)
    list(with_progress([Chunk(1, 5, numbers, None, None, None, 1.0)], console, 2, 5, 100))
    assert console.file.getvalue() == "update 5/5  1,000 steps/s  0 s left\n"


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_without_ipywidgets_gets_plain_lines(widgets, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("trpo_jax.running.progress.find_spec", lambda name: widgets or None)
    console = progress_console(visible=True)
    assert has_bar(console) == console.is_jupyter == widgets


def test_long_durations_are_written_in_hours():
    assert [duration(x) for x in (0.4, 119.0, 20898.2)] == ["0 s", "119 s", "5:48:18"]


def test_costs_are_shown_beside_the_return():
    console = Console(file=io.StringIO(), width=80)
    numbers = {"kl": 0.01, "episodic_cost_toll": 3.0, "episodic_return": 2.0}
    numbers = {name: np.full((2, 5), x) for name, x in numbers.items()}
    list(with_progress([Chunk(1, 5, numbers, None, None, None, 1.0)], console, 2, 5, 100))
    assert "return 2.00  cost toll 3.00  KL 0.01" in console.file.getvalue()

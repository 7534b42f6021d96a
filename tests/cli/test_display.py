import io

import numpy as np
import pytest
from rich.console import Console

from trpo_jax.analysis.statistics import summarize
from trpo_jax.cli.display import print_evaluation, spread_text, with_progress
from trpo_jax.running.loop import Chunk


def chunks(returns=(20.0, 30.0)):
    for index, value in enumerate(returns):
        metrics = {"kl": np.full((2, 5), 0.0123), "episodic_return": np.full((2, 5), value)}
        yield Chunk(5 * index + 1, metrics, None, None, None, index + 1.0)


def shown(terminal, **kwargs):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    assert len(list(with_progress(chunks(**kwargs), console, 10, 100))) == 2
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_return_kl_speed_and_time_left(terminal):
    text = shown(terminal)
    for part in ("10/10", "return 30.0", "KL 0.0123", "1,000 steps/s", "left"):
        assert part in text
    assert ("\x1b" in text) == terminal


def test_plain_lines_come_as_the_run_does():
    lines = shown(terminal=False).splitlines()
    assert lines[0].startswith("update 5/10  return 20.0")
    assert lines[0].endswith("1 s left")
    assert len(lines) == 2


def test_a_run_without_an_episode_yet_says_so():
    assert "return none yet" in shown(terminal=False, returns=(np.nan, np.nan))


def test_many_seeds_are_summed_up():
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
    assert ("1.0 to 4.0" in text) == (len(scores) == 2)


def test_an_interval_or_a_range_as_text():
    assert spread_text((1.0, 2.5), [1.0, 2.0, 3.0], "{:g}".format) == "1 to 2.5"
    assert spread_text(None, [3.0, 1.0], "{:g}".format) == "range 1 to 3"
    assert spread_text(None, [3.0, 1.0], "{:g}".format, ", ") == "range 1, 3"
    assert spread_text(None, [3.0], "{:g}".format) == "one seed"

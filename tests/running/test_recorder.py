from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from trpo_jax.running.loop import Chunk
from trpo_jax.running.recorder import RunCheckpoints

STATE = {"weights": jnp.arange(6.0).reshape(2, 3)}


def offered(run_checkpoints, times, monkeypatch, cost=0.0):
    clock = iter(np.arange(1000) * cost)
    fake = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("trpo_jax.running.recorder.time", fake)
    kept = []
    for update, seconds in enumerate(map(float, times), start=1):
        before = run_checkpoints.latest
        run_checkpoints.offer(
            Chunk(update, update, {"kl": np.zeros((1, 1))}, None, STATE, None, seconds)
        )
        kept += [update] if run_checkpoints.latest != before else []
    return kept


def test_checkpoints_are_written_as_often_as_asked(tmp_path, monkeypatch):
    run_checkpoints = RunCheckpoints(tmp_path / "a", {}, every=3, keep=9, latest=0)
    assert offered(run_checkpoints, range(8), monkeypatch) == [3, 6]
    run_checkpoints.close()
    assert not offered(RunCheckpoints(tmp_path / "b", {}, 0, 9, 0), range(800), monkeypatch)
    assert not (tmp_path / "b").exists()


def test_by_default_checkpoints_take_a_share_of_the_time(tmp_path, monkeypatch):
    run_checkpoints = RunCheckpoints(tmp_path / "a", {}, every=None, keep=9, latest=0)
    seconds = [0, 20, 24, 25, 26, 27, 28, 29, 30, 40]
    # The first one is expected to take 0.7 s, so it comes after 23 s. Each one then takes 0.1 s.
    assert offered(run_checkpoints, seconds, monkeypatch, cost=0.1) == [3, 7, 10]
    np.testing.assert_allclose(run_checkpoints.cost, 0.3)
    run_checkpoints.close()

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Actor
from trpo_jax.running import memory, sweep_program
from trpo_jax.running.loop import LONGEST, Chunk, compile_program, run_chunks
from trpo_jax.running.memory import free_bytes
from trpo_jax.running.program import Health
from trpo_jax.running.sweep_program import compile_sweep, even_share, run_block, score_block

CONFIG = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "critic_minibatches": 2}
ENV = envs.make("CartPole-v1")
SEEDS = (3, 4, 3)
VALUES = {"max_kl": np.array([0.01, 0.01, 0.05]), "damping": np.array([0.1, 0.1, 0.3])}


def make(values):
    return trpo.make(ENV, trpo.Config(**CONFIG).replace(**values))


@pytest.fixture(scope="module")
def program():
    return compile_sweep(make, list(VALUES), len(SEEDS), 2, most=4)


@pytest.mark.slow
def test_each_run_of_a_block_gives_the_numbers_of_a_single_run(program):
    chunks = list(run_block(program, SEEDS, VALUES, 4, LONGEST))
    assert [chunk.first_update for chunk in chunks] == [1, 3]
    for place, seed in enumerate(SEEDS):
        config = {name: float(column[place]) for name, column in VALUES.items()}
        alone = compile_program(make(config), (seed,), 2)
        for ours, theirs in zip(chunks, run_chunks(alone, 4), strict=True):
            for name in ("kl", "episode_length", "critic_loss"):
                np.testing.assert_allclose(
                    ours.metrics[name][place], theirs.metrics[name][0], rtol=2e-3, err_msg=name
                )
    kl = chunks[1].metrics["kl"]  # rewards carry no signal before an episode has ended
    assert abs(kl[0, 0] - kl[1, 0]) > 1e-6  # another seed
    assert kl[2, 0] > 2 * kl[0, 0]  # another max_kl


@pytest.mark.slow
def test_a_block_that_is_not_full_is_filled_up(program):
    whole = next(run_block(program, SEEDS, VALUES, 2, LONGEST)).metrics["kl"]
    part = next(run_block(program, SEEDS[:2], {n: x[:2] for n, x in VALUES.items()}, 2, LONGEST))
    np.testing.assert_array_equal(part.metrics["kl"][:2], whole[:2])
    np.testing.assert_array_equal(part.metrics["kl"][2], whole[1])


def test_blocks_shrink_until_they_fit_into_memory(monkeypatch):
    compiled = []

    def compile_runs(make, num_runs, shapes, updates_per_chunk, placement):
        compiled.append(num_runs)
        assert shapes["max_kl"].shape == (num_runs,)
        memory = dict.fromkeys(("argument", "output", "alias"), 0) | {"temp": 10 * num_runs}
        sizes = SimpleNamespace(**{f"{x}_size_in_bytes": size for x, size in memory.items()})
        executable = SimpleNamespace(memory_analysis=lambda: sizes)
        return sweep_program.CompiledRuns(None, None, executable, 1.0)

    monkeypatch.setattr(sweep_program, "compile_runs", compile_runs)
    for free, sizes in ((1e6, [100]), (400, [100, 20]), (60, [100, 3]), (1, [100, 1])):
        compiled.clear()
        monkeypatch.setattr(sweep_program, "free_bytes", lambda device, free=free: int(free))
        assert compile_sweep(make, ["max_kl"], 100, 2, most=100).block_size == sizes[-1]
        assert compiled == sizes


@pytest.mark.parametrize(
    ("num_runs", "most", "num_devices", "size"),
    [(256, 16, 1, 16), (17, 16, 1, 9), (5, 16, 1, 5), (10, 4, 4, 4), (3, 16, 4, 4), (100, 1, 1, 1)],
)
def test_blocks_are_about_equally_full_and_divide_among_devices(num_runs, most, num_devices, size):
    assert even_share(num_runs, most, num_devices) == size


def test_free_memory_is_measured():
    assert 1e6 < free_bytes(jax.devices()[0]) < 1e15


def test_the_limit_of_a_container_counts(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert list(memory._container_limit(tmp_path)) == [700]
    (tmp_path / "memory.max").write_text("max\n")
    assert next(memory._container_limit(tmp_path)) > 1e15


def test_scores_are_of_the_second_half_and_name_updates_that_are_not_finite():
    returns = np.array([[1.0, np.nan, 10.0, 40.0], [5.0, 5.0, np.nan, np.nan]])
    counts = np.array([[2.0, 0.0, 1.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
    finite = np.array([[True] * 4, [True, True, False, False]])

    def chunk(first):
        part = slice(first - 1, first + 1)
        metrics = {"episodic_return": returns[:, part], "num_episodes": counts[:, part]}
        metrics |= {"kl": np.full((2, 2), 0.25), "step_rejected": np.eye(2)}
        health = Health(finite[:, part], *[np.full((2, 2), -1)] * 3)
        return Chunk(first, first + 1, metrics, health, None, Actor(first, None), 0.0)

    scores, actor = score_block(iter([chunk(1), chunk(3)]), 4)
    np.testing.assert_allclose(scores.training_return, [(10 + 2 * 40) / 3, np.nan])
    np.testing.assert_array_equal(scores.broken_update, [0, 3])
    np.testing.assert_allclose(scores.kl, 0.25)
    np.testing.assert_allclose(scores.rejected, 0.5)
    assert actor.policy_params == 3


SHARED = """
import numpy as np
from test_sweep_program import LONGEST, SEEDS, VALUES, compile_sweep, make, run_block
from trpo_jax.devices import choose_devices, split_runs
placement = split_runs(choose_devices(2))
program = compile_sweep(make, list(VALUES), len(SEEDS), 2, most=4, placement=placement)
(chunk,) = run_block(program, SEEDS, VALUES, 2, LONGEST)
print(program.block_size, len(chunk.state.key.sharding.device_set))
np.save("kl.npy", chunk.metrics["kl"])
"""


@pytest.mark.heavy
def test_two_devices_share_a_block(program, tmp_path):
    paths = [Path(__file__).parent, Path(__file__).parents[2]]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    variables = {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    result = subprocess.run(
        [sys.executable, "-c", SHARED],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["4", "2"]
    expected = next(run_block(program, SEEDS, VALUES, 2, LONGEST)).metrics["kl"]
    np.testing.assert_allclose(np.load(tmp_path / "kl.npy")[:3], expected[:3], rtol=2e-3)

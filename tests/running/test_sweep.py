"""`trpo_jax.sweep`, called from Python."""

import json

import host_tasks
import numpy as np
import pytest

from trpo_jax.algorithms import trpo
from trpo_jax.devices import choose_devices, split_runs
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.running import sweep as module
from trpo_jax.running.sweep import sweep
from trpo_jax.running.train import train

pytestmark = [
    pytest.mark.xdist_group("sweep call"),  # one worker, so that the sweep is shared
]

CONFIG = trpo.Config(
    num_envs=2, num_steps=16, hidden_sizes=(8,), critic_epochs=1, critic_minibatches=2
)
OPTIONS = {"seeds": 2, "total_steps": 96, "evaluation_episodes": 2, "progress": False, "batch": 2}
HOST_GRID = {"max_kl": [0.003, 0.03]}
GRID = {"max_kl": [0.003, 0.03], "cg_iters": [3, 5]}


@pytest.fixture(scope="module")
def found():
    return sweep("CartPole-v1", CONFIG, grid=GRID, **OPTIONS)


@pytest.mark.slow
def test_a_sweep_holds_its_results_and_ranking(found):
    assert [(row["setting"], row["seed"]) for row in found.results] == [
        (setting, seed) for setting in range(4) for seed in range(2)
    ]
    assert [x["cg_iters"] for x in found.settings] == [3, 5, 3, 5]
    assert found.results[2] | found.settings[1] == found.results[2]
    assert sorted(x.index for x in found.ranking) == [0, 1, 2, 3]
    iqms = [x.summary.iqm for x in found.ranking]
    assert iqms == sorted(iqms, reverse=True)
    assert found.plot().get_suptitle() == "TRPO on CartPole-v1\nreturn of each setting"
    assert repr(found).startswith("<Sweep of TRPO on CartPole-v1, 4 settings, 2 seeds, best max_kl")
    assert (found.folder, found.stopped_by) == (None, None)


@pytest.mark.slow
def test_a_run_of_a_sweep_gives_the_numbers_of_train(found):
    config = CONFIG.replace(max_kl=0.03, cg_iters=5)
    options = {name: OPTIONS[name] for name in OPTIONS.keys() - {"batch"}}
    run = train("CartPole-v1", config, **options)
    scores = [row["evaluation_return"] for row in found.results[6:]]
    np.testing.assert_allclose(scores, run.evaluation.per_seed, rtol=0.02)


@pytest.mark.slow
def test_an_interrupted_sweep_is_continued_in_its_folder(found, tmp_path, monkeypatch):
    blocks, original = [], module.run_block

    def run_block(*arguments):
        blocks.append(arguments)
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "run_block", run_block)
    options = OPTIONS | {"out": tmp_path / "sweep"}
    part = sweep("CartPole-v1", CONFIG, grid=GRID, **options)
    assert part.stopped_by == "interrupt"
    assert len(part.results) == 2
    assert [x.index for x in part.ranking] == [0]
    assert not (tmp_path / "sweep" / "settings.csv").exists()
    whole = sweep("CartPole-v1", CONFIG, grid=GRID, **options)
    assert len(blocks) == 2 + 3
    for ours, theirs in zip(whole.results, found.results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    assert {path.suffix for path in whole.folder.iterdir()} == {".json", ".csv", ".png", ".pdf"}
    with pytest.raises(ConfigurationError, match=r"gamma = 0.99, not 0.5"):
        sweep("CartPole-v1", CONFIG.replace(gamma=0.5), grid=GRID, **options)
    command = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["command"]
    assert "--grid=max_kl=0.003,0.03" in command


@pytest.fixture(scope="module")
def on_host():
    return sweep("gym/Counter-v0", CONFIG, grid=HOST_GRID, **OPTIONS, env_args={"length": 3})


@pytest.mark.slow
def test_a_run_of_a_sweep_on_the_host_gives_the_numbers_of_train(on_host):
    assert [(row["setting"], row["seed"]) for row in on_host.results] == [
        (setting, seed) for setting in range(2) for seed in range(2)
    ]
    options = {name: OPTIONS[name] for name in OPTIONS.keys() - {"batch"}}
    config = CONFIG.replace(**on_host.settings[1])
    run = train("gym/Counter-v0", config, **options, env_args={"length": 3})
    for row, evaluation, kl in zip(
        on_host.results[2:], run.evaluation.per_seed, run.metrics["kl"].mean(axis=1), strict=True
    ):
        assert row["evaluation_return"] == evaluation
        assert row["kl"] == pytest.approx(kl, rel=1e-3)
    assert on_host.results[0]["kl"] != pytest.approx(on_host.results[2]["kl"], rel=0.5)


@pytest.mark.slow
def test_runs_on_the_host_do_not_depend_on_parallel_runs(on_host):
    options = OPTIONS | {"batch": 3, "env_args": {"length": 3}}
    again = sweep("gym/Counter-v0", CONFIG, grid=HOST_GRID, **options)
    for ours, theirs in zip(again.results, on_host.results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(("num_seeds", "size"), [(1, 8), (2, 8), (3, 6), (8, 8), (20, 20)])
def test_settings_on_the_host_run_side_by_side_as_far_as_cores_go(num_seeds, size, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert module.host_block(range(num_seeds)) == size


@pytest.mark.slow
def test_a_sweep_on_the_host_mixes_seeds_of_several_settings_in_one_pool(monkeypatch):
    """One pool of EnvPool has runs of both settings, and another program has another integer."""
    pytest.importorskip("envpool", reason="uv sync --extra envpool")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    options = OPTIONS | {"seeds": 1, "batch": None}
    together = sweep("envpool/CartPole-v1", CONFIG, grid=GRID, **options)
    alone = sweep("envpool/CartPole-v1", CONFIG, grid=GRID, **options | {"batch": 1})
    assert [x["cg_iters"] for x in together.settings] == [3, 5, 3, 5]
    assert len({row["kl"] for row in together.results}) == 4
    for ours, theirs in zip(together.results, alone.results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)


@pytest.mark.slow
def test_a_sweep_on_the_host_can_be_continued_after_a_failure(on_host, tmp_path, monkeypatch):
    original, blocks = module.run_block, []

    def run_block(*arguments):
        blocks.append(arguments)
        chunks = original(*arguments)
        yield next(chunks)
        if len(blocks) == 2:
            chunks.close()
            raise EnvironmentFailure("gym/Counter-v0 failed") from ValueError("the floor")
        yield from chunks

    monkeypatch.setattr(module, "run_block", run_block)
    options = OPTIONS | {"env_args": {"length": 3}, "out": tmp_path / "sweep"}
    before = host_tasks.Counter.closed
    with pytest.raises(EnvironmentFailure):
        sweep("gym/Counter-v0", CONFIG, grid=HOST_GRID, **options)
    assert host_tasks.Counter.closed >= before + 2 * len(blocks) * CONFIG.num_envs
    assert "ValueError: the floor" in (tmp_path / "sweep" / "error.txt").read_text()
    written = (tmp_path / "sweep" / "results.csv").read_text()
    whole = sweep("gym/Counter-v0", CONFIG, grid=HOST_GRID, **options)
    assert len(blocks) == 3
    assert (tmp_path / "sweep" / "results.csv").read_text().startswith(written)
    for ours, theirs in zip(whole.results, on_host.results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    assert {"settings.csv", "sweep.png"} < {path.name for path in whole.folder.iterdir()}
    assert "--env-arg=length=3" in whole.check
    with pytest.raises(ConfigurationError, match=r"env_args = {'length': '3'}, not {'length': '4"):
        options |= {"env_args": {"length": 4}}
        sweep("gym/Counter-v0", CONFIG, grid=HOST_GRID, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing is swept"),
        ({"grid": {"max_kl": [0.01, 0.0]}}, "max_kl = 0.0 cannot work"),
        ({"grid": {"num_steps": [32, 256]}, "total_steps": 512}, "less than two batches of 512"),
        (
            {"grid": GRID, "env": "gym/Counter-v0", "placement": split_runs(choose_devices(1))},
            "runs on the host",
        ),
        ({"grid": GRID, "score": "evalation"}, "Did you mean evaluation"),
        ({"grid": GRID, "batch": 0}, "batch = 0 must be at least 1"),
        (
            {"random": 4, "ranges": {"max_kl": (0, 1, "log")}},
            "On the scale log, low must be more than 0",
        ),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_compiled(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        sweep(config=CONFIG, **arguments)

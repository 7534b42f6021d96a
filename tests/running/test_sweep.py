"""The call that sweeps, as a notebook meets it."""

import json

import numpy as np
import pytest

from trpo_jax.algorithms import trpo
from trpo_jax.errors import ConfigurationError
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
GRID = {"max_kl": [0.003, 0.03], "cg_iters": [3, 5]}


@pytest.fixture(scope="module")
def found():
    return sweep("CartPole-v1", CONFIG, grid=GRID, **OPTIONS)


def test_a_sweep_holds_its_numbers(found):
    assert [(row["setting"], row["seed"]) for row in found.results] == [
        (setting, seed) for setting in range(4) for seed in range(2)
    ]
    assert [x["cg_iters"] for x in found.settings] == [3, 5, 3, 5]
    assert found.results[2] | found.settings[1] == found.results[2]
    assert sorted(x.index for x in found.ranking) == [0, 1, 2, 3]
    iqms = [x.summary.iqm for x in found.ranking]
    assert iqms == sorted(iqms, reverse=True)
    assert found.plot().get_suptitle() == "TRPO on CartPole-v1"
    assert repr(found).startswith("<Sweep of TRPO on CartPole-v1, 4 settings, 2 seeds, best max_kl")
    assert (found.folder, found.stopped_by) == (None, None)


def test_a_run_of_a_sweep_is_the_run_of_train(found):
    config = CONFIG.replace(max_kl=0.03, cg_iters=5)
    options = {name: OPTIONS[name] for name in OPTIONS.keys() - {"batch"}}
    run = train("CartPole-v1", config, **options)
    scores = [row["evaluation_return"] for row in found.results[6:]]
    np.testing.assert_allclose(scores, run.evaluation.per_seed, rtol=0.02)


def test_an_interrupted_sweep_goes_on_in_its_folder(found, tmp_path, monkeypatch):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing is swept"),
        ({"grid": {"max_kl": [0.01, 0.0]}}, "max_kl = 0.0 cannot work"),
        ({"grid": {"num_steps": [32, 256]}, "total_steps": 512}, "less than two batches of 512"),
        ({"grid": GRID, "env": "gym/CartPole-v1"}, "runs on the host"),
        ({"grid": GRID, "score": "evalation"}, "Did you mean evaluation"),
        ({"grid": GRID, "batch": 0}, "batch = 0 must be at least 1"),
        ({"random": 4, "ranges": {"max_kl": (0, 1, "log")}}, "more than 0 on the scale log"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_compiled(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        sweep(config=CONFIG, **arguments)

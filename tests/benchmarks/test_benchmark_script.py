import json
import sys

import benchmark
import benchmark_growth
import benchmark_peers
import benchmark_pieces
import benchmark_solvers
import benchmark_training
import jax
import numpy as np
import pytest
import reach_return
from timing import time_in_turns

from trpo_jax.running.loop import Chunk

NETS = benchmark_pieces.nets()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCHES", (64,))
    monkeypatch.setattr(benchmark, "NUM_ENVS", {"cpu": (2,)})
    monkeypatch.setattr(benchmark, "NUM_SEEDS", {"cpu": (2,)})
    monkeypatch.setattr(benchmark_pieces, "nets", lambda: NETS[:1])
    monkeypatch.setattr(benchmark_pieces, "MATRIX", 16)
    monkeypatch.setattr(benchmark_growth, "BATCHES", (64, 128))
    monkeypatch.setattr(benchmark_growth, "CG_ITERS", (1, 2))
    monkeypatch.setattr(benchmark_solvers, "TASKS", (("CartPole-v1", {"hidden_sizes": ()}),))
    monkeypatch.setattr(benchmark_solvers, "UPDATES", 1)
    monkeypatch.setattr(benchmark_training, "MOST_UPDATES", 4)


def test_calls_take_turns_and_each_is_timed():
    order = []
    calls = {name: lambda name=name: order.append(name) or np.zeros(()) for name in "ab"}
    seconds = time_in_turns(calls, 3)
    assert {name: x.shape for name, x in seconds.items()} == {"a": (3,), "b": (3,)}
    assert all((x > 0).all() for x in seconds.values())
    rounds = "".join(order).lstrip("a").lstrip("b")
    changes = [x for i, x in enumerate(rounds) if i == 0 or x != rounds[i - 1]]
    assert changes == list("ababab")


@pytest.mark.heavy
def test_all_but_peers_ends_in_a_table_a_figure_and_its_numbers(small, tmp_path, capsys):
    parts = ["pieces", "growth", "solvers", "training", "reach"]
    flags = ["--parts", *parts, "--repeats", "1", "--out", str(tmp_path / "out")]
    assert benchmark.main(flags) == 0
    report = json.loads((tmp_path / "out" / "speed.json").read_text())
    gradient = next(row for row in report["pieces"]["rows"] if row["piece"] == "gradient")
    assert gradient["gradients"] == 1 and gradient["flops_per_second"] > 0
    assert report["training"]["seeds"][0]["bytes_per_seed"] > 0
    assert report["training"]["ppo"][0]["ratios"]["ppo"] == 1
    assert {row["solver"] for row in report["solvers"]} == {"cg", "kronecker"}
    assert report["reach"][0]["all"] is None and report["reach"][0]["reached"] < 1
    assert [row["batch"] for row in report["growth"]["batch"]] == [64, 128]
    assert (tmp_path / "out" / "speed.png").stat().st_size > 10_000
    table = (tmp_path / "out" / "speed.md").read_text()
    assert capsys.readouterr().out.endswith(table)
    assert all(str(row["piece"]) in table for row in report["pieces"]["rows"])


def test_peers_need_an_interpreter_that_is_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--parts", "peers", "--peer-python", str(tmp_path / "python")])
    assert "pip install torch sb3-contrib" in capsys.readouterr().err


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_device_has_to_be_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--device", "gpu", "--parts", "pieces"])
    assert "device = 'gpu'" in capsys.readouterr().err


def test_a_peer_is_told_how_long_to_train(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(
        "import sys\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n    print(int(line) / 1000, flush=True)\n"
    )
    with benchmark_peers.peer_process([sys.executable, script]) as train:
        assert train(2_000) == 2.0
        assert train(500) == 0.5


def test_a_return_is_reached_by_enough_episodes():
    def chunk(update, value, count):
        metrics = {"episodic_return": np.array([[value]]), "num_episodes": np.array([[count]])}
        return Chunk(update, update, metrics, None, None, None, 0.0)

    chunks = [chunk(1, 500, 4), chunk(2, np.nan, 0), chunk(3, 400, 16), chunk(4, 500, 20)]
    assert reach_return.first_update_there(chunks) == 4
    assert reach_return.first_update_there(chunks[:3]) is None

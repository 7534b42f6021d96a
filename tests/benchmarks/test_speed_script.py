import json
import sys

import jax
import numpy as np
import pytest
import reach_return
import speed
import speed_accelerator
import speed_growth
import speed_one_version
import speed_peers
import speed_pieces
import speed_profile
import speed_report
import speed_solvers
import speed_training
import speed_versions
from speed_versions import HOST_TASKS
from timing import time_in_turns

from trpo_jax.running.loop import Chunk

NETS = speed_pieces.nets()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "BATCHES", (64,))
    monkeypatch.setattr(speed, "NUM_ENVS", {"cpu": (2,)})
    monkeypatch.setattr(speed, "NUM_SEEDS", {"cpu": (2,)})
    monkeypatch.setattr(speed_pieces, "nets", lambda: NETS[:1])
    monkeypatch.setattr(speed_pieces, "MATRIX", 16)
    monkeypatch.setattr(speed_growth, "BATCHES", (64, 128))
    monkeypatch.setattr(speed_growth, "CG_ITERS", (1, 2))
    monkeypatch.setattr(speed_solvers, "TASKS", (("CartPole-v1", {"hidden_sizes": ()}),))
    monkeypatch.setattr(speed_solvers, "UPDATES", 1)
    monkeypatch.setattr(speed_training, "MOST_UPDATES", 4)


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
    assert speed.main(flags) == 0
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


def test_goals_are_judged_and_an_old_version_stands_beside_the_new_one():
    rows = [
        {"what": "share", "old": 0.25, "new": 0.5, "goal": (0.5, True)},
        {"what": "seconds", "old": 4.0, "new": 2.0, "goal": (1.0, False)},
        {"what": "steps", "old": 1e4, "new": 2e4, "goal": None},
    ]
    lines = list(speed_report.goals_table(rows))
    assert "| share | 0.25 | 2.00 | 0.50 | at least 0.50 | yes |" in lines
    assert "| seconds | 4.00 | 0.50 | 2.00 | at most 1.00 | no |" in lines
    assert "| steps | 10,000 | 2.00 | 20,000 |  |  |" in lines
    alone = list(speed_report.goals_table([{**rows[0], "old": None, "new": None}]))
    assert "| share | not measured |  |  |" in alone


def test_goals_of_the_scripts_are_measured():
    named = {"train.py --help: s"}
    named |= {f"envpool/{task}, {speed_one_version.HOST_SEEDS} seeds" for task in HOST_TASKS}
    named |= {f"product, {net}, {n:,} states" for net, n in speed_one_version.STATES.items()}
    assert all(goal.startswith((*named, "train.py to its")) for goal in speed_versions.GOALS)


def test_operations_of_a_product_leave_out_the_input_of_the_first_layer():
    shapes = {"a": (17, 64), "b": (64, 64), "c": (64, 6), "bias": (64,)}
    params = {name: np.zeros(shape) for name, shape in shapes.items()}
    # Two products of each layer's weights, one more of the others; and the same transposed.
    weights = (17 + 2 * 64 + 2 * 6) * 64
    assert speed_one_version.product_operations(params, 10) == 2 * 2 * 10 * weights


def test_products_are_found_in_a_program_also_inside_of_fusions():
    lines = (
        "%inside (a: f32[2048,64], b: f32[64,8]) -> f32[2048,8] {",
        "  %a = f32[2048,64]{1,0} parameter(0)",
        "  %b = f32[64,8]{1,0} parameter(1)",
        "  ROOT %dot.1 = f32[2048,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, ...",
        "}",
        "ENTRY %main (x: f32[2048,64], g: f32[2048,8]) -> f32[64,8] {",
        "  %x = f32[2048,64]{1,0} parameter(0)",
        "  %g = f32[2048,8]{1,0} parameter(1)",
        "  %fusion = f32[2048,8]{1,0} fusion(%x, %w), kind=kCustom, calls=%inside, ...",
        "  ROOT %dot.2 = f32[64,8]{1,0} dot(%x, %g), lhs_contracting_dims={0}, ...",
        "}",
    )
    found = speed_profile.dots_of("\n".join(lines))
    operations = 2.0 * 2048 * 64 * 8
    assert found["fusion"] == (speed_profile.PRODUCTS, operations)
    assert found["dot.2"] == (speed_profile.SUMS, operations)
    assert "x" not in found


def test_a_run_has_an_update_once_its_metrics_have_a_second_line(tmp_path):
    file = tmp_path / "metrics.csv"
    assert not speed_one_version.has_update(file)
    file.write_text("update,kl\n")
    assert not speed_one_version.has_update(file)
    file.write_text("update,kl\n1,0.01\n")
    assert speed_one_version.has_update(file)


def test_an_unknown_old_version_is_refused(capsys):
    pytest.importorskip("envpool")
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--parts", "goals", "--old", "no-such-commit"])
    assert "old = 'no-such-commit'" in capsys.readouterr().err


def test_no_measurement_of_an_accelerator_starts_after_its_deadline():
    rows = list(speed_accelerator.measure_goals("cpu", deadline=0.0))
    assert len(rows) == sum(len(goal.cpu) for goal in speed_accelerator.GOALS)
    assert all(row["new"] is None for row in rows)
    assert not list(speed_accelerator.measure_parts("cpu", deadline=0.0))


def test_the_tests_that_run_on_a_device_are_there():
    for name in speed_accelerator.MATHEMATICS:
        assert (speed_accelerator.ROOT / "tests" / name).is_file()


def test_peers_need_an_interpreter_that_is_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--parts", "peers", "--peer-python", str(tmp_path / "python")])
    assert "pip install torch sb3-contrib" in capsys.readouterr().err


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_device_has_to_be_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--device", "gpu", "--parts", "pieces"])
    assert "device = 'gpu'" in capsys.readouterr().err


def test_a_peer_is_told_how_long_to_train(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(
        "import sys\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n    print(int(line) / 1000, flush=True)\n"
    )
    with speed_peers.peer_process([sys.executable, script]) as train:
        assert train(2_000) == 2.0
        assert train(500) == 0.5


def test_a_return_is_reached_by_enough_episodes():
    def chunk(update, value, count):
        metrics = {"episodic_return": np.array([[value]]), "num_episodes": np.array([[count]])}
        return Chunk(update, update, metrics, None, None, None, 0.0)

    chunks = [chunk(1, 500, 4), chunk(2, np.nan, 0), chunk(3, 400, 16), chunk(4, 500, 20)]
    assert reach_return.first_update_there(chunks) == 4
    assert reach_return.first_update_there(chunks[:3]) is None

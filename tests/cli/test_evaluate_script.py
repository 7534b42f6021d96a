"""experiments/evaluate.py, called with the words of a command line."""

import io
import json
import shutil

import numpy as np
import pytest
from probes import counter
from refusals import refusal
from rich.console import Console

import trpo_jax
from trpo_jax.cli import evaluate, train
from trpo_jax.envs.native import toll_road
from trpo_jax.records.runs import read_metrics
from trpo_jax.running.evaluation import Played

pytestmark = [
    pytest.mark.xdist_group("evaluate"),  # one worker, so that the run is shared
]

FLAGS = ["--env", "Pendulum-v1", "--num-envs", "2", "--num-steps", "64", "--hidden-sizes", "8"]
FLAGS += ["--num-seeds", "2", "--seed", "3", "--total-steps", "512", "--critic-epochs", "2"]
FLAGS += ["--checkpoint-every", "2", "--eval-every", "2", "--evaluation-episodes", "2", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*FLAGS, "--out", str(folder)]) == 0
    return folder


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_both_modes_of_every_seed_are_evaluated(run, tmp_path, capsys):
    out = tmp_path / "new" / "evaluation.json"
    assert evaluate.main([str(run), "--episodes", "5", "--out", str(out)]) == 0
    report, printed = read(out), capsys.readouterr().out
    assert report["seeds"] == [3, 4]
    for mode in ("deterministic", "stochastic"):
        returns = np.array(report[mode]["returns"])
        assert returns.shape == (2, 5)
        assert (returns < 0).all()
        np.testing.assert_allclose(report[mode]["per_seed"], returns.mean(axis=1))
        np.testing.assert_allclose(report[mode]["mean"], returns.mean(), rtol=1e-6)
        low, high = np.transpose(report[mode]["per_seed_ci95"])
        assert (low <= returns.mean(axis=1)).all()
        assert (returns.mean(axis=1) <= high).all()
        assert evaluate.number(report[mode]["mean"]) in printed
        assert report[mode]["ci95"] is report[mode]["iqm_ci95"] is None
    assert printed.count("(range -") == 4  # the mean and the IQM of two seeds, in both modes
    assert "Fewer than 3 seeds have no interval, but a range" in printed
    assert report["deterministic"]["returns"] != report["stochastic"]["returns"]
    again, other = tmp_path / "again.json", tmp_path / "other.json"
    assert evaluate.main([str(run), "--episodes", "5", "--out", str(again)]) == 0
    assert evaluate.main([str(run), "--episodes", "5", "--number", "2", "--out", str(other)]) == 0
    assert read(again) == report
    assert read(other)["deterministic"]["returns"] != report["deterministic"]["returns"]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_as_during_training(run, tmp_path):
    out = tmp_path / "latest.json"
    assert evaluate.main([str(run), "--checkpoint", "latest", "--out", str(out)]) == 0
    latest = read(out)
    assert latest["policies"] == "policies after update 4 (latest)"
    final = tmp_path / "final.json"
    assert evaluate.main([str(run), "--out", str(final)]) == 0
    assert read(final)["stochastic"] == latest["stochastic"]  # update 4 is the last


@pytest.mark.slow
def test_evaluations_of_several_checkpoints_have_files_of_their_own(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    names = ["evaluation.json", "evaluation-best.json", "evaluation-2.json"]
    for flags in ([], ["--checkpoint", "best"], ["--checkpoint", "2"]):
        words = [str(folder), "--episodes", "3", "--evaluation-steps", "7", *flags]
        assert evaluate.main(words) == 0
    assert all((folder / name).is_file() for name in names)
    report = read(folder / names[-1])
    assert report["steps_at_most"] == 7
    assert report["stochastic"]["episodes_cut"] == [3, 3]
    assert capsys.readouterr().out.count("12 of 12 evaluation episodes were cut after 7") == 3
    assert "evaluation-best.json exists" in refusal(
        evaluate.main, [str(folder), "--checkpoint", "best"], capsys
    )


@pytest.mark.slow
def test_a_policy_is_loaded_from_a_checkpoint(run):
    rows = read_metrics(run / "evaluations.csv")
    observations = np.random.default_rng(0).normal(size=(20, 3))
    for which, update in (("latest", 4), (2, 2)):
        returns = rows["evaluation_return"][:, rows["update"][0] == update][:, 0]
        act = trpo_jax.load_policy(run, checkpoint=which)
        seed = 3 + int(np.argmax(returns))
        of_seed = trpo_jax.load_policy(run, seed, checkpoint=which)
        np.testing.assert_array_equal(act(observations), of_seed(observations))
    final = trpo_jax.load_policy(run / "policy.msgpack", 3)
    latest = trpo_jax.load_policy(run / "policy.msgpack", 3, checkpoint="latest")
    np.testing.assert_array_equal(final(observations), latest(observations))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{run}/absent"], "There is no run in"),
        (["{run}", "--checkpoint", "3"], "no checkpoint '3' in"),
        (["{run}", "--checkpoint", "3"], "There are: 2, 4, latest, best."),
        (["{run}", "--episodes", "2"], "--episodes 2 must be at least 3"),
        (
            ["{run}", "--number", "4294967296"],
            "number = 4,294,967,296 must be at most 2,147,483,647",
        ),
        (["{run}", "--env", "CartPole-v1"], "was trained in Pendulum-v1"),
        (["{run}", "--out", "{run}/config.json"], "exists, and will not be overwritten"),
        (["{stopped}"], "(--checkpoint latest) holds what it"),
        (["{bare}", "--checkpoint", "best"], "There are no checkpoints in"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph(argv, message, run, tmp_path, capsys):
    stopped, bare = tmp_path / "stopped", tmp_path / "bare"
    (stopped / "checkpoints").mkdir(parents=True)
    bare.mkdir()
    for folder in (stopped, bare):
        (folder / "config.json").write_bytes((run / "config.json").read_bytes())
    words = [word.format(run=run, stopped=stopped, bare=bare) for word in argv]
    assert message in refusal(evaluate.main, words, capsys)


@pytest.mark.parametrize(("limit", "said"), [(4.0, "keep"), (3.0, "exceed"), (None, "")])
def test_costs_have_a_table_and_a_line_about_their_limit(limit, said):
    returns, costs = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), np.array([[2, 4, 6], [3, 3, 3]])
    played = Played(returns, np.zeros((2, 3), bool), costs[..., None].astype(float))
    limits = None if limit is None else np.array([[9.0, limit]])  # the last limit counts
    of_mode = evaluate.describe(toll_road(), limits, played)
    found = of_mode["costs"]["toll"]
    assert (found["per_seed"], found["mean"]) == ([4, 3], 3.5)
    assert found["costs"] == costs.tolist()
    assert ("limit" in found) == (limit is not None)
    report = {"episodes_per_seed": 3, "seeds": [7, 8]} | dict.fromkeys(evaluate.MODES, of_mode)
    console = Console(file=io.StringIO(), width=100, soft_wrap=True)
    evaluate.print_report(console, report, "CPO")
    text = console.file.getvalue()
    assert "CPO, cost toll" in text
    assert "6.0" in text[text.index("cost toll") :]
    assert text.count(f"The policies {said} the limit") == (2 if said else 0)
    without = played._replace(costs=())
    assert "costs" not in evaluate.describe(counter(), None, without)

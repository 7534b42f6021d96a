"""The flags for memory and observations, with all commands that read such a run."""

import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from PIL import Image
from refusals import refusal

import trpo_jax
from trpo_jax.cli import evaluate, render, train
from trpo_jax.records.runs import read_metrics

pytestmark = pytest.mark.xdist_group("memory flags")

SMALL = ["--num-envs", "2", "--num-steps", "16", "--hidden-sizes", "8", "--critic-epochs", "1"]
SMALL += ["--critic-minibatches", "2", "--num-seeds", "1", "--evaluation-episodes", "2"]
FLAGS = ["--env", "gym/CartPole-v1-NoVel", *SMALL, "--total-steps", "96", "--memory", "gru"]
FLAGS += ["--memory-size", "4", "--memory-checkpoint", "--observe-previous"]
FLAGS += ["--critic-observation", "previous_reward"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "run"
    assert train.main([*FLAGS, "--out", str(folder)]) == 0
    return folder


def described(folder: Path):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.slow
def test_config_json_has_the_flags_for_memory_and_observations(run):
    description = described(run)
    config = {name: description["config"][name] for name in ("memory", "memory_size")}
    assert config == {"memory": "gru", "memory_size": 4}
    assert description["config"]["memory_checkpoint"] is True
    assert description["config"]["critic_observation"] == "previous_reward"
    assert description["wrappers"] == ["trpo_jax.envs.wrappers:observe_previous"]


@pytest.mark.slow
def test_the_policy_acts_on_the_wrapped_observations(run):
    act = trpo_jax.load_policy(run)
    assert act.remembers
    assert list(act.observation) == ["observation", "previous_action"]
    env, total, done = gymnasium.make("CartPole-v1"), 0.0, False
    shown, _ = env.reset(seed=0)
    action = -1  # since the value 0 means no action
    while not done:
        action = act({"observation": shown[[0, 2]], "previous_action": action + 1})
        shown, reward, terminated, truncated, _ = env.step(action)
        done, total = terminated or truncated, total + reward
    assert total >= 8


@pytest.mark.slow
def test_the_run_with_a_memory_can_be_evaluated(run, tmp_path):
    out = tmp_path / "evaluation.json"
    assert evaluate.main([str(run), "--episodes", "3", "--out", str(out)]) == 0
    returns = np.array(json.loads(out.read_text())["deterministic"]["returns"])
    assert returns.shape == (1, 3)
    assert (returns >= 8).all()


@pytest.mark.slow
def test_the_run_with_a_memory_can_be_evaluated_in_another_suite(run, tmp_path, capsys):
    words = [
        str(run),
        "--episodes",
        "3",
        "--env",
        "CartPole-v1-NoVel",
        "--out",
        str(tmp_path / "x"),
    ]
    assert "was trained in gym/CartPole-v1-NoVel, whose observations are" in refusal(
        evaluate.main, words, capsys
    )
    assert evaluate.main([*words, "--observe-previous"]) == 0


@pytest.mark.slow
def test_the_run_with_a_memory_can_be_drawn(run, tmp_path):
    out = tmp_path / "episode.gif"
    assert render.main([str(run), "--steps", "4", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.n_frames > 1


@pytest.mark.slow
def test_the_run_with_a_memory_can_be_made_longer(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert train.main(["--resume", str(folder), "--total-steps", "128", "--quiet"]) == 0
    assert read_metrics(folder / "metrics.csv")["update"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory", "elephant"], "invalid choice: 'elephant'"),
        (["--memory", "gru", "--memory-size", "0"], "memory_size = 0 cannot work"),
        (["--critic-observation", "wind"], "critic_observation = 'wind', but the observation"),
        (
            ["--observe-previous", "--critic-observation", "wind"],
            "Its parts: observation, previous_action, previous_reward",
        ),
        (["--memory", "gru", "--algorithm", "qprop", "--env", "Pendulum-v1"], "has a memory"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main([*SMALL, *flags, "--out", str(tmp_path / "run")])
    assert message in capsys.readouterr().err

"""experiments/reproduce.py and experiments/render.py, called with command lines."""

import json

import jax
import jax.numpy as jnp
import limits
import numpy as np
import pytest
import reproduce
import returns_table
from PIL import Image
from probes import counter
from stored_runs import write_run

from trpo_jax import envs
from trpo_jax.algorithms.base import Actor
from trpo_jax.cli import compare, render
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.distributions import Categorical
from trpo_jax.envs.base import Pool, StepResult, host_environment
from trpo_jax.envs.native import toll_road
from trpo_jax.envs.specs import Discrete
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.records.acting import make_act
from trpo_jax.running.animation import CAPTION, captioned, play, write_animation
from trpo_jax.running.description import as_json

pytestmark = pytest.mark.xdist_group("reproduce")

BENCHMARKS = """
[tiny]
title = "A tiny benchmark"
extras = ["envs"]
flags = ["--total-steps", "256", "--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "8",
    "--critic-epochs", "1", "--critic-minibatches", "2", "--evaluation-episodes", "2",
    "--num-seeds", "2"]
notes = "Nothing to be learnt."
[tiny.methods]
TRPO = []
PPO = ["--algorithm", "ppo", "--policy-epochs", "1", "--policy-minibatches", "1"]
[tiny.peers]
libraries = ["sb3-contrib"]
seeds = [0]
steps = "1e3"
[tiny.published]
"Someone, 3 seeds" = {Pole = 123.4}
[tiny.tasks]
Pole = {env = "CartPole-v1", bar = 5, floor = 1}
[tiny.tasks."Pole, far-sighted"]
env = "CartPole-v1"
bar = 1000
floor = 900
methods = ["TRPO"]
flags = ["--gamma", "0.9999"]
"""


ROW = {"per_seed": [1.0], "episodes_per_seed": 2, "config": {}}
ROW |= {"versions": {"jax": "1"}, "commit": "abc", "device": {"kind": "cpu"}}
REPORT = {"title": "", "command": "", "notes": ""}
REPORT |= {"tasks": {"Pole": {"env": "x"}}, "rows": {"TRPO": {"Pole": ROW}}}


def alternating(env):
    """Returns a policy that chooses its first action, then its second, then its first again."""
    choose = lambda actor, carry, observations: (
        1 - carry,
        Categorical(jax.nn.one_hot(carry, env.action.num_actions)),
    )
    zeros = lambda num_envs: jnp.zeros(num_envs, jnp.int32)
    return make_act(choose, zeros, Actor((), ()), env.name, env.observation, env.action)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "reproduce.toml").write_text(BENCHMARKS)
        patch.setattr(reproduce, "BENCHMARKS_FILE", folder / "reproduce.toml")
        arguments = ["--benchmark", "tiny", "--out", str(folder / "out"), "--no-peers"]
        assert reproduce.main([*arguments, "--tasks", "Pole"]) == 0
        half = (folder / "out/tiny.md").read_text()
        assert "| Pole, far-sighted | not run |" in half
        started = []
        original = compare.train
        record = lambda **settings: started.append(settings) or original(**settings)
        patch.setattr(compare, "train", record)
        assert reproduce.main(arguments) == 0
        assert len(started) == 1, "a finished run was run again"
        yield folder / "out"


@pytest.mark.slow
def test_the_table_compares_with_published_results(finished, tmp_path):
    table = (finished / "tiny.md").read_text()
    assert "uv run --extra envs experiments/reproduce.py --benchmark tiny" in table
    row = next(line for line in table.splitlines() if line.startswith("| Pole | **"))
    assert ", 2 | 5.0 | 1.0 | 123 |" in row, "no column for a peer that has not run"
    assert "below the floor" not in row
    variant = next(x for x in table.splitlines() if x.startswith("| Pole, far-sighted | "))
    assert ", below the floor | " in variant
    assert variant.endswith(" |  | 1,000 | 900 |  |"), "neither PPO nor published"
    assert "- `gamma`: 0.99, Pole, far-sighted: 0.9999" in table
    of_ppo = table[table.index("Hyperparameters of *PPO*") :]
    assert "- `clip`: 0.2" in of_ppo
    assert "`num_steps`" not in of_ppo, "TRPO has the same value"
    assert "Nothing to be learnt." in table
    assert "over 2 fresh episodes of each seed" in table
    assert "jax 0." in table
    report = json.loads((finished / "tiny.json").read_text())
    assert len(report["rows"]["TRPO"]["Pole"]["per_seed"]) == 2
    assert report["rows"]["TRPO"]["Pole, far-sighted"]["config"]["gamma"] == 0.9999
    assert report["rows"]["PPO"]["Pole"]["config"]["clip"] == 0.2
    assert reproduce.is_complete(report)
    for _, _, row in returns_table.finished(report):
        config = plan_of([*row["argv"], "--out", str(tmp_path)]).description["config"]
        assert as_json(config) == row["config"]
    reproduce.write_files(report, "tiny", tmp_path)
    for name in ("tiny.json", "tiny.md"):
        assert (tmp_path / name).read_text() == (finished / name).read_text()


@pytest.mark.slow
def test_the_curves_are_drawn(finished):
    with Image.open(finished / "tiny.png") as image:
        assert min(image.size) > 200


def test_a_benchmark_without_bars_has_no_column_of_bars():
    table = "\n".join(returns_table.table_lines(REPORT))
    assert "| task | TRPO | IQM |\n" in table
    assert "| Pole | 1.0, 1 | 1.0 |" in table
    assert "bar" not in table


def test_a_peer_that_has_not_run_has_no_column():
    report = REPORT | {"rows": REPORT["rows"] | {"peer": {}}}
    assert "| task | TRPO | IQM |\n" in "\n".join(returns_table.table_lines(report))


def test_a_published_table_keeps_the_tasks_that_did_not_run_again(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    row = ROW | {"curve": [[1.0] * returns_table.POINTS], "steps": 100}
    report = REPORT | {"tasks": {name: {"env": "x"} for name in ("Pole", "Hill", "Cart")}}
    published = report | {"rows": {"TRPO": {"Cart": row, "Hill": row}}}
    again = row | {"per_seed": [2.0]}
    report |= {"rows": {"TRPO": {"Pole": row, "Hill": again}, "peer": {}}}
    assert reproduce.with_published(report, "tiny") == report
    reproduce.write_files(published, "tiny", tmp_path)
    rows = reproduce.with_published(report, "tiny")["rows"]
    assert list(rows["TRPO"].items()) == [("Pole", row), ("Hill", again), ("Cart", row)]
    assert rows["peer"] == {}


def test_redrawing_says_which_tables_it_wrote(monkeypatch, tmp_path, capsys):
    (tmp_path / "reproduce.toml").write_text(BENCHMARKS + BENCHMARKS.replace("tiny", "other"))
    monkeypatch.setattr(reproduce, "BENCHMARKS_FILE", tmp_path / "reproduce.toml")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    row = ROW | {"curve": [[1.0] * returns_table.POINTS], "steps": 100}
    report = REPORT | {"rows": {"TRPO": {"Pole": row}}}
    (tmp_path / "tiny.json").write_text(json.dumps(report))
    assert reproduce.main(["--benchmark", "tiny", "other", "--redraw"]) == 0
    said = capsys.readouterr().out
    assert f"Table: {tmp_path / 'tiny.md'}" in said
    assert "other has no report with curves" in said
    assert (tmp_path / "tiny.png").is_file()
    table = (tmp_path / "tiny.md").read_text()
    assert "Nothing to be learnt." in table, "the texts are those of reproduce.toml"
    assert table.endswith("![Learning curves](tiny.png)\n")


def test_a_peer_has_a_column_and_a_probability_that_its_seeds_are_worse():
    own = ROW | {"per_seed": [3.0, 4.0, 5.0]}
    peer = {"per_seed": [1.0, 2.0, 3.5], "episodes_per_seed": 2, "versions": {"torch": "1"}}
    report = REPORT | {"rows": {"TRPO": {"Pole": own}, "peer": {"Pole": peer}}}
    table = "\n".join(returns_table.table_lines(report))
    assert "| task | TRPO | IQM of TRPO | peer |\n" in table
    assert "| Pole | 4.0 (1.5 to 6.5), 3 | 4.0 | 2.2 (" in table
    assert "than a seed of *peer* with a probability of 0.89 (" in table
    assert "| Pole | peer | 1.0, 2.0, 3.5 |" in table
    assert "Versions: torch 1" in table


def test_the_points_of_a_curve_are_means_over_episodes():
    steps = np.tile(np.arange(1.0, 401.0), (2, 1))
    counts = np.zeros((2, 400))
    counts[0, [0, 3]], counts[1, 399] = (1, 3), 1
    metrics = {"env_steps": steps, "num_episodes": counts, "episodic_return": steps}
    first, second = returns_table.curve_points(metrics, "episodic_return")
    assert first == [3.25, *[None] * 99]
    assert second == [*[None] * 99, 400]
    np.testing.assert_array_equal(returns_table.filled([first])[0], np.full(100, 3.25))


@pytest.mark.slow
def test_unknown_benchmarks_and_tasks_are_refused(finished, capsys):
    for arguments, answer in (
        (["--benchmark", "tinny"], "Did you mean tiny"),
        (["--benchmark", "tiny", "--tasks", "Pol"], "Did you mean Pole"),
    ):
        with pytest.raises(SystemExit, match="2"):
            reproduce.main(arguments)
        assert answer in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--tasks", "Pole"], ["--out", "somewhere"]])
@pytest.mark.parametrize("names", [["--benchmark", "speed"], ["--all"]])
def test_tasks_and_a_folder_need_one_benchmark_with_tasks(names, more, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "BENCHMARKS_FILE", reproduce.HERE / "reproduce.toml")
    with pytest.raises(SystemExit, match="2"):
        reproduce.main([*names, *more])
    assert "--tasks and --out need one benchmark with tasks" in capsys.readouterr().err


@pytest.mark.slow
def test_an_episode_becomes_a_gif_that_nothing_overwrites(finished, tmp_path, capsys):
    out = tmp_path / "new" / "episode.gif"
    arguments = [str(finished / "Pole-TRPO"), "--steps", "6", "--every", "2", "--out", str(out)]
    assert render.main([*arguments, "--width", "100"]) == 0
    assert "in 6 steps, cut by --steps: " in (said := capsys.readouterr().out)
    assert "4 frames" in said
    with Image.open(out) as image:
        assert image.size[0] == 100
        assert image.n_frames > 1
    with pytest.raises(SystemExit, match="2"):
        render.main(arguments)
    assert "will not be overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_the_error_says_why_an_episode_cannot_be_drawn(finished, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        render.main([str(tmp_path)])
    assert "There is no run in" in capsys.readouterr().err
    arguments = [str(finished / "Pole-TRPO"), "--out", str(tmp_path / "episode.gif")]
    with pytest.raises(SystemExit, match="2"):
        render.main([*arguments, "--env", "MemoryChain-bsuite"])
    assert "was trained in CartPole-v1, whose observations are" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        render.main([*arguments, "--every", "0"])
    assert "--every" in capsys.readouterr().err
    for flags, answer in (
        (["--fps", "60"], "--fps 60 is more than the 50"),
        (["--out", str(tmp_path / "episode.avi")], "must be a .gif or an .mp4"),
        (["--width", "100000"], "--width 100,000 is more than the 65,535 pixels"),
        (["--episode", "-1"], "episode = -1 must be at least 0"),
        (["--checkpoint", "best"], "There is no checkpoint 'best' in"),
    ):
        with pytest.raises(SystemExit, match="2"):
            render.main([*arguments, *flags])
        assert answer in capsys.readouterr().err
    with pytest.raises(EnvironmentFailure, match=r"Counter-v0 failed: TypeError.*render_mode"):
        env = envs.make("gym/host_tasks:Counter-v0")
        play(env, alternating(env), 0, 1)
    env = envs.make("CartPole-v1")._replace(render=None)
    with pytest.raises(ConfigurationError, match="cannot draw itself"):
        play(env, alternating(env), 0, 1)


def grey_frames(number):
    frames = [np.full((40, 80, 3), 10 * index, np.uint8) for index in range(number)]
    return [captioned(frame, 20, 10, "step 3") for frame in frames]


def test_a_gif_keeps_the_size_and_the_speed(tmp_path):
    write_animation(tmp_path / "grey.gif", grey_frames(5), fps=20)
    with Image.open(tmp_path / "grey.gif") as image:
        assert image.size == (20, 10 + CAPTION)
        assert image.n_frames == 5
        assert image.info["duration"] == 50


def test_a_video_is_written_too(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    write_animation(tmp_path / "grey.mp4", grey_frames(5), fps=60)
    assert ffmpeg.count_frames_and_secs(str(tmp_path / "grey.mp4"))[0] == 5


def test_pictures_are_drawn_only_if_they_fit_into_memory(monkeypatch):
    env = envs.make("CartPole-v1")
    drawn = lambda: play(env, alternating(env), 0, 1)
    assert len(drawn().images) == 2
    monkeypatch.setattr("trpo_jax.running.memory.free_bytes", lambda device: 1000)
    with pytest.raises(ConfigurationError, match=r"Picture 1 of 320 x .* GB .*Lower --width"):
        drawn()


def black(states):
    return [np.zeros((4, 4, 3), np.uint8) for _ in states]


def test_a_policy_keeps_its_memory_while_an_episode_is_drawn():
    env = counter(time_limit=5)

    def step(key, count, action):
        count, result = env.step(key, count, action)
        return count, result._replace(reward=10.0**count * action)

    film = play(env._replace(step=step, render=black), alternating(env), 0, 9)
    assert film.total_reward == 10**2 + 10**4


@pytest.mark.parametrize(("num_steps", "cut"), [(2, True), (3, False), (9, False)])
def test_an_episode_that_was_cut_is_marked(num_steps, cut, monkeypatch):
    texts = []

    def noted(*args):
        texts.append(args[-1])
        return captioned(*args)

    monkeypatch.setattr("trpo_jax.running.animation.captioned", noted)
    env = counter(time_limit=3)._replace(render=black)
    film = play(env, alternating(env), 0, num_steps, every=2)
    assert (film.num_steps, film.cut) == (min(num_steps, 3), cut)
    assert texts == ["step 0", "step 2, cut"] if cut else ["step 0", "step 2", "step 3"]


def test_a_table_under_a_limit_marks_what_reaches_the_bar_and_keeps_the_limit():
    returns, within, beyond = [90.0, 100.0, 110.0], [20.0, 21.0, 22.0], [20.0, 30.0, 40.0]
    found = {
        **{"env": "velocity/Hopper", "algorithm": "cpo", "seeds": [1, 2, 3], "steps": 1000},
        **{"updates_above": 0.25, "mean_excess": 3.0, "versions": {"jax": "1"}, "commit": None},
        "device": {"kind": "cpu"},
        "stochastic": {"return": returns, "cost": within},
        "deterministic": {"return": returns, "cost": beyond},
    }
    report = {"title": "T", "command": "C", "limit": 25, "bars": {"Hopper": 99}, "notes": "N"}
    report |= {"tasks": {"Hopper": {}}, "rows": {"cpo": {"Hopper": found}}}
    row = next(x for x in limits.table_lines(report) if "cpo" in x)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["Hopper", "cpo", "1,000", "3"]
    assert cells[4].startswith("**100 (")
    assert cells[6].startswith("100 (")  # its cost is above the limit
    assert cells[-2:] == ["25 %", "3.0"]


def test_an_episode_on_the_host_counts_only_its_own_costs():
    def open(seeds, num_envs, render=False):
        shown, no = np.zeros((num_envs, 1), np.float32), np.zeros(num_envs, bool)
        step = lambda actions: StepResult(shown, np.ones(num_envs), no, no, [[actions[0], 1.5]])
        frames = lambda: np.zeros((num_envs, 4, 4, 3), np.uint8)
        return Pool(lambda mask: shown, step, lambda: None, frames)

    env = host_environment(
        "host", counter().observation, Discrete(2), None, open, costs=("own", "one")
    )
    film = play(env, alternating(env), 0, 4)
    np.testing.assert_array_equal(film.total_costs, [2, 6])


def test_the_costs_of_an_episode_are_printed_with_their_limits(tmp_path, monkeypatch, capsys):
    env = toll_road(4)
    film = play(env._replace(render=black), alternating(env), 0, 9)
    np.testing.assert_array_equal(film.total_costs, [2])
    write_run(tmp_path / "run", costs=[[1.0, 2.0, 3.0]], cost_limit=5.0)
    act, film = alternating(env), film._replace(images=grey_frames(2), total_reward=1.5)
    monkeypatch.setattr(render, "make_stored", lambda *args, **flags: env)
    monkeypatch.setattr(render, "load_policy", lambda *args, **flags: act)
    monkeypatch.setattr(render, "play", lambda *args: film)
    assert render.main([str(tmp_path / "run")]) == 0
    assert "Return 1.5, cost toll 2.0 (limit 5) in 4 steps: " in capsys.readouterr().out
    write_run(tmp_path / "free", costs=[[1.0, 2.0, 3.0]])
    assert render.main([str(tmp_path / "free")]) == 0
    assert "Return 1.5, cost toll 2.0 in 4 steps: " in capsys.readouterr().out

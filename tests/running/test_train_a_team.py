"""A team that is trained from Python: resuming, evaluating, storing, drawing, starting from it."""

import jax
import numpy as np
import probes
import pytest

from trpo_jax.algorithms import hatrpo, mappo
from trpo_jax.envs.specs import Discrete, split_part
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.export import export
from trpo_jax.records.policies import load_policy
from trpo_jax.records.runs import read_metrics
from trpo_jax.running.animation import play
from trpo_jax.running.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("train_a_team"),
    pytest.mark.usefixtures("shared_programs"),
]

TINY = {"num_envs": 2, "num_steps": 16, "hidden_sizes": (8,), "critic_epochs": 1}
TINY |= {"critic_minibatches": 2}
CONFIG = hatrpo.Config(**TINY, memory="gru", memory_size=3)
RUN = {"seeds": 2, "evaluation_episodes": 2, "progress": False, "checkpoint_every": 2}


def team():
    """Returns a team of two whose actions differ, with masks, and a state for the critic."""
    env = probes.team_of(probes.noise(masked=True), 2, (Discrete(2), Discrete(3)))
    state = probes.noise().observation

    def with_state(observation):
        return observation | {"state": observation["observation"][0] * 2}

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(observation=with_state(result.observation))

    def reset(key):
        state, observation = env.reset(key)
        return state, with_state(observation)

    observation = env.observation | {"state": state}
    return env._replace(
        name="team",
        reset=reset,
        step=step,
        observation=observation,
        critic_observation="state",
        render=lambda states: [np.full((4, 4, 3), 9, np.uint8) for _ in states],
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("team") / "run"
    return train(team(), CONFIG, **RUN, total_steps=128, out=out)


def test_a_run_of_a_team_is_stored_with_its_agents(finished):
    metrics = read_metrics(finished.folder / "metrics.csv")
    for name in ("kl", "step_rejected"):
        each = [metrics[f"{name}_agent_{index}"] for index in range(2)]
        np.testing.assert_allclose(np.mean(each, axis=0), metrics[name], rtol=1e-5)
    act = load_policy(finished.folder, seed=1)
    shown, _ = split_part(team().reset(jax.random.key(0))[1], "state")
    assert act.remembers
    actions = act(shown)
    assert actions.shape == (2,)
    assert actions[0] in (0, 1)
    again = finished.policy(seed=1)
    np.testing.assert_array_equal(again(shown), actions)
    act.start()
    assert act(jax.tree.map(lambda x: np.stack([x] * 3), shown)).shape == (3, 2)


def test_a_resumed_team_gives_the_numbers_of_one_that_never_stopped(finished, tmp_path):
    options = RUN | {"out": tmp_path / "run"}
    train(team(), CONFIG, **options, total_steps=64)
    resumed = train(team(), CONFIG, **options, total_steps=128, resume=True)
    assert resumed.num_updates == finished.num_updates
    for a, b in zip(*map(jax.tree.leaves, (resumed.learnt, finished.learnt)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(resumed.evaluation.returns, finished.evaluation.returns)


def test_a_seed_of_a_team_does_not_depend_on_other_seeds(finished):
    alone = train(team(), CONFIG, seeds=(1,), progress=False, total_steps=128)
    np.testing.assert_allclose(alone.metrics["kl"][0], finished.metrics["kl"][1], rtol=1e-3)


def test_a_team_can_start_from_the_policies_of_another_team(finished):
    options = {"seeds": 2, "progress": False, "total_steps": 32, "init_from": finished.folder}
    later = train(team(), CONFIG, **options)
    assert later.num_updates == 1
    shared = CONFIG.replace(share_parameters=True)
    with pytest.raises(ConfigurationError, match="share_parameters = False, not True"):
        train(team(), shared, **options)


def test_a_team_can_be_drawn(finished):
    act = finished.policy()
    found = play(team(), act, 0, num_steps=5)
    assert len(found.images) > 1
    assert np.isfinite(found.total_reward)


@pytest.mark.parametrize(("module", "own"), [(mappo, {"memory": "gru"})])
def test_other_algorithms_for_teams_are_stored_too(module, own, tmp_path):
    config = module.Config(**TINY | own, policy_epochs=1, policy_minibatches=2)
    run = train(team(), config, **RUN, total_steps=64, out=tmp_path / "run")
    shown, _ = split_part(team().reset(jax.random.key(0))[1], "state")
    np.testing.assert_array_equal(load_policy(run.folder)(shown), run.policy()(shown))


def test_a_team_can_only_be_exported_as_a_program(tmp_path):
    config = hatrpo.Config(**TINY)
    act = train("native/ClimbingGame", config, seeds=1, total_steps=32, progress=False).policy()
    with pytest.raises(ConfigurationError, match=r"several agents\. Only the format \.jax"):
        export(act, tmp_path / "policy.npz")
    export(act, tmp_path / "policy.jax")
    program = jax.export.deserialize(bytearray((tmp_path / "policy.jax").read_bytes()))
    shown = np.ones((3, 2, 1), np.float32)
    np.testing.assert_array_equal(program.call(shown), act(shown))

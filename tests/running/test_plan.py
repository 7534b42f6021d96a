import jax
import pytest

from trpo_jax.algorithms import cpo, npg, trpo, trpo_lag, ua_trpo
from trpo_jax.envs.native import toll_road
from trpo_jax.records.resuming import differing_settings
from trpo_jax.running.plan import plan_run

RUN = {"seeds": 1, "total_steps": 4096}


@pytest.mark.parametrize(
    ("env", "config", "expected"),
    [
        ("CartPole-v1", trpo.Config(), []),
        ("CartPole-v1", trpo.Config(log_std_init=-1.0), ["log_std_init = -1.0"]),
        ("CartPole-v1", trpo.Config(state_dependent_std=True), ["state_dependent_std = True"]),
        ("Pendulum-v1", trpo.Config(log_std_init=-1.0), []),
        ("Pendulum-v1", trpo.Config(ou_rho=0.7), ["ou_rho = 0.7"]),
        ("Pendulum-v1", trpo.Config(ou_rho=0.7, exploration="ou"), []),
        ("Pendulum-v1", ua_trpo.Config(color_beta=1.0), ["color_beta = 1.0"]),
        ("CartPole-v1", trpo.Config(critic_max_change=0.2), ["critic_max_change = 0.2"]),
        (
            "CartPole-v1",
            trpo.Config(gae_critic="trust_region", critic_lr=0.1, critic_epochs=3),
            ["critic_lr = 0.1", "critic_epochs = 3"],
        ),
        ("CartPole-v1", npg.Config(step_size=0.3), ["step_size = 0.3"]),
        ("CartPole-v1", npg.Config(normalized_step=False, max_kl=0.3), ["max_kl = 0.3"]),
        ("CartPole-v1", npg.Config(normalized_step=False, kl_penalty=2.0), ["kl_penalty = 2.0"]),
        ("CartPole-v1", trpo.Config(penalty_memory=0.9), ["penalty_memory = 0.9"]),
        ("CartPole-v1", trpo.Config(penalty_memory=0.9, kl_penalty=2.0), []),
        (
            "CartPole-v1",
            trpo.Config(line_search_steps=1, line_search_shrink=0.5),
            ["line_search_shrink = 0.5"],
        ),
    ],
)
def test_a_note_names_settings_without_effect(env, config, expected):
    notes = plan_run(env, config, **RUN).notes
    assert [note.split(" has no effect: ")[0] for note in notes] == expected


def test_a_note_names_schedules_without_effect():
    schedules = {"ou_rho": "linear:0.5:0.1"}
    (note,) = plan_run("Pendulum-v1", trpo.Config(), **RUN, schedules=schedules).notes
    assert note == "ou_rho = 0.5 has no effect: exploration is white, not ou."


@pytest.mark.parametrize(
    ("name", "value"), [("jax_threefry_partitionable", False), ("jax_default_prng_impl", "rbg")]
)
def test_the_random_settings_of_jax_are_stored_and_compared(name, value):
    usual = plan_run("CartPole-v1", **RUN).description
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        other = plan_run("CartPole-v1", **RUN).description
    finally:
        jax.config.update(name, before)
    short = name.removeprefix("jax_")
    assert differing_settings(other, usual) == f"{short} = {before!r}, not {value!r}"
    assert not differing_settings(usual, usual)


def test_a_note_names_costs_that_the_algorithm_ignores():
    (note,) = plan_run(toll_road(), trpo.Config(), **RUN).notes
    assert note.startswith("native/TollRoad has costs (toll). They are recorded, but trpo")
    assert plan_run(toll_road(), cpo.Config(), **RUN).notes == ()


def test_limits_of_several_costs_are_described_as_they_were_given():
    env = toll_road()._replace(costs=("a", "b"))
    description = plan_run(env, trpo_lag.Config(cost_limit=(5.0, 2.0)), **RUN).description
    assert description["config"]["cost_limit"] == [5.0, 2.0]
    assert description["cost_names"] == ["a", "b"]
    command = plan_run("native/TollRoad", cpo.Config(cost_limit=(5.0,)), **RUN).description[
        "command"
    ]
    assert command[command.index("--cost-limit") + 1] == "5.0"


def test_policies_are_judged_by_the_limit_of_the_last_update():
    config = cpo.Config(num_envs=4, num_steps=64)  # 16 updates
    schedules = {"cost_limit": "linear:20:4"}
    plan = plan_run(toll_road(), config, **RUN, schedules=schedules)
    assert plan.cost_limits == pytest.approx([20 - 16 * 15 / 16])
    assert plan_run(toll_road(), config.replace(cost_limit=7.0), **RUN).cost_limits == [7]
    assert plan_run(toll_road(), trpo.Config(), **RUN).cost_limits is None

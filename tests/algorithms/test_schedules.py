import json

import host_tasks  # noqa: F401  registers its environments
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest

from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.schedules import parse_schedule, require_real, require_schedules
from trpo_jax.cli import train as script
from trpo_jax.cli.command_line import flags_in
from trpo_jax.cli.run_flags import parse_run, plan_of
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import read_metrics
from trpo_jax.running.train import train

SMALL = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (4,), "critic_epochs": 1}
SMALL |= {"critic_minibatches": 2, "decay_steps": 0}
RUN = {"seeds": 2, "total_steps": 64, "evaluation_episodes": 1, "progress": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear:1:0.5", [1, 0.875, 0.75, 0.5, 0.5]),
        ("linear:1:0.5:200", [1, 0.75, 0.5, 0.5, 0.5]),
        ("exponential:1:0.25", [1, 0.7071068, 0.5, 0.25, 0.25]),
        ("cosine:1:0.5:400", [1, 0.9267767, 0.75, 0.5, 0.5]),
        ("piecewise:1:150:3:400:2", [1, 1, 3, 2, 2]),
    ],
)
def test_a_text_describes_a_schedule(text, expected):
    schedule, described = parse_schedule(text, 400)
    steps = jnp.array([0, 100, 200, 400, 1000], jnp.float32)
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=1e-6)
    again, _ = parse_schedule(described, 10**6)  # in a longer run
    np.testing.assert_array_equal(jax.vmap(again)(steps), jax.vmap(schedule)(steps))


@pytest.mark.parametrize(
    "text",
    [
        *("", "linear", "linear:1", "linear:a:b", "linear:1:2:0", "linear:1:2:3:4", "sine:1:2"),
        *("exponential:1:0", "exponential:1:-1", "cosine:0:1"),
        *("piecewise:1", "piecewise:1:2", "piecewise:1:5:2:5:3", "piecewise:1:0:2"),
    ],
)
def test_a_text_that_is_no_schedule_is_refused_with_the_possible_forms(text):
    with pytest.raises(ConfigurationError, match=r"is no schedule\. It must be linear:START:END"):
        parse_schedule(text, 100)


def test_a_schedule_of_a_field_that_cannot_change_is_refused():
    config = trpo.Config()
    for name in ("num_envs", "activation", "normalize_observations", "log_std_init"):
        with pytest.raises(ConfigurationError, match=f"{name} cannot have a schedule.* max_kl"):
            require_real(config, name)
    with pytest.raises(ConfigurationError, match="Did you mean max_kl"):
        require_real(config, "maxkl")


@pytest.mark.parametrize(
    ("schedule", "where"),
    [
        (lambda steps: 0.02 - steps, "at 990 steps: max_kl = -989.9"),
        (lambda steps: steps, "at 0 steps: max_kl = 0.0"),
        (lambda steps: 1 / steps, "at 0 steps: max_kl = inf"),
        (lambda steps: jnp.where(steps == 500, jnp.nan, 0.01), "at 500 steps: max_kl = nan"),
    ],
)
def test_values_of_a_schedule_are_checked_over_the_whole_run(schedule, where):
    with pytest.raises(ConfigurationError, match=f"The schedule of max_kl, {where}"):
        require_schedules(trpo.Config(), {"max_kl": schedule}, 100, 10)


@pytest.mark.slow
def test_a_run_follows_its_schedules_and_reports_the_values():
    """Each update is the same as an update with a config of these values."""
    env = probes.action_from_observation(continuous=True)
    settings = SMALL | {"exploration": "ou"}
    schedules = {"max_kl": "linear:0.02:0", "ou_rho": lambda steps: 0.5 + steps / 200}
    schedules |= {"critic_lr": optax.piecewise_constant_schedule(1e-3, {32: 10.0})}
    run = train(env, trpo.Config(**settings), **RUN, schedules=schedules)
    values = {
        "max_kl": [0.02, 0.015, 0.01, 0.005],
        "ou_rho": [0.5, 0.58, 0.66, 0.74],
        "critic_lr": [1e-3, 1e-3, 1e-2, 1e-2],
    }
    for name, expected in values.items():
        np.testing.assert_allclose(run.metrics[name], [expected] * 2, rtol=1e-6)
    assert (run.metrics["kl"] <= 1.01 * run.metrics["max_kl"]).all()

    @jax.jit
    def update(state, config):
        return trpo.make(env, config).update(state)

    state = None
    for index in range(4):
        numbers = {name: jnp.float32(run.metrics[name][0, index]) for name in values}
        config = trpo.Config(**settings).replace(**numbers)
        state = trpo.make(env, config).init(jax.random.key(0)) if state is None else state
        state, metrics = update(state, config)
        np.testing.assert_allclose(metrics["kl"], run.metrics["kl"][0, index], rtol=2e-4)
        np.testing.assert_allclose(
            metrics["critic_loss"], run.metrics["critic_loss"][0, index], rtol=2e-4
        )


@pytest.mark.slow
def test_a_run_with_schedules_resumes_bit_for_bit(tmp_path):
    words = "--num-seeds 1 --total-steps 96 --evaluation-episodes 2 --quiet --checkpoint-every 1"
    words += " --num-envs 2 --num-steps 8 --hidden-sizes 4 --critic-epochs 1 --critic-minibatches 2"
    words += " --schedule max_kl=linear:0.02:0.01 --schedule critic-lr=cosine:0.01:0.001:50"
    words = ["--env", "gym/host_tasks:Counter-v0", *words.split()]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert script.main([*words, "--out", str(whole)]) == 0
    description = json.loads((whole / "config.json").read_text())
    assert description["schedules"] == {
        "max_kl": "linear:0.02:0.01:96",
        "critic_lr": "cosine:0.01:0.001:50",
    }
    assert (description["config"]["max_kl"], description["config"]["decay_steps"]) == (0.02, 0)
    assert "--schedule=max_kl=linear:0.02:0.01:96" in description["command"]
    plan = plan_of([*flags_in(description["command"]), "--out", str(half)])
    assert plan.description["schedules"] == description["schedules"]
    assert plan.config == plan_of([*words, "--out", str(half)]).config
    stop = lambda chunk: chunk.last_update >= 3
    settings = parse_run([*words, "--out", str(half)])[1] | {"progress": False}
    train(**settings, callback=stop)
    run = train(**settings | {"resume": True})
    stored = read_metrics(whole / "metrics.csv")
    np.testing.assert_allclose(run.metrics["max_kl"], stored["max_kl"], rtol=1e-6)
    np.testing.assert_allclose(run.metrics["critic_lr"], stored["critic_lr"], rtol=1e-6)
    assert run.num_updates == 6

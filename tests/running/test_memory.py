import jax
import pytest
from probes import counter

from trpo_jax.algorithms import qprop, trpo
from trpo_jax.errors import ConfigurationError, MemoryFailure
from trpo_jax.running import memory
from trpo_jax.running.loop import compile_program
from trpo_jax.running.memory import shortage_named
from trpo_jax.running.plan import plan_run
from trpo_jax.running.train import train

RUN = {"seeds": 2, "total_steps": 10**10, "evaluation_episodes": 2, "progress": False}
GIGANTIC = [
    ({"num_envs": 5 * 10**6}, {}, "seeds needs at least", "--num-envs (5,000,000) or --num-steps"),
    ({"num_steps": 10**7}, {}, "seeds needs at least", "--num-steps (10,000,000) or --num-seeds"),
    (
        {"hidden_sizes": (10**5, 10**5)},
        {},
        "seeds needs at least",
        "--hidden-sizes (100000 100000) or --num-seeds (2)",
    ),
    ({}, {"evaluation_episodes": 10**9}, "The evaluation needs", "--evaluation-episodes"),
    ({}, {"seeds": 10**6}, "The training of 1,000,000 seeds", "--num-seeds (1,000,000)"),
]


@pytest.mark.parametrize("env", ["CartPole-v1", "gym/CartPole-v1"])
@pytest.mark.parametrize(("config", "run", "what", "flags"), GIGANTIC)
def test_a_run_that_does_not_fit_into_memory_is_refused_before_compilation(
    env, config, run, what, flags, tmp_path, monkeypatch
):
    if env.startswith("gym/") and "evaluation_episodes" in run:
        pytest.skip("few environments are open at a time")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20e9)
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError) as caught:
        train(env, trpo.Config(**config), **RUN | run, out=out)
    message = str(caught.value)
    assert what in message
    assert flags in message
    assert "GB of memory, but only 20.0 GB are free on this CPU" in message
    assert not out.exists()


def test_the_memory_of_a_replay_is_counted(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20e9)
    with pytest.raises(ConfigurationError, match=r"--replay-size \(2,000,000,000\)"):
        train("Pendulum-v1", qprop.Config(replay_size=2 * 10**9), **RUN)


@pytest.mark.slow
def test_the_memory_of_the_compiled_program_is_checked_before_the_run(monkeypatch):
    env = counter(time_limit=3)
    config = trpo.Config(num_envs=2, num_steps=8, critic_minibatches=2, hidden_sizes=(4,))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5000)
    with pytest.raises(ConfigurationError, match=r"This run needs 0.0 GB .* Lower --num-seeds"):
        compile_program(trpo.make(env, config), (0, 1), 2)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 160000000000"),
    ],
)
def test_running_out_of_memory_gives_an_error_of_one_paragraph(error):
    reason = r"There is not enough memory.* Lower --num-seeds"
    with pytest.raises(MemoryFailure, match=reason), shortage_named():
        raise error
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), shortage_named():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"seeds": 2**31}, "seeds = 2,147,483,648 must be at most 1,000,000"),
        ({"evaluation_episodes": 2**31}, "evaluation_episodes = 2,147,483,648 must be at most"),
        ({"total_steps": 10**15}, "updates = .* must be at most 2,147,483,647"),
    ],
)
def test_numbers_beyond_32_bits_are_refused(run, message):
    with pytest.raises(ConfigurationError, match=message):
        plan_run("CartPole-v1", trpo.Config(num_envs=1, num_steps=16), **run)

import jax
import jax.numpy as jnp
import probes
import pytest
from learning import SMALL, train

from trpo_jax.algorithms import trpo_held_out
from trpo_jax.errors import ConfigurationError

pytestmark = pytest.mark.xdist_group("trpo_held_out")


@pytest.mark.slow
def test_noise_is_rarely_accepted_and_a_signal_is():
    settings = {"num_envs": 16, "num_steps": 8}
    noisy = probes.probe(
        "noise", lambda s, t: jnp.zeros(1), lambda s, t, a: s
    )  # the reward does not depend on the action
    _, _, on_noise = train(trpo_held_out, noisy, 60, **settings)
    _, _, on_signal = train(trpo_held_out, probes.action_choice(), 6, max_kl=0.05, **settings)
    assert on_noise["step_rejected"].mean() > 0.9
    assert on_signal["step_rejected"].mean() < 0.5


@pytest.mark.slow
def test_one_half_gives_the_step_and_the_other_half_tests_it():
    """The fitted half decides the direction. The held-out half decides if the step is accepted."""
    env = probes.action_choice()
    config = trpo_held_out.Config(**(SMALL | {"num_envs": 8}), gae_lambda=0.0)
    algorithm = trpo_held_out.make(env, config)
    state = algorithm.init(jax.random.key(0))
    state, trajectory = jax.jit(algorithm.collect)(state)
    state = state._replace(critic=jax.tree.map(jnp.zeros_like, state.critic))
    learn = jax.jit(algorithm.learn)
    logits_of = lambda actor: algorithm.policy(actor, (), jnp.zeros((1, 1)))[1].logits[0]
    right = 2.0 * trajectory.action - 1
    fitted = jnp.arange(8) < 4
    outcome = {}
    for first, second in [(1, 1), (1, -1), (-1, -1)]:
        rewards = jnp.where(fitted, first * right, second * right)
        new_state, metrics = learn(state, trajectory._replace(reward=rewards))
        logits = logits_of(new_state.actor)
        outcome[first, second] = float(logits[1] - logits[0]), bool(metrics["step_rejected"])
    before = logits_of(state.actor)
    assert outcome[1, 1][0] > before[1] - before[0] > outcome[-1, -1][0]
    assert [rejected for _, rejected in outcome.values()] == [False, True, False]


def test_too_few_environments_are_refused():
    with pytest.raises(ConfigurationError, match="num_envs = 3 cannot be halved"):
        trpo_held_out.make(
            probes.action_choice(),
            trpo_held_out.Config(**(SMALL | {"num_envs": 3, "num_steps": 16})),
        )

import chex
import jax
import jax.numpy as jnp
import learning
import numpy as np
import optax
import probes
import pytest

from trpo_jax.algorithms import ppo
from trpo_jax.errors import ConfigurationError

pytestmark = pytest.mark.xdist_group("ppo")

ONE_STEP = learning.SMALL | {
    "normalize_observations": False,
    "policy_epochs": 1,
    "policy_minibatches": 1,
    "policy_lr": 0.01,
}


PARTS = {"policy_minibatches": 4, "policy_epochs": 4}


@pytest.mark.slow
@learning.CHOICES_AND_NUMBERS
@pytest.mark.parametrize("loss", ["clip", "spo"])
def test_probe(probe, continuous, loss):
    learning.assert_learns(ppo, probe, continuous, loss=loss, policy_lr=0.01, **PARTS)


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage", "gain"),
    [
        ("clip", 1.0, 2.0, 2.0),
        ("clip", 1.1, 2.0, 2.2),
        ("clip", 1.5, 1.0, 1.2),
        ("clip", 0.5, 1.0, 0.5),
        ("clip", 1.5, -1.0, -1.5),
        ("clip", 0.5, -1.0, -0.8),
        ("spo", 1.0, 2.0, 2.0),
        ("spo", 1.2, 1.0, 1.1),
        ("spo", 1.6, 1.0, 0.7),
        ("spo", 0.8, -2.0, -1.8),
        ("spo", 1.2, -2.0, -2.6),
    ],
)
def test_the_gain_of_an_action(loss, ratio, advantage, gain):
    result = ppo.GAINS[loss](jnp.float32(ratio), jnp.float32(advantage), 0.2)
    np.testing.assert_allclose(result, gain, rtol=1e-6)


@pytest.mark.parametrize("advantage", [0.5, -3.0])
def test_the_gain_of_spo_is_largest_at_the_clip_and_falls_beyond_it(advantage):
    slope = jax.grad(lambda ratio: ppo.spo_gain(ratio, jnp.float32(advantage), 0.2))
    edge = 1 + 0.2 * np.sign(advantage)
    np.testing.assert_allclose(slope(edge), 0, atol=1e-5)
    assert slope(1.0) * advantage > 0
    assert slope(1 + 2 * (edge - 1)) * advantage < 0


@pytest.fixture(scope="module")
def one_step():
    """Returns the policy gradient, and `(num_updates, settings) -> change of the parameters`."""
    env = probes.action_from_observation()
    config = ppo.Config(**ONE_STEP)
    algorithm = ppo.make(env, config)
    state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
    gradient = learning.policy_gradient(env, config, state, trajectory)

    def change(num_updates=0, **settings):
        learn = ppo.make(env, config.replace(**settings)).learn

        @jax.jit
        @jax.vmap
        def new_params(num_updates):
            return learn(state._replace(num_updates=num_updates), trajectory)[0].actor.policy_params

        new = new_params(jnp.atleast_1d(num_updates))
        return jax.tree.map(jnp.subtract, new, state.actor.policy_params)

    return gradient, change


@pytest.mark.slow
@pytest.mark.parametrize("max_grad_norm", [1e9, 1e-4])
def test_one_epoch_with_one_minibatch_is_one_step_of_adam_along_the_clipped_gradient(
    one_step, max_grad_norm
):
    gradient, change = one_step
    norm = optax.tree.norm(gradient)
    assert 1e-3 < norm < 1e3
    clipped = optax.tree.scale(min(1.0, max_grad_norm / norm), gradient)
    expected = learning.adam_steps([clipped], learning_rate=0.01, eps=1e-5)
    actual = jax.tree.map(lambda x: x[0], change(max_grad_norm=max_grad_norm))
    chex.assert_trees_all_close(actual, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.slow
def test_decay_steps_lets_the_learning_rate_fall_to_zero_and_stay_there(one_step):
    _, change = one_step
    batch = 64
    largest = lambda tree: np.abs(tree["layers_1"]["Dense_0"]["kernel"]).max(axis=(1, 2))
    sizes = largest(change(jnp.arange(7), decay_steps=4 * batch))
    np.testing.assert_allclose(sizes / sizes[0], [1, 0.75, 0.5, 0.25, 0, 0, 0], rtol=1e-3)
    kept = largest(change(jnp.array([0, 5])))
    np.testing.assert_allclose(kept, sizes[0], rtol=1e-3)


def test_minibatches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"policy_minibatches = 7 does not .* 4 \* 16 = 64"
    ):
        ppo.make(probes.action_choice(), ppo.Config(**learning.SMALL, policy_minibatches=7))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigurationError, match=r"loss = .hinge. cannot work: .* clip, spo"):
        ppo.make(probes.action_choice(), ppo.Config(loss="hinge"))


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "shape"), [("none", (4, 4)), ("gru", (16, 1))])
def test_every_epoch_visits_every_sample_once(memory, shape, monkeypatch):
    """Adam takes one step for each minibatch. The minibatches of an epoch are the whole batch."""
    visited = []

    class Recorded(ppo.Minibatches):
        def take(self, indices):
            part = super().take(indices)
            jax.debug.callback(lambda x: visited.append(np.asarray(x)), part[0].advantages)
            return part

    monkeypatch.setattr(ppo, "Minibatches", Recorded)
    settings = {"policy_epochs": 3, "policy_minibatches": 4, "memory": memory, "memory_size": 3}
    config = ppo.Config(**(ONE_STEP | settings))
    algorithm = ppo.make(probes.value_of_observation(), config)
    state, _ = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert optax.tree.get(state.step_state, "count") == len(visited) == 12
    passes = [np.sort(np.concatenate(visited[4 * i : 4 * i + 4]), axis=None) for i in range(3)]
    assert passes[0].size == 64
    assert {x.shape for x in visited} == {shape}  # with a memory: whole sequences
    assert len(np.unique(passes[0])) > 1
    np.testing.assert_array_equal(passes[0], passes[1])
    np.testing.assert_array_equal(passes[0], passes[2])

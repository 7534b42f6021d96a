"""Updates of agents with a memory."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest

from trpo_jax import algorithms, envs
from trpo_jax.algorithms import trpo, trpo_ensemble, vpg
from trpo_jax.algorithms.natural_gradient import make_solve
from trpo_jax.algorithms.on_policy import estimate
from trpo_jax.algorithms.schedules import scheduled
from trpo_jax.critics import Sequences
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.solvers import damped_solver

pytestmark = pytest.mark.xdist_group("memory")

SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (4,), "critic_minibatches": 2}
SMALL |= {"critic_epochs": 1, "memory": "gru", "memory_size": 3}
OWN = {"ppo": {"policy_epochs": 1, "policy_minibatches": 2}, "trpo_ensemble": {"num_critics": 2}}
NAMES = ("trpo", "ppo", "ua_trpo", "trpo_ensemble", "trpo_held_out")  # kinds of policy steps


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_algorithms_learn_with_a_memory(name):
    module = algorithms.get(name)
    algorithm = module.make(probes.noise(), module.Config(**(SMALL | OWN.get(name, {}))))

    @jax.jit
    def run(key):
        state = algorithm.init(key)
        return state, *jax.lax.scan(lambda s, _: algorithm.update(s), state, length=2)

    with jax.debug_key_reuse(True), jax.debug_nans(True):
        state, learnt, metrics = run(jax.random.key(0))
    metrics = {name: values[-1] for name, values in metrics.items()}
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["kl"] > 0 or metrics["step_rejected"]
    moved = lambda a, b: [bool(x.any()) for x in jax.tree.leaves(jax.tree.map(jnp.subtract, a, b))]
    of_policy = moved(learnt.actor.policy_params["cell"], state.actor.policy_params["cell"])
    assert all(of_policy) or metrics["step_rejected"]
    assert all(moved(learnt.critic.params["cell"], state.critic.params["cell"]))


@pytest.mark.slow
def test_other_solvers_critics_and_explorations_learn_with_a_memory():
    settings = {"gae_critic": "trust_region", "exploration": "ou", "memory_checkpoint": True}
    settings |= {"fisher_subsample": 2, "memory": "lstm", "hidden_sizes": ()}
    algorithm = trpo.make(envs.make("Pendulum-v1"), trpo.Config(**(SMALL | settings)))
    _, metrics = jax.jit(lambda key: algorithm.update(algorithm.init(key)))(jax.random.key(0))
    assert all(np.isfinite(x) for x in metrics.values())
    assert 0 < metrics["kl"] <= 0.01


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "memory"), [("trpo", "gru"), ("trpo", "lstm"), ("npg", "gru"), ("vpg", "gru")]
)
def test_a_memory_keeps_its_types_if_float64_is_enabled(name, memory):
    module = algorithms.get(name)
    algorithm = module.make(probes.noise(), module.Config(**SMALL | {"memory": memory}))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    learnt, _ = jax.eval_shape(algorithm.update, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(learnt, state)


@pytest.mark.slow
@pytest.mark.parametrize("module", [vpg, trpo_ensemble])
def test_advantages_use_values_with_the_memory_of_their_step(module):
    """The value after a truncation uses the memory of the episode; a new episode has none."""
    env = probes.noise()
    own = OWN.get(module.__name__.rpartition(".")[-1], {})
    config = module.Config(**(SMALL | own), normalize_observations=False)
    algorithm = module.make(env, config)
    agent = algorithm.agent

    @jax.jit
    def run(key):
        state, _ = algorithm.update(algorithm.init(key))
        larger = lambda x: x + 0.5 * jax.random.normal(key, x.shape)
        critic = state.critic._replace(params=jax.tree.map(larger, state.critic.params))
        state = state._replace(critic=critic)
        after, trajectory = algorithm.collect(state)
        estimated, step_input, _ = estimate(env, config, agent, after, trajectory)
        return state, trajectory, estimated, step_input.batch

    state, trajectory, estimated, batch = run(jax.random.key(0))

    @jax.jit
    def step(carry, observation):
        """Returns the value of one observation, and the memory after it."""
        sequences = Sequences(carry, observation[None, None], jnp.zeros((1, 1), bool))
        values, carries = agent.critic.values(state.critic.params, sequences)
        return values[0, 0], jax.tree.map(lambda x: x[0], carries)

    fresh, ends = agent.critic.carry(1), 0
    for env_index in range(4):
        of_one = jax.tree.map(lambda x, i=env_index: x[:, i], trajectory)
        carry = jax.tree.map(lambda x, i=env_index: x[i : i + 1], state.rollout.critic_carry)
        values, following = [], []
        for t in range(8):
            carry = fresh if of_one.first[t] else carry
            value, carry = step(carry, of_one.observation[t])
            values.append(float(value))
            following.append(float(step(carry, of_one.next_observation[t])[0]))
            if of_one.truncated[t]:
                ends += 1
                without = float(step(fresh, of_one.next_observation[t])[0])
                assert abs(following[-1] - without) > 1e-3  # the memory changes the value
        kept = jax.tree.map(lambda x, i=env_index: x[i : i + 1], estimated.rollout.critic_carry)
        chex.assert_trees_all_close(kept, carry, rtol=1e-5, atol=1e-6)
        advantages, later = [], 0.0
        for t in reversed(range(8)):
            going_on = 0.0 if of_one.terminated[t] else 0.99
            error = float(of_one.reward[t]) + going_on * following[t] - values[t]
            later = error + (0.0 if of_one.done[t] else 0.99 * 0.95 * later)
            advantages.append(later)
        np.testing.assert_allclose(batch.values[:, env_index], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            batch.advantages[:, env_index], advantages[::-1], rtol=1e-4, atol=1e-5
        )
    assert ends >= 4
    assert not trajectory.first[0].all()
    assert any(x.any() for x in jax.tree.leaves(state.rollout.critic_carry))


@pytest.mark.slow
def test_the_critic_is_fitted_to_whole_sequences_with_their_first_memory():
    """With one minibatch and one epoch, the first step of Adam follows the sign of the gradient."""
    algorithm = vpg.make(probes.noise(), vpg.Config(**(SMALL | {"critic_minibatches": 1})))
    agent = algorithm.agent

    @jax.jit
    def run(key):
        state, _ = algorithm.update(algorithm.init(key))
        fresh = jax.tree.map(jnp.zeros_like, state.critic.optimizer)
        state = state._replace(critic=state.critic._replace(optimizer=fresh))
        state, trajectory = algorithm.collect(state)
        carry = state.rollout.critic_carry
        improved, fit_input, _ = algorithm.improve(state, trajectory)
        learnt, _ = algorithm.fit(state.critic, fit_input)

        def error(params, carry):
            sequences = fit_input.sequences._replace(carry=carry)
            values, _ = agent.critic.values(params, sequences)
            return jnp.mean((values - fit_input.targets) ** 2)

        gradients = [
            jax.grad(error)(state.critic.params, x) for x in (carry, improved.rollout.critic_carry)
        ]
        return jax.tree.map(jnp.subtract, learnt.params, state.critic.params), *gradients

    step, gradient, other = run(jax.random.key(0))
    adam = lambda x: -1e-3 * x / (jnp.abs(x) + 1e-8)
    chex.assert_trees_all_close(step, jax.tree.map(adam, gradient), rtol=1e-2, atol=1e-6)
    wrong = jax.tree.map(lambda a, b: bool((jnp.sign(a) != jnp.sign(b)).any()), gradient, other)
    assert any(jax.tree.leaves(wrong))


@pytest.mark.slow
def test_the_fisher_matrix_uses_every_kth_sequence():
    config = trpo.Config(**SMALL, fisher_subsample=2)
    algorithm = trpo.make(probes.noise(), config)
    agent = algorithm.agent

    @jax.jit
    def run(key):
        state, trajectory = algorithm.collect(algorithm.update(algorithm.init(key))[0])
        batch = estimate(algorithm.env, config, agent, state, trajectory)[1].batch
        params = state.actor.policy_params
        gradient = jax.grad(lambda p: agent.distributions(p, batch).log_prob(batch.actions).mean())(
            params
        )
        expected = []
        for envs_kept in ([0, 2], [1, 3], [0, 1]):
            part = jax.tree.map(lambda x, i=envs_kept: x[:, jnp.array(i)], batch)
            product = fisher_vector_product(lambda p, x=part: agent.distributions(p, x), params)
            solve = damped_solver(product, damping=config.damping, num_iterations=config.cg_iters)
            expected.append(solve(gradient).x)
        return make_solve(algorithm.env, config, agent, key, params, batch)(gradient).x, expected

    found, expected = run(jax.random.key(0))
    distance = lambda x: float(optax.global_norm(jax.tree.map(jnp.subtract, found, x)))
    even, odd, other = (distance(x) / float(optax.global_norm(found)) for x in expected)
    assert min(even, odd) < 1e-4 < 1e-2 < min(max(even, odd), other)


@pytest.mark.slow
def test_a_memory_works_with_schedules():
    """A run with a constant schedule is the same as a run without a schedule."""
    make, config = partial(trpo.make, probes.noise()), trpo.Config(**SMALL, max_kl=0.02)
    plain = make(config)
    with_schedule = scheduled(make, config, {"max_kl": lambda steps: 0.02 + 0 * steps})

    def run(algorithm):
        update, state = jax.jit(algorithm.update), jax.jit(algorithm.init)(jax.random.key(0))
        return update(update(state)[0])

    (state, metrics), (other, other_metrics) = run(plain), run(with_schedule)
    assert metrics["kl"] > 0
    chex.assert_trees_all_close(state.actor, other.actor, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(state.rollout.carry, other.rollout.carry, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["kl"], other_metrics["kl"], rtol=1e-3)
    assert any(x.any() for x in jax.tree.leaves(state.rollout.carry))


def recalling():
    """Returns an environment that shows a sign in its first step. The third action must name it."""

    def show(sign, t):
        return jnp.stack([sign * (t == 0), (t == 2) * 1.0])

    def reset(key):
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return (sign, jnp.zeros((), jnp.int32)), show(sign, 0)

    def step(key, state, action):
        sign, t = state
        reward = jnp.where(t == 2, 1.0 * (action == (sign > 0)), 0.0)
        no = jnp.zeros((), bool)
        result = envs.base.StepResult(show(sign, t + 1), reward, t == 2, no)
        return (sign, t + 1), result

    spec = envs.specs.ArraySpec((2,), np.dtype(np.float32))
    return envs.base.Environment("recalling", reset, step, spec, envs.specs.Discrete(2), None)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "least", "most"), [("none", 0.3, 0.7), ("gru", 0.95, 1.0)])
def test_a_memory_recalls_an_observation_two_steps_before(memory, least, most):
    settings = {"num_envs": 16, "num_steps": 15, "memory_size": 8, "critic_epochs": 4}
    settings |= {"max_kl": 0.05, "gamma": 0.9, "memory": memory, "normalize_observations": False}
    algorithm = trpo.make(recalling(), trpo.Config(**(SMALL | settings)))

    @jax.jit
    def run(key):
        return jax.lax.scan(lambda s, _: algorithm.update(s), algorithm.init(key), length=60)

    _, metrics = run(jax.random.key(0))
    assert least <= metrics["episodic_return"][-10:].mean() <= most

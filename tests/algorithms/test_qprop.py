import chex
import jax
import jax.numpy as jnp
import learning
import numpy as np
import optax
import probes
import pytest

from trpo_jax import envs
from trpo_jax.algorithms import qprop
from trpo_jax.critics import fit_with_target, init_critic
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import make_action_critic

pytestmark = pytest.mark.xdist_group("qprop")  # one worker shares compiled programs

SMALL = {
    "num_envs": 4,
    "num_steps": 16,
    "hidden_sizes": (8,),
    "critic_minibatches": 4,
    "replay_size": 512,
    "q_minibatch": 16,
}


# --- the probes: values learnt by V and by Q

LEARN = {"q_lr": 0.01, "q_tau": 0.05, "max_kl": 0.05, "replay_size": 512, "q_minibatch": 16}


@pytest.mark.slow
@pytest.mark.parametrize("eta", ["conservative", "standard"])
@pytest.mark.parametrize("probe", probes.PROBES)
def test_probe(probe, eta):
    learning.assert_learns(qprop, probe, continuous=True, eta=eta, **LEARN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "observations", "expected"),
    [
        ("constant_value", [0.0], [1.0]),
        ("value_of_observation", [1.0, -1.0], [1.0, -1.0]),
        ("discounting", [0.0, 1.0], [0.7, 1.0]),
    ],
)
def test_q_and_its_target_learn_the_values(probe, observations, expected):
    made = learning.learnt(qprop, probe, continuous=True, eta="standard", **LEARN)
    algorithm, state, *_ = made
    env = probes.constant_value(continuous=True)
    q = make_action_critic(env.observation, env.action, hidden_sizes=SMALL["hidden_sizes"]).apply
    seen = jnp.array(observations)[:, None]
    means = algorithm.policy(state.actor, (), seen)[1].mode()
    for params in (state.step_state.critic.params, state.step_state.target_params):
        np.testing.assert_allclose(q(params, seen, means), expected, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("eta", "least"), [("conservative", 0.5), ("standard", 1.0)])
def test_q_is_useful_until_the_best_actions_are_found(eta, least):
    probe = "action_from_observation"
    _, _, metrics, *_ = learning.learnt(qprop, probe, continuous=True, eta=eta, **LEARN)
    assert metrics["control_variate_correlation"][:40].mean() > 0.05
    assert least <= metrics["eta_mean"].mean() <= 1.0


# --- the targets of Q


@pytest.fixture(scope="module")
def still():
    """Returns an algorithm with a constant Q, and a trajectory that repeats one transition."""
    env = envs.make("Pendulum-v1")
    config = qprop.Config(**SMALL, q_lr=0.0, q_tau=0.0, gamma=0.9, normalize_observations=False)
    algorithm = qprop.make(env, config)
    state = jax.jit(algorithm.init)(jax.random.key(1))
    # The target network differs from Q, so that the test can tell them apart.
    target = jax.tree.map(lambda x: 1.5 * x + 0.1, state.step_state.target_params)
    state = state._replace(step_state=state.step_state._replace(target_params=target))
    collected, trajectory = jax.jit(algorithm.collect)(state)
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), trajectory)
    return env, algorithm, jax.jit(algorithm.learn), collected, alike


@pytest.mark.slow
@pytest.mark.parametrize(("terminated", "truncated"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_termination_stops_the_target_of_q_and_truncation_does_not(still, terminated, truncated):
    env, algorithm, learn, state, trajectory = still
    flags = jnp.zeros_like(trajectory.terminated)
    trajectory = trajectory._replace(
        terminated=flags | bool(terminated), truncated=flags | bool(truncated)
    )
    _, metrics = learn(state, trajectory)
    row = jax.tree.map(lambda x: x[0, 0], trajectory)
    q = make_action_critic(env.observation, env.action, hidden_sizes=(8,)).apply
    following = q(
        state.step_state.target_params,
        row.next_observation,
        algorithm.policy(state.actor, (), row.next_observation)[1].mode(),
    )
    target = row.reward + (0.0 if terminated else 0.9 * following)
    error = q(state.step_state.critic.params, row.observation, row.action) - target
    np.testing.assert_allclose(metrics["q_loss"], error**2, rtol=1e-4)
    assert abs(following) > 0.1


def test_the_target_network_moves_by_tau_after_each_step():
    rows = np.arange(3, dtype=np.float32)
    loss = lambda params, target, rows: jnp.sum((params["w"] - target["w"] - rows) ** 2)
    settings = {"learning_rate": 0.1, "tau": 0.25, "steps": 4}

    @jax.jit
    def results(key, params, target, rows):
        critic, new_target, _ = fit_with_target(
            key, lambda key: rows, loss, init_critic(params), target, **settings
        )
        optimizer = optax.adam(0.1)
        moments = optimizer.init(params)
        for _ in range(4):
            gradient = {"w": 2 * (params["w"] - target["w"] - rows)}
            updates, moments = optimizer.update(gradient, moments)
            params = optax.apply_updates(params, updates)
            target = {"w": target["w"] + 0.25 * (params["w"] - target["w"])}
        return (critic.params, new_target), (params, target)

    params, target = ({"w": np.full(3, x, np.float32)} for x in (1.0, 5.0))
    found, expected = results(jax.random.key(0), params, target, rows)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_replay_buffer_stores_transitions_in_the_units_of_the_environment():
    env = envs.make("Pendulum-v1")
    algorithm = qprop.make(env, qprop.Config(**(SMALL | {"replay_size": 100}), scale_rewards=True))
    state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
    learnt, _ = jax.jit(algorithm.learn)(state, trajectory)
    replay = learnt.step_state.replay
    assert replay.size == replay.position == 64
    for name in qprop.Experience._fields:
        given, held = getattr(trajectory, name), getattr(replay.rows, name)
        np.testing.assert_array_equal(held[:64].reshape(given.shape), given)
    learnt, _ = jax.jit(algorithm.update)(learnt)
    assert (learnt.step_state.replay.size, learnt.step_state.replay.position) == (100, 28)


# --- whole runs


@pytest.mark.slow
def test_correlated_exploration_and_several_seeds_run_in_one_program():
    env = envs.make("Pendulum-v1")
    algorithm = qprop.make(env, qprop.Config(**SMALL, exploration="ou", q_updates=3))
    run = lambda key: jax.lax.scan(lambda s, _: algorithm.update(s), algorithm.init(key), length=3)
    state, metrics = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2))
    chex.assert_tree_all_finite({k: v for k, v in metrics.items() if "episod" not in k})
    assert metrics["kl"].max() <= 0.01
    first = jax.tree.leaves(state.step_state.critic.params)[0]
    assert not np.allclose(first[0], first[1])  # each seed has its own Q


def test_discrete_actions_are_refused():
    with pytest.raises(ConfigurationError, match="qprop needs continuous actions"):
        qprop.make(envs.make("CartPole-v1"))


def test_a_replay_buffer_smaller_than_a_batch_is_refused():
    with pytest.raises(ConfigurationError, match=r"replay_size = 63 .* 4 \* 16 = 64"):
        qprop.make(envs.make("Pendulum-v1"), qprop.Config(**(SMALL | {"replay_size": 63})))


@pytest.mark.parametrize("field", ["q_lr", "q_tau", "q_minibatch", "q_updates", "replay_size"])
def test_the_error_names_a_field_that_cannot_work(field):
    with pytest.raises(ConfigurationError, match=field):
        qprop.make(envs.make("Pendulum-v1"), qprop.Config(**(SMALL | {field: -1})))

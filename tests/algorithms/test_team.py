"""Steps of a team: with one agent, compound advantages, the order, and padded rows."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from trpo_jax import envs
from trpo_jax.agent import Agent, Policy, build_policy, memoryless
from trpo_jax.algorithms import hatrpo, trpo
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.algorithms.team import (
    as_environments,
    batch_of_agent,
    make_team_algorithm,
    team_metrics,
)
from trpo_jax.critics import Critic, Sequences, init_critic
from trpo_jax.distributions import Categorical, DiagGaussian
from trpo_jax.envs.base import StepResult
from trpo_jax.envs.native import CLIMBING
from trpo_jax.envs.specs import Agents, ArraySpec, Box, Discrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.exploration import ou, white
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.networks import Network
from trpo_jax.observing import observe
from trpo_jax.recurrent import restarted
from trpo_jax.solvers import damped_solver
from trpo_jax.teams import build_team_policy, make_team, row_policy, rows_of, team_rows
from trpo_jax.trust_region import importance_sampled_surrogate, trust_region_step

SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (4,), "critic_minibatches": 2}
SMALL |= {"critic_epochs": 1}
FLOAT = np.dtype(np.float32)
NETWORK = {"hidden_sizes": (5,), "activation": "tanh", "state_dependent_std": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("continuous", "own"),
    [(False, {}), (True, {"memory": "gru", "memory_size": 3, "fisher_subsample": 2})],
)
def test_hatrpo_of_one_agent_is_trpo_bit_for_bit(continuous, own):
    env = probes.action_from_observation(continuous)
    alone = trpo.make(env, trpo.Config(**SMALL | own))
    config = hatrpo.Config(**SMALL | own, normalize_values=False)
    team = hatrpo.make(probes.team_of(env, 1), config)
    states = [jax.jit(x.init)(jax.random.key(0)) for x in (alone, team)]
    updates = [jax.jit(x.update) for x in (alone, team)]
    for _ in range(3):
        updated = [update(state) for update, state in zip(updates, states, strict=True)]
        states, metrics = zip(*updated, strict=True)
    assert metrics[0]["kl"] > 0
    of_team = jax.tree.map(lambda x: x[0], states[1].actor.policy_params)
    chex.assert_trees_all_equal(states[0].actor.policy_params, of_team)
    chex.assert_trees_all_equal(states[0].critic, states[1].critic)
    for name, value in metrics[0].items():
        np.testing.assert_array_equal(value, metrics[1][name], name)


def game(values):
    """Returns an environment of one step. `values` has an axis for each agent's action."""
    count = values.ndim
    shown = jnp.arange(count, dtype=jnp.float32)[:, None]

    def step(key, state, actions):
        reward = jnp.asarray(values)[tuple(actions)].astype(jnp.float32)
        return state, StepResult(shown, reward, jnp.ones((), bool), jnp.zeros((), bool))

    each = tuple(Discrete(n) for n in values.shape)
    spec = ArraySpec((count, 1), FLOAT)
    return probes.counter()._replace(
        name="game",
        reset=lambda key: ((), shown),
        step=step,
        observation=spec,
        action=Agents(each),
    )


def logits_policy(num_actions):
    """Returns a policy whose parameters are its logits, for all observations."""

    def unroll(params, carry, observations, first):
        return Categorical(jnp.broadcast_to(params, (*first.shape, num_actions)))

    def step(params, carry, observations):
        return carry, Categorical(jnp.broadcast_to(params, (len(observations), num_actions)))

    return Policy(lambda key: jnp.zeros(num_actions), lambda num_envs: (), step, unroll)


def constant_critic():
    """Returns a critic whose values are 0. It learns nothing."""
    return Critic(
        lambda key: init_critic(()),
        lambda params, sequences: (jnp.zeros(sequences.first.shape), ()),
        lambda key, state, sequences, targets: (state, jnp.zeros(())),
    )


def replay_all(algorithm, values):
    """Returns a state, and a trajectory in which the team takes each joint action once."""
    state = algorithm.init(jax.random.key(0))
    _, trajectory = algorithm.collect(state)
    joint = jnp.array(list(itertools.product(*map(range, values.shape))))
    rewards = values.ravel()
    return state, trajectory._replace(action=joint[None], reward=jnp.asarray(rewards)[None])


@pytest.mark.usefixtures("x64")
def test_each_agent_uses_the_advantages_after_the_steps_of_the_agents_before_it():
    """The gains equal sums over all joint actions, for every order (Kuba et al. 2022, lemma 1)."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 3, 3))
    values -= values.mean()
    new_logits = jnp.asarray(rng.normal(size=(3, 3)))
    new_logits = new_logits.at[1].set(0.0)  # the step of agent 1 is rejected

    def step_arguments(env, config, agent):
        def step(key, step_input):
            batch = step_input.batch
            params = new_logits[batch.observations[0, 0, 0].astype(int)]
            old = agent.distributions(step_input.actor.policy_params, batch)
            new = agent.distributions(params, batch)
            log_ratio = new.log_prob(batch.actions) - old.log_prob(batch.actions)
            gain = jnp.mean(jnp.exp(log_ratio) * batch.advantages)
            return params, (), {"gain": gain, "kl": gain}

        return {"policy_step": step}

    env = game(values)
    agent = Agent(logits_policy(3), constant_critic(), white())
    config = hatrpo.Config(
        num_envs=27, num_steps=1, critic_minibatches=1, normalize_observations=False
    )
    algorithm = make_team_algorithm(env, config, agent, step_arguments)
    state, trajectory = replay_all(algorithm, values)

    old, new = np.full((3, 3), 1 / 3), np.asarray(jax.nn.softmax(new_logits))

    def gains(order):
        found = np.zeros(3)
        for position, index in enumerate(order):
            moved = order[: position + 1]
            probabilities = [new[i] if i in moved else old[i] for i in range(3)]
            found[index] = np.einsum("abc,a,b,c->", values, *probabilities)
        return found

    expected = {order: gains(order) for order in itertools.permutations(range(3))}
    improve = jax.jit(lambda key: algorithm.improve(state._replace(key=key), trajectory)[2])
    orders = set()
    for seed in range(24):
        metrics = improve(jax.random.key(seed))
        found = np.array([metrics[f"kl_agent_{index}"] for index in range(3)])
        matching = [x for x, gain in expected.items() if np.allclose(found, gain, atol=1e-6)]
        assert matching, found
        orders.update(matching)
    # Two orders that differ only in the place of agent 1 have the same gains.
    assert {order[0] for order in orders} == {0, 1, 2}
    assert len(orders) == 6


def test_constant_advantages_stay_constant_after_the_steps_of_other_agents():
    """Otherwise an agent would follow the noise of the other agents' probability ratios.

    Each agent also keeps its own parameters and its own step state.
    """
    new_logits = jnp.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])

    def step_arguments(env, config, agent):
        def step(key, step_input):
            index = step_input.batch.observations[0, 0, 0].astype(int)
            spread = jnp.std(step_input.batch.advantages)
            return new_logits[index], step_input.step_state + index + 1, {"kl": spread}

        start = lambda key, params: jnp.sum(params).astype(int)
        return {"policy_step": step, "init_step_state": start}

    env = game(np.full((3, 3), 7.0))
    agent = Agent(logits_policy(3), constant_critic(), white())
    config = hatrpo.Config(
        num_envs=9, num_steps=1, critic_minibatches=1, normalize_observations=False
    )
    algorithm = make_team_algorithm(env, config, agent, step_arguments)
    state, trajectory = replay_all(algorithm, np.full((3, 3), 7.0))
    improve = jax.jit(algorithm.improve)
    for update in range(1, 4):  # the updates have different orders
        state, _, metrics = improve(state, trajectory)
        assert [metrics["kl_agent_0"], metrics["kl_agent_1"]] == [0, 0]
        np.testing.assert_array_equal(state.actor.policy_params, new_logits)
        np.testing.assert_array_equal(state.step_state, [update, 2 * update])
    assert metrics["reward_signal"]


def test_metrics_of_a_team_are_means_and_kl_max_is_the_largest():
    metrics = {"kl": jnp.array([1.0, 3.0]), "kl_max": jnp.array([5.0, 4.0])}
    metrics["entropy"] = jnp.array([0.5, 1.5])
    found = team_metrics(metrics)
    expected = {"kl": 2, "kl_max": 5, "entropy": 1, "kl_agent_0": 1, "kl_agent_1": 3}
    assert found == expected


@pytest.mark.parametrize("with_state", [False, True])
def test_the_critic_sees_the_state_of_the_team_or_all_observations(with_state):
    env = probes.team_of(probes.noise(masked=True), 2)
    if with_state:
        state = {"state": ArraySpec((3,), FLOAT)}
        env = env._replace(observation=env.observation | state, critic_observation="state")
    critic = make_team(env, hatrpo.Config(hidden_sizes=(4,))).critic
    params = critic.init(jax.random.key(0)).params
    shown = jax.tree.map(lambda spec: jnp.zeros((1, 1, *spec.shape)), env.observation)
    first = jnp.ones((1, 1), bool)
    value = lambda x: float(critic.values(params, Sequences((), x, first))[0][0, 0])
    changes = {}
    for name, x in shown.items():
        for index in range(x.shape[2]):
            moved = shown | {name: x.at[:, :, index].set(1.0)}
            changes[name, index] = value(moved) != value(shown)
    seen_part = "state" if with_state else "observation"
    assert changes == {(name, index): name == seen_part for name, index in changes}


def cut(x, like):
    """Returns the first part of an array, of the shape of `like`."""
    return x[tuple(map(slice, like.shape))]


def emptied(x, like):
    """Returns an array with zeros in the first part, which has the shape of `like`."""
    return x.at[tuple(map(slice, like.shape))].set(0)


def step_of(params, distributions, actions, advantages):
    """Returns a trust-region step with an exact solution."""

    @jax.jit
    def step(params, actions, advantages):
        product = fisher_vector_product(distributions, params)
        return trust_region_step(
            params,
            distributions,
            importance_sampled_surrogate(actions, advantages),
            damped_solver(product, damping=0.1, num_iterations=30),
            max_kl=0.01,
            damping=0.1,
            line_search_steps=10,
            line_search_shrink=0.8,
        )

    return step(params, actions, advantages)


MEAN_OF_COMPONENTS = hatrpo.Config(max_kl_per_dimension=True)
BOXES = tuple(Box(-np.ones(n, np.float32), np.ones(n, np.float32)) for n in (1, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("specs", [(Discrete(2), Discrete(4)), BOXES])
@pytest.mark.parametrize(("index", "size"), [(0, 2), (1, 4)])
def test_a_padded_agent_takes_the_same_step_as_an_agent_without_padding(specs, index, size):
    """The agents see 2 and 4 numbers. Each row has 4 numbers."""
    spec, batch = specs[index], (6, 5)
    rows = rows_of(ArraySpec((2, 4), FLOAT), Agents(specs), numbered=False)
    padded = row_policy(build_policy(rows.observation, rows.action, **NETWORK))
    small = build_policy(ArraySpec((size,), FLOAT), spec, **NETWORK)
    keys = jax.random.split(jax.random.key(index), 4)
    params = jax.tree.map(lambda x: x.astype(float), padded.init(keys[3]))
    own_params = jax.tree.map(cut, params, jax.eval_shape(small.init, keys[3]))

    own_seen, first = jax.random.normal(keys[0], (*batch, size)), jnp.zeros(batch, bool)
    seen = rows.of(jnp.zeros((*batch, 2, 4)).at[:, :, index, :size].set(own_seen), 2)
    row = jax.tree.map(lambda x: x[:, :, index], seen)
    own = lambda p: small.unroll(p, (), own_seen, first)
    wide = lambda p: padded.unroll(p, (), row, first)

    own_actions, actions = (x.sample(keys[1]) for x in (own(own_params), wide(params)))
    if isinstance(spec, Box):  # the other components keep their random values
        actions = actions.at[..., : spec.size].set(own_actions)
    else:
        assert (actions < spec.num_actions).all()
        actions = own_actions
    advantages = jax.random.normal(keys[2], batch)
    found, info = step_of(params, wide, actions, advantages)
    expected, own_info = step_of(own_params, own, own_actions, advantages)
    assert own_info.kl > 1e-3
    np.testing.assert_allclose(info.kl, own_info.kl, rtol=1e-6)
    np.testing.assert_allclose(info.surrogate_gain, own_info.surrogate_gain, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(cut, found, expected), expected, rtol=1e-6)
    rests = (jax.tree.map(emptied, tree, expected) for tree in (found, params))
    chex.assert_trees_all_equal(*rests)  # the parameters of the padding do not change


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_the_policy_of_a_team_gives_the_same_distributions_when_it_acts_and_learns(shared, memory):
    env = probes.team_of(probes.noise(masked=True), 3, (Discrete(3), Discrete(2), Discrete(3)))
    config = hatrpo.Config(**SMALL, share_parameters=shared, memory=memory, memory_size=3)
    algorithm = hatrpo.make(env, config)
    policy = algorithm.agent.policy

    @jax.jit
    def run(key):
        state = algorithm.init(key)
        start, actor = state.rollout.acting.carry, state.actor
        _, trajectory = algorithm.collect(state)

        def one_step(carry, row):
            observations, first = row
            carry = restarted(policy.carry, first, carry)
            carry, distribution = algorithm.policy(actor, carry, observations)
            return carry, distribution.logits

        _, stepped = jax.lax.scan(one_step, start, (trajectory.observation, trajectory.first))
        seen = observe(env.observation, actor.observation_statistics, trajectory.observation, True)
        whole = policy.unroll(actor.policy_params, start, seen, trajectory.first)
        return stepped, whole.logits, trajectory

    stepped, unrolled, trajectory = run(jax.random.key(0))
    assert trajectory.first[1:].any()
    assert stepped.shape == (8, 4, 3, 3)
    np.testing.assert_allclose(stepped, unrolled, rtol=1e-5, atol=1e-5)
    assert (trajectory.action[:, :, 1] < 2).all()  # this agent has two actions


@pytest.mark.parametrize("shared", [False, True])
def test_a_policy_of_the_user_sees_the_row_of_its_agent(shared):
    seen = []

    def see(params, x):
        seen.append(jax.tree.map(lambda x: x.shape[1:], x))
        return DiagGaussian(*[jnp.zeros((*jax.tree.leaves(x)[0].shape[:-1], 3)) + params] * 2)

    env = probes.team_of(probes.noise())._replace(action=Agents(BOXES))
    config = hatrpo.Config(**SMALL, share_parameters=shared)
    agent = make_team(env, config)
    agent = agent._replace(policy=memoryless(Network(lambda key: jnp.zeros(3), see)))
    algorithm = hatrpo.make(env, config, agent=agent)
    start = jax.eval_shape(algorithm.init, jax.random.key(0))
    jax.eval_shape(lambda state: algorithm.policy(state.actor, (), jnp.zeros((4, 2, 2))), start)
    shape = jax.tree.map(lambda spec: spec.shape, team_rows(env, config).observation)
    assert seen == [shape]


def test_settings_that_a_team_cannot_use_are_refused():
    env = probes.team_of(probes.noise())
    config = hatrpo.Config(share_parameters=True)
    agent = make_team(env, config)
    with pytest.raises(ConfigurationError, match=r"which a team cannot.*exploration.white\(\)"):
        hatrpo.make(env, config, agent=agent._replace(exploration=ou(2, 0.5)))
    uneven = env._replace(action=Agents(BOXES))
    hatrpo.make(uneven._replace(action=Agents(BOXES[:1] * 2)), MEAN_OF_COMPONENTS)
    with pytest.raises(ConfigurationError, match=r"max_kl_per_dimension = True.*1 or 3"):
        hatrpo.make(uneven, MEAN_OF_COMPONENTS)
    named = env._replace(observation={"agent": env.observation})
    hatrpo.make(named, hatrpo.Config())
    with pytest.raises(ConfigurationError, match="has a part 'agent'\\. The library adds"):
        hatrpo.make(named, config)


def test_a_shared_policy_sees_the_number_of_the_agent():
    observation, action = ArraySpec((3, 2), FLOAT), Agents((Discrete(2),) * 3)
    policy = build_team_policy(observation, action, share_parameters=True, **NETWORK)
    params = policy.init(jax.random.key(0))
    larger = jax.tree.map(lambda x: 10 * x + 0.1, params)
    alike = jnp.ones((1, 3, 2))
    _, distribution = policy.step(larger, (), alike)
    logits = np.asarray(distribution.logits[0])
    assert len(np.unique(logits.round(5), axis=0)) == 3
    own = build_team_policy(observation, action, share_parameters=False, **NETWORK)
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    numbers = 3 * NETWORK["hidden_sizes"][0]  # weights of the agent's number in the first layer
    assert sizes(own.init(jax.random.key(0))) == 3 * (sizes(params) - numbers)


def test_agents_with_shared_parameters_count_as_environments():
    names = ("observations", "actions", "carry", "first", "advantages", "values", "targets")
    key = jax.random.key(0)
    of_team = {name: jax.random.normal(key, (4, 2, 3, 5)) for name in ("observations", "actions")}
    of_team["carry"] = jax.random.normal(key, (1, 2, 3, 5))
    of_all = {name: jax.random.normal(key, (4, 2)) for name in names[3:]}
    batch = Batch(**of_team, **of_all, noise=())
    joined = as_environments(batch, 3)
    for index in range(3):
        own = batch_of_agent(batch, index)
        for name in names:
            every_third = getattr(joined, name)[:, index::3]
            np.testing.assert_array_equal(every_third, getattr(own, name), name)


@pytest.mark.slow
def test_hatrpo_improves_in_the_climbing_game_until_a_stable_joint_action():
    env = envs.make("native/ClimbingGame")
    config = hatrpo.Config(num_envs=512, num_steps=1, critic_minibatches=4, critic_epochs=2)
    algorithm = hatrpo.make(env, config)
    payoffs = jnp.asarray(CLIMBING)

    def value(state):
        _, distribution = algorithm.policy(state.actor, (), jnp.ones((1, 2, 1)))
        one, other = jax.nn.softmax(distribution.logits[0])
        return one @ payoffs @ other

    @jax.jit
    def run(key):
        def body(state, _):
            state, _ = algorithm.update(state)
            return state, value(state)

        state = algorithm.init(key)
        return value(state), jax.lax.scan(body, state, None, 60)[1]

    start, values = jax.tree.map(np.asarray, run(jax.random.key(0)))
    steps = np.diff(values, prepend=start)
    assert steps.min() > -0.1  # about the standard error of a batch of 512
    assert values[-1] > 4.5

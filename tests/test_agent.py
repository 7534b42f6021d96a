"""Networks of the user, of any library, wherever the library uses its own networks."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from flax import nnx

import trpo_jax
from trpo_jax import algorithms, envs
from trpo_jax.agent import Policy, make_agent, memoryless
from trpo_jax.algorithms import trpo, trpo_held_out, vpg
from trpo_jax.algorithms.base import learnt_of
from trpo_jax.algorithms.on_policy import estimate
from trpo_jax.critics import adam_critic
from trpo_jax.distributions import Categorical
from trpo_jax.envs.specs import split_mask
from trpo_jax.errors import ConfigurationError
from trpo_jax.exploration import ou, white
from trpo_jax.networks import Network, from_linen, from_nnx
from trpo_jax.records.policy_files import save_policy
from trpo_jax.recurrent import RecurrentNetwork

SMALL = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (4,), "critic_minibatches": 2}
OWN = {
    "ppo": {"policy_minibatches": 2},
    "qprop": {"q_updates": 1},
    "trpo_vine": {"num_states": 4},
    "trpo_held_out": {"num_envs": 4},
    "mappo": {"share_parameters": False},  # then each row is an array, as the networks here need
}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, observations):
        hidden = nn.tanh(nn.Dense(4)(observations))
        return Categorical(nn.Dense(2)(hidden))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, observations):
        return Categorical(self.out(nnx.tanh(self.hidden(observations))))


def plain():
    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (4, 2)), "b": jnp.zeros(2)}

    def apply(params, observations):
        assert observations.ndim == 2, "a network sees one batch axis"
        return Categorical(observations @ params["w"] + params["b"])

    return Network(init, apply)


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("CartPole-v1")


NETWORKS = {
    "linen": lambda env: from_linen(Linen(), env.observation),
    "nnx": lambda env: from_nnx(Nnx),
    "function": lambda env: plain(),
}


def own_agent(env, config, kind):
    return make_agent(env, config)._replace(policy=memoryless(NETWORKS[kind](env)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_of_the_user_trains_and_is_saved_and_loaded(kind, cartpole, tmp_path):
    config = trpo.Config(**SMALL | {"num_steps": 64})  # some poles fall
    agent = own_agent(cartpole, config, kind)
    algorithm = trpo.make(cartpole, config, agent=agent)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    learnt, metrics = jax.jit(algorithm.update)(state)
    assert 0 < metrics["kl"] <= 0.01
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(learnt.actor.policy_params) == shapes(agent.policy.init(jax.random.key(0)))

    path = tmp_path / "policy.msgpack"
    save_policy(path, algorithm, jax.tree.map(lambda x: x[None], learnt_of(learnt)), (3,))
    observations = jax.random.normal(jax.random.key(1), (5, 4))
    act = trpo_jax.load_policy(path, agent=agent)
    expected = algorithm.policy(learnt.actor, (), observations)[1].mode()
    np.testing.assert_array_equal(act(observations), expected)
    with pytest.raises(ConfigurationError, match=r"of your own.*load_policy\(path, agent=agent\)"):
        trpo_jax.load_policy(path)
    other = make_agent(cartpole, config)
    with pytest.raises(ConfigurationError, match="of another network than this agent's"):
        trpo_jax.load_policy(path, agent=other)


@pytest.mark.parametrize("name", [x for x in algorithms.ALGORITHMS if x != "qprop"])
def test_every_algorithm_uses_the_given_agent_and_builds_no_network(name, cartpole, monkeypatch):
    module = algorithms.get(name)
    config = module.Config(
        **(SMALL | {"num_steps": 64} | OWN.get(name, {}))
    )  # for PPO's minibatches
    agent = own_agent(cartpole, config, "function")
    env = probes.fit_for(name, cartpole)
    first = (lambda x: x) if env.num_agents is None else (lambda x: x[:, 0])  # agent of a team
    critic = Network(lambda key: jnp.zeros(4), lambda params, x: first(x) @ params)
    agent = agent._replace(critic=adam_critic(critic, epochs=1, minibatches=1))
    for maker in ("make_policy", "make_critic", "build_policy", "build_critic"):
        monkeypatch.setattr(f"trpo_jax.agent.{maker}", lambda *_, **__: pytest.fail("built"))
    algorithm = module.make(env, config, agent=agent)
    run = lambda key: algorithm.update(algorithm.init(key))
    learnt, metrics = jax.eval_shape(run, jax.random.key(0))  # tracing builds all networks
    assert set(learnt.actor.policy_params) == {"w", "b"}
    assert "kl" in metrics
    assert jax.tree.leaves(learnt.critic.params)[0].shape[-1] == 4


@pytest.mark.slow
def test_a_config_and_the_agent_made_from_it_give_the_same_run(cartpole):
    config = trpo.Config(**SMALL)
    own, given = (
        trpo.make(cartpole, config, agent=agent) for agent in (None, make_agent(cartpole, config))
    )
    states = (jax.jit(x.update)(x.init(jax.random.key(0)))[0].actor for x in (own, given))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["nnx", "function"])
def test_the_kronecker_solver_refuses_a_network_that_is_not_of_flax_linen(kind, cartpole):
    config = trpo.Config(**SMALL, solver="kronecker")
    with pytest.raises(ConfigurationError, match=r"solver = 'kronecker' needs .* flax linen"):
        trpo.make(cartpole, config, agent=own_agent(cartpole, config, kind))
    trpo.make(cartpole, config, agent=own_agent(cartpole, config, "linen"))


def test_the_kronecker_solver_refuses_layers_without_bias_and_layers_used_twice(cartpole):
    class NoBias(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Categorical(nn.Dense(2, use_bias=False)(x))

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4)
            return Categorical(nn.Dense(2)(layer(layer(x))))

    config = trpo.Config(**SMALL, solver="kronecker")
    agent = make_agent(cartpole, config)
    for module, message in (
        (NoBias(), "without its kernel or bias"),
        (Twice(), "Dense_0 is applied more than once"),
    ):
        policy = memoryless(from_linen(module, cartpole.observation))
        with pytest.raises(ConfigurationError, match=message):
            trpo.make(cartpole, config, agent=agent._replace(policy=policy))


def remembering():
    """Returns a policy that sees the sum of the observations of its episode so far."""

    def step(params, carry, observations):
        carry = carry + observations
        return carry, Categorical(carry @ params)

    def unroll(params, carry, observations, first):
        def body(carry, row):
            seen, start = row
            carry, distribution = step(params, jnp.where(start[:, None], 0.0, carry), seen)
            return carry, distribution

        return jax.lax.scan(body, carry, (observations, first))[1]

    init = lambda key: 0.1 * jax.random.normal(key, (4, 2))
    return Policy(init, lambda num_envs: jnp.zeros((num_envs, 4)), step, unroll)


@pytest.mark.slow
def test_a_policy_keeps_its_memory_between_rollouts_and_resets_it_in_each_episode(cartpole):
    def step(key, state, action):  # no pole falls so soon, so the rewards must differ
        state, result = cartpole.step(key, state, action)
        return state, result._replace(reward=result.observation[2])

    env = cartpole._replace(time_limit=5, step=step)
    config = trpo.Config(**(SMALL | {"num_steps": 12}), normalize_observations=False)
    agent = make_agent(env, config)._replace(policy=remembering())
    algorithm = trpo.make(env, config, agent=agent)
    update, collect = jax.jit(algorithm.update), jax.jit(algorithm.collect)
    state, metrics = update(algorithm.init(jax.random.key(0)))
    assert 0 < metrics["kl"] <= 0.01
    carry = state.rollout.acting.carry
    state, trajectory = collect(state)
    assert trajectory.first[1:].any()
    assert not trajectory.first[0].all()
    np.testing.assert_array_equal(state.rollout.carry, carry)
    # The memory is the sum of the observations of the episode. Evaluation gets it too.
    params, seen = state.actor.policy_params, trajectory.observation
    whole = agent.policy.unroll(params, carry, seen, trajectory.first)
    for t in range(12):
        carry = jnp.where(trajectory.first[t][:, None], 0.0, carry)
        carry, judged = algorithm.policy(state.actor, carry, seen[t])
        np.testing.assert_allclose(whole.logits[t], judged.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.rollout.acting.carry, carry)


def remembering_critic():
    """Returns a critic that sees the sum of the observations of its episode so far."""
    policy = remembering()
    network = RecurrentNetwork(
        lambda key: jnp.zeros(4),
        policy.carry,
        lambda params, carry, x: (carry + x, (carry + x) @ params),
        lambda params, carry, x, first: (x @ params, x),
    )
    return adam_critic(network, epochs=1, minibatches=1)


@pytest.mark.parametrize(("name", "env"), [("trpo_vine", "CartPole-v1"), ("qprop", "Pendulum-v1")])
@pytest.mark.parametrize("part", ["policy", "critic"])
def test_algorithms_that_cannot_use_a_memory_refuse_it(name, env, part):
    module, env = algorithms.get(name), envs.make(env)
    config = module.Config(**(SMALL | OWN.get(name, {})))
    own = {"policy": remembering, "critic": remembering_critic}[part]()
    agent = make_agent(env, config)._replace(**{part: own})
    with pytest.raises(ConfigurationError, match=rf"{name} .* memory .* memory = none"):
        module.make(env, config, agent=agent)
    with pytest.raises(ConfigurationError, match=rf"{name} .* memory .* memory = none"):
        module.make(env, config.replace(memory="gru"))


def test_solvers_and_subsamples_that_cannot_use_a_memory_are_refused(cartpole):
    config = trpo.Config(**SMALL, memory="gru")
    with pytest.raises(ConfigurationError, match=r"solver = 'kronecker' .*\(it has a memory\)"):
        trpo.make(cartpole, config.replace(solver="kronecker"))
    with pytest.raises(ConfigurationError, match=r"fisher_subsample = 3 .* at most 2"):
        trpo.make(cartpole, config.replace(fisher_subsample=3))
    trpo.make(cartpole, config.replace(fisher_subsample=2))
    half = trpo_held_out.Config(**SMALL | {"num_envs": 5, "critic_minibatches": 1}, memory="gru")
    with pytest.raises(ConfigurationError, match=r"fisher_subsample = 4 .* at most 3"):
        trpo_held_out.make(cartpole, half.replace(fisher_subsample=4))
    trpo_held_out.make(cartpole, half.replace(fisher_subsample=3))
    trpo.make(cartpole, config.replace(fisher_subsample=3, memory="none"))


def recording():
    """Returns an exploration with independent draws, whose noise is their distribution."""
    explore = white()

    def act(key, distribution, noise_state, episodes):
        actions, _, noise_state = explore.act(key, distribution, noise_state, episodes)
        return actions, distribution, noise_state

    return explore._replace(act=act)


KINDS = {  # settings of environments and of configs
    "memoryless": ({}, {}),
    "gru": ({}, {"memory": "gru"}),
    "lstm": ({}, {"memory": "lstm"}),
    "masked": ({"masked": True}, {}),
    "joint": ({"joint": True}, {}),
    "parts": ({"parts": True}, {}),
    "gru, masked": ({"masked": True}, {"memory": "gru"}),
    "all": ({"masked": True, "joint": True, "parts": True}, {"memory": "lstm"}),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind == "memoryless" else pytest.mark.slow) for kind in KINDS],
)
def test_learning_uses_the_same_distributions_as_acting(kind):
    """Before the step, all probability ratios are 1, and KL(old || new) is 0."""
    shown, settings = KINDS[kind]
    env = probes.noise(**shown)
    config = vpg.Config(**SMALL | {"num_envs": 3, "critic_minibatches": 4}, **settings)
    agent = make_agent(env, config)._replace(exploration=recording())
    algorithm = vpg.make(env, config, agent=agent)

    @jax.jit
    def learnt_from(state):
        collected, trajectory = algorithm.collect(state)
        _, step_input, _ = estimate(env, config, agent, collected, trajectory)
        params, batch = state.actor.policy_params, step_input.batch
        without = batch._replace(carry=jax.tree.map(jnp.zeros_like, batch.carry))
        found = [agent.distributions(params, x) for x in (batch, without)]
        return algorithm.learn(collected, trajectory)[0], (trajectory, batch, *found)

    @jax.jit
    def start(key):
        state = algorithm.init(key)
        # With the small initial weights, the policy would hardly depend on its observations.
        keys = iter(jax.random.split(key, 100))
        larger = lambda x: x + 0.5 * jax.random.normal(next(keys), x.shape)
        params = jax.tree.map(larger, state.actor.policy_params)
        return state._replace(actor=state.actor._replace(policy_params=params))

    state = start(jax.random.key(0))
    for _ in range(2):
        state, (trajectory, batch, found, without) = learnt_from(state)
        collected, actions = trajectory.noise, trajectory.action
        ratios = jnp.exp(found.log_prob(actions) - collected.log_prob(actions))
        np.testing.assert_allclose(ratios, 1, atol=1e-5)
        np.testing.assert_allclose(collected.kl(found), 0, atol=1e-6)
        assert collected.kl(jax.tree.map(jnp.zeros_like, found)).mean() > 0.01
        assert trajectory.first[1:].any()
        legal = split_mask(trajectory.observation)[1]
        if legal is not None:
            chosen = actions["turn"] if shown.get("joint") else actions
            assert np.take_along_axis(np.asarray(legal), chosen[..., None], axis=-1).all()
            assert not legal.all(axis=-1).all()
    # The second rollout begins in the middle of episodes, so the memory from before matters.
    assert not trajectory.first[0].all()
    if "memory" in settings:
        goes_on = np.flatnonzero(~trajectory.first[0])
        assert (collected.kl(without)[0, goes_on] > 1e-4).any()
        assert all(x.shape[:2] == (1, 3) for x in jax.tree.leaves(batch.carry))
    else:
        assert not jax.tree.leaves(batch.carry)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_a_tree_of_one_array_gives_the_same_results_as_the_array(memory):
    bare = probes.noise()

    def step(key, state, action):
        state, result = bare.step(key, state, action)
        return state, result._replace(observation={"x": result.observation})

    def reset(key):
        state, shown = bare.reset(key)
        return state, {"x": shown}

    tree = bare._replace(observation={"x": bare.observation}, reset=reset, step=step)
    config = trpo.Config(**SMALL, memory=memory, memory_size=3)
    learnt = []
    for env in (bare, tree):
        algorithm = trpo.make(env, config)
        run = jax.jit(lambda key, x=algorithm: x.update(x.init(key)))
        state, metrics = run(jax.random.key(0))
        assert metrics["kl"] > 0
        learnt.append((state.actor.policy_params, state.critic, state.rollout.acting, metrics))
    chex.assert_trees_all_equal(*learnt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_environment", "settings"),
    [("near", {}), (None, {"critic_observation": "near", "memory": "gru", "memory_size": 3})],
    ids=["environment", "config"],
)
def test_only_the_critic_sees_the_part_of_the_observation_for_the_critic(of_environment, settings):
    env = probes.noise(parts=True)._replace(critic_observation=of_environment)
    algorithm = vpg.make(env, vpg.Config(**SMALL, **settings))

    @jax.jit
    def run(key):
        state, metrics = algorithm.update(algorithm.init(key))
        state, trajectory = algorithm.collect(state)
        noise = lambda x: jax.random.uniform(key, x.shape, maxval=3).astype(x.dtype)
        changed = {
            name: trajectory.observation | {name: jax.tree.map(noise, trajectory.observation[name])}
            for name in ("far", "near")
        }
        changed["none"] = trajectory.observation

        def judged(observation):
            """Returns the values, and the actions and distributions of the policy."""
            seen = trajectory._replace(observation=observation)
            args = algorithm.env, algorithm.config, algorithm.agent, state, seen
            episodes = state.rollout.episodes
            episodes = episodes._replace(observation=jax.tree.map(lambda x: x[3], observation))
            acting = state.rollout.acting
            actions, *_ = algorithm.act(state.actor, key, episodes, acting)
            carry = algorithm.carry(SMALL["num_envs"])
            _, policy = algorithm.policy(state.actor, carry, episodes.observation)
            batch = estimate(*args)[1].batch
            learnt_from = algorithm.agent.distributions(state.actor.policy_params, batch)
            return batch.values, (actions, policy.logits, learnt_from.logits)

        return metrics, {name: judged(x) for name, x in changed.items()}

    metrics, found = run(jax.random.key(0))
    assert metrics["kl"] > 0
    (values, acted), (changed, same) = found["none"], found["near"]
    chex.assert_trees_all_equal(acted, same)
    assert jnp.abs(values - changed).max() > 1e-3
    assert jnp.abs(acted[2] - found["far"][1][2]).max() > 1e-4  # the policy sees this part
    assert jnp.abs(values - found["far"][0]).max() > 1e-3


def test_a_missing_part_of_the_observation_for_the_critic_is_refused():
    config = trpo.Config(**SMALL, critic_observation="nearer")
    with pytest.raises(ConfigurationError, match=r"= 'nearer', .*Its parts: far, near"):
        trpo.make(probes.noise(parts=True), config)
    with pytest.raises(ConfigurationError, match=r"= 'nearer', .*Its parts: none"):
        trpo.make(probes.noise(), config)


@pytest.mark.slow
def test_learning_uses_the_given_exploration():
    """The noise shifts the mean. The rest of the actions is standard normal and independent."""
    env = envs.make("Pendulum-v1")
    config = trpo.Config(**(SMALL | {"num_envs": 256, "num_steps": 4}))
    agent = make_agent(env, config)._replace(exploration=ou(1, 0.9))
    algorithm = trpo.make(env, config, agent=agent)
    state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
    _, step_input, _ = estimate(env, config, agent, state, trajectory)
    drawn_from = agent.distributions(state.actor.policy_params, step_input.batch)
    rest = np.asarray((trajectory.action - drawn_from.mean) / jnp.exp(drawn_from.log_std))
    np.testing.assert_allclose(rest.std(), 1, atol=0.1)
    noise = np.asarray(trajectory.noise)
    assert abs(np.corrcoef(rest.ravel(), noise.ravel())[0, 1]) < 0.1

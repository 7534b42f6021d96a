"""What all on-policy actor-critic algorithms share: everything but the policy's step.

One update: collect a trajectory, estimate advantages with the critic as it is, take the policy's
step, then fit the critic. The order matters: a critic fitted first would explain away the very
advantages the step is to learn from (Schulman et al. 2016, arXiv:1506.02438, section 5).

An algorithm is `make(env, config, policy_step)` with a policy step of its own, so a comparison of
two algorithms differs in nothing else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray, PyTree

from trpo_jax import exploration
from trpo_jax.advantages import discounted_returns, generalized_advantages
from trpo_jax.algorithms.base import Actor, Algorithm, Metrics, make_acting, observe
from trpo_jax.algorithms.groups import OnPolicy
from trpo_jax.critics import (
    CriticState,
    explained_variance,
    fit_critic,
    init_critic,
    trust_region_fit,
)
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, Transition, stagger
from trpo_jax.exploration import Exploration
from trpo_jax.networks import Network, make_critic, make_policy
from trpo_jax.normalization import (
    RunningStatistics,
    init_statistics,
    standard_deviation,
    update_statistics,
)
from trpo_jax.rollout import episode_metrics, rollout_with_memory, start_episodes


class TrainState(NamedTuple):
    """Everything a run is: saving it saves the run.

    Attributes:
        actor: parameters of the policy, and the statistics it sees observations through.
        critic: parameters and optimiser of the critic, or of all critics of an ensemble.
        reward_statistics: of the discounted reward sums.
        reward_sums: discounted reward sums of the running episodes, `[B]`.
        episodes: running episodes, leading axis `[B]`.
        exploration: what the exploration remembers of running episodes.
        memory: what the policy's step keeps from update to update: an optimiser's moments, a
            replay buffer.
        key: base key; the keys of update k come from `fold_in(key, k)`.
        num_updates: updates done so far.
    """

    actor: Actor
    critic: CriticState
    reward_statistics: RunningStatistics
    reward_sums: Float[Array, " B"]
    episodes: Episode
    exploration: Any
    memory: Any
    key: PRNGKeyArray
    num_updates: Int[Array, ""]


class Batch(NamedTuple):
    """What an update learns from; leading axes `[T, B]`.

    Attributes:
        observations: s_t as networks see them.
        actions: a_t.
        context: what the actions depended on besides the observations.
        advantages: A_t, not standardised.
        values: V(s_t) of the critic as it was.
        targets: what the critic is fitted to.
    """

    observations: Float[Array, "T B ..."]
    actions: Num[Array, "T B ..."]
    context: Any
    advantages: Float[Array, "T B"]
    values: Float[Array, "T B"]
    targets: Float[Array, "T B"]


class Lesson(NamedTuple):
    """What the critic has still to learn in an update.

    Attributes:
        key: consumed by the fit.
        batch: the batch.
    """

    key: PRNGKeyArray
    batch: Batch


class Critic(NamedTuple):
    """State values and how they are fitted.

    Attributes:
        init: `key -> state`.
        values: `(params, observations [*batch, ...]) -> values [*batch]`.
        fit: `(key, state, batch) -> (state, loss)`.
    """

    init: Callable[[PRNGKeyArray], CriticState]
    values: Callable[[PyTree[Array], Num[Array, "..."]], Float[Array, "..."]]
    fit: Callable[[PRNGKeyArray, CriticState, Batch], tuple[CriticState, Float[Array, ""]]]


class UpdateKeys(NamedTuple):
    """The keys of one update."""

    collect: PRNGKeyArray
    policy: PRNGKeyArray
    critic: PRNGKeyArray


class Behavior(NamedTuple):
    """What the actions of a batch were drawn from, as a function of the policy's parameters.

    Attributes:
        apply: `(params, batch) -> distributions`.
        apply_layers: `(params, offsets, batch) -> (distributions, inputs of the layers)`; see
            `Network`.
    """

    apply: Callable[[PyTree[Array], Batch], Distribution]
    apply_layers: Callable[..., tuple[Distribution, Any]]


PolicyStep = Callable[
    [PRNGKeyArray, TrainState, Transition, Batch], tuple[PyTree[Array], Any, Metrics]
]


def update_keys(state: TrainState) -> UpdateKeys:
    """Returns the keys of the update that comes next."""
    return UpdateKeys(*jax.random.split(jax.random.fold_in(state.key, state.num_updates), 3))


def policy_network(env: Environment, config: OnPolicy) -> Network:
    """Returns the policy of a config."""
    return make_policy(
        env.observation,
        env.action,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        log_std_init=config.log_std_init,
        state_dependent_std=config.state_dependent_std,
    )


def make_exploration(env: Environment, config: OnPolicy) -> Exploration:
    """Returns the exploration of a config, `white` where it has no such field."""
    match getattr(config, "exploration", "white"):
        case "ou":
            return exploration.ou(env.action.size, config.ou_rho)
        case "colored":
            return exploration.colored(env.action.size, config.color_beta, config.num_steps)
        case _:
            return exploration.white()


def make_behavior(env: Environment, config: OnPolicy) -> Behavior:
    """Returns what the actions of a batch are drawn from."""
    network, explore = policy_network(env, config), make_exploration(env, config)

    def apply(params, batch):
        return explore.condition(network.apply(params, batch.observations), batch.context)

    def apply_layers(params, offsets, batch):
        distribution, inputs = network.apply_layers(params, offsets, batch.observations)
        return explore.condition(distribution, batch.context), inputs

    return Behavior(apply, apply_layers)


def make_value_function(env: Environment, config: OnPolicy) -> Critic:
    """Returns the critic of a config."""
    network = make_critic(
        env.observation, hidden_sizes=config.hidden_sizes, activation=config.activation
    )

    def fit(key, state, batch):
        if config.gae_critic == "trust_region":
            return trust_region_fit(
                network.apply,
                state,
                batch.observations,
                batch.targets,
                max_change=config.critic_max_change,
            )
        return fit_critic(
            key,
            network.apply,
            state,
            batch.observations,
            batch.targets,
            learning_rate=config.critic_lr,
            epochs=config.critic_epochs,
            minibatches=config.critic_minibatches,
        )

    return Critic(lambda key: init_critic(network.init(key)), network.apply, fit)


def make(
    env: Environment,
    config: OnPolicy,
    policy_step: PolicyStep,
    *,
    init_memory: Callable[[PyTree[Array]], Any] = lambda policy_params: (),
    critic: Critic | None = None,
    explore: Exploration | None = None,
) -> Algorithm:
    """Returns the algorithm with the given policy step.

    Args:
        env: the environment.
        config: a validated config.
        policy_step: `(key, state, trajectory, batch) -> (policy params, memory, metrics)`; the
            observation statistics in `state` are those of the batch.
        init_memory: `policy params -> memory`, for the first update.
        critic: the config's own if None.
        explore: the config's own if None.
    """
    network = policy_network(env, config)
    policy = make_acting(network, config.normalize_observations)
    critic = make_value_function(env, config) if critic is None else critic
    explore = make_exploration(env, config) if explore is None else explore

    def init(key: PRNGKeyArray) -> TrainState:
        policy_key, critic_key, env_key, run_key = jax.random.split(key, 4)
        policy_params = network.init(policy_key)
        return TrainState(
            actor=Actor(policy_params, init_statistics(env.observation.shape)),
            critic=critic.init(critic_key),
            reward_statistics=init_statistics(()),
            reward_sums=jnp.zeros(config.num_envs, jnp.float32),
            episodes=stagger(env, start_episodes(env, env_key, config.num_envs)),
            exploration=explore.init(config.num_envs),
            memory=init_memory(policy_params),
            key=run_key,
            num_updates=jnp.zeros((), jnp.int32),
        )

    def begin(state: TrainState) -> tuple[PRNGKeyArray, Any]:
        begin_key, run_key = jax.random.split(update_keys(state).collect)
        return run_key, explore.begin(begin_key, state.exploration)

    def act(actor: Actor, key: PRNGKeyArray, episodes: Episode, memory: Any):
        return explore.act(key, policy(actor, episodes.observation), memory, episodes)

    def collect(state: TrainState) -> tuple[TrainState, Transition]:
        key, memory = begin(state)
        episodes, memory, trajectory = rollout_with_memory(
            env, partial(act, state.actor), key, state.episodes, memory, config.num_steps
        )
        return state._replace(episodes=episodes, exploration=memory), trajectory

    def improve(state: TrainState, trajectory: Transition) -> tuple[TrainState, Lesson, Metrics]:
        frozen = state.actor.observation_statistics
        updated = update_statistics(frozen, trajectory.observation)
        # The first batch was collected without any statistics, and is seen through its own: to
        # learn from it as it was would move the policy by several times `max_kl` once there are
        # some. An initial policy hardly depends on what it sees, so the actions stay on-policy.
        seen_through = jax.tree.map(
            lambda old, new: jnp.where(frozen.count > 0, old, new), frozen, updated
        )
        state = state._replace(actor=Actor(state.actor.policy_params, seen_through))
        state, batch = _estimate(config, critic, state, trajectory)
        keys = update_keys(state)
        policy_params, memory, policy_metrics = policy_step(keys.policy, state, trajectory, batch)
        metrics = {
            **episode_metrics(trajectory),
            **policy_metrics,
            "explained_variance": explained_variance(batch.values, batch.targets),
        }
        # The updated statistics come last: old log-probabilities, KL divergences and the Fisher
        # matrix all assume that the policy saw the batch through the same ones.
        state = state._replace(
            actor=Actor(policy_params, updated), memory=memory, num_updates=state.num_updates + 1
        )
        return state, Lesson(keys.critic, batch), in_float32(metrics)

    def fit(critic_state: CriticState, lesson: Lesson) -> tuple[CriticState, Metrics]:
        critic_state, loss = critic.fit(lesson.key, critic_state, lesson.batch)
        return critic_state, in_float32({"critic_loss": loss})

    def learn(state: TrainState, trajectory: Transition) -> tuple[TrainState, Metrics]:
        state, lesson, metrics = improve(state, trajectory)
        # After the policy: a critic fitted first would explain away what the step is to learn from.
        critic_state, fit_metrics = fit(state.critic, lesson)
        return state._replace(critic=critic_state), metrics | fit_metrics

    def update(state: TrainState) -> tuple[TrainState, Metrics]:
        return learn(*collect(state))

    batch_size = config.num_envs * config.num_steps
    return Algorithm(
        env, init, update, collect, begin, act, learn, improve, fit, policy, batch_size
    )


def in_float32(metrics: Metrics) -> Metrics:
    """Returns the metrics as they are stored."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), metrics)


def scale_of_rewards(config: OnPolicy, state: TrainState) -> Float[Array, ""]:
    """Returns what rewards are divided by."""
    if not config.scale_rewards:
        return jnp.ones(())
    return standard_deviation(state.reward_statistics)


def _estimate(
    config: OnPolicy, critic: Critic, state: TrainState, trajectory: Transition
) -> tuple[TrainState, Batch]:
    if config.scale_rewards:
        reward_sums, sums = discounted_returns(
            trajectory.reward, trajectory.done, state.reward_sums, config.gamma
        )
        statistics = update_statistics(state.reward_statistics, sums)
        state = state._replace(reward_statistics=statistics, reward_sums=reward_sums)
    observations, next_observations = (
        observe(state.actor.observation_statistics, x, config.normalize_observations)
        for x in (trajectory.observation, trajectory.next_observation)
    )
    values = critic.values(state.critic.params, observations)
    advantages = generalized_advantages(
        trajectory.reward / scale_of_rewards(config, state),
        values,
        critic.values(state.critic.params, next_observations),
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    batch = Batch(
        observations,
        trajectory.action,
        trajectory.context,
        advantages,
        values,
        advantages + values,
    )
    return state, batch

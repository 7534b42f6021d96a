"""The parts that all on-policy actor-critic algorithms share. Each adds its own policy step.

One update collects a trajectory, estimates advantages with the current critic, takes the step of
the policy, and then fits the critic. An algorithm calls `make(env, config, agent=...,
policy_step=...)` with its own policy step. So two algorithms differ only in this step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from trpo_jax.advantages import discounted_returns, generalized_advantages, standardize
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs
from trpo_jax.algorithms.base import Actor, Algorithm, Metrics, RolloutState, acting_by, update_keys
from trpo_jax.critics import Sequences, WithCosts, explained_variance, following_values, with_costs
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Transition, stagger
from trpo_jax.envs.specs import split_mask
from trpo_jax.normalization import (
    RunningStatistics,
    init_statistics,
    standard_deviation,
    update_statistics,
)
from trpo_jax.observing import Statistics, init_observing, observe, update_observing
from trpo_jax.rollout import episode_metrics, random_actions, rollout, start_episodes
from trpo_jax.trust_region import Surrogate, importance_sampled_surrogate

RANDOM_STEPS = 128  # largest number of random steps for the first statistics
LEAST_SCALE = 0.01  # share of the largest discounted sum, so that scaled sums are at most 100


class RewardRange(NamedTuple):
    """The smallest and largest reward of a run so far, and whether an episode terminated.

    They show whether the rewards carry a signal. All fields are scalars.

    Attributes:
        low: the smallest reward.
        high: the largest reward.
        terminated: whether any episode terminated.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    terminated: Bool[Array, ""]

    def widened(self, trajectory: Transition) -> "RewardRange":
        """Returns the range of the rewards so far and of a trajectory."""
        return RewardRange(
            jnp.minimum(self.low, jnp.min(trajectory.reward)),
            jnp.maximum(self.high, jnp.max(trajectory.reward)),
            self.terminated | jnp.any(trajectory.terminated),
        )

    @property
    def signal(self) -> Bool[Array, ""]:
        """Whether the rewards of the run so far can show that one action is better than another.

        If all rewards are the same (to rounding), all actions look equally good. Advantages are
        then only errors of the critic. There are two exceptions. A termination loses positive
        rewards, so it is a signal. A termination also ends negative rewards. The policy must move
        to find one, so negative rewards are always a signal.
        """
        largest = jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))
        differ = self.high - self.low > 10 * jnp.finfo(jnp.float32).eps * largest
        return differ | (self.low < 0) | (self.terminated & (largest > 0))


class TrainState(NamedTuple):
    """The whole state of a run. Saving this state saves the run.

    Attributes:
        actor: parameters of the policy, and the statistics that standardise observations.
        critic: state of the critic.
        reward_statistics: statistics of the discounted reward sums.
        reward_range: range of the rewards so far.
        rollout: state that continues from one rollout to the next.
        step_state: state that the policy's step keeps between updates, such as the moments of an
            optimiser or a replay buffer.
        key: base key; the keys of update k come from `fold_in(key, k)`.
        num_updates: number of updates done so far.
    """

    actor: Actor
    critic: Any
    reward_statistics: RunningStatistics
    reward_range: RewardRange
    rollout: RolloutState
    step_state: Any
    key: PRNGKeyArray
    num_updates: Int[Array, ""]


class Batch(NamedTuple):
    """The data of one update; leading axes `[T, B]`.

    Attributes:
        observations: s_t, standardised, as the networks see them.
        first: whether s_t is the first observation of an episode.
        actions: a_t.
        carry: memory of the policy before the first step, `[1, B, ...]`.
        noise: data that the exploration stored with each action, such as its noise; `()` if none.
        advantages: A_t, not standardised; 0 as long as the rewards carry no signal.
        values: V(s_t) of the critic before its fit.
        targets: targets of the critic: the estimate of A_t plus V(s_t).
        cost_advantages: A_t of each of K costs, `[T, B, K]`; `()` if the algorithm has no limits.
    """

    observations: Any
    first: Bool[Array, "T B"]
    actions: Any
    carry: Any
    noise: Any
    advantages: Float[Array, "T B"]
    values: Float[Array, "T B"]
    targets: Float[Array, "T B"]
    cost_advantages: Any = ()


class StepInput(NamedTuple):
    """The input of a policy step.

    Attributes:
        actor: the actor that collected the trajectory.
        critic_params: parameters of the critic that estimated the advantages.
        step_state: state that the step returned in the last update.
        trajectory: data of the environment in its own units, `[T, B]`.
        batch: the same data as the networks see it, with advantages, `[T, B]`.
        sequences: the same data as the critic sees it.
        reward_scale: number that rewards were divided by.
        signal: whether the rewards so far carry a signal; see `RewardRange`.
        num_updates: number of updates done so far.
    """

    actor: Actor
    critic_params: PyTree[Array]
    step_state: Any
    trajectory: Transition
    batch: Batch
    sequences: Sequences
    reward_scale: Float[Array, ""]
    signal: Bool[Array, ""]
    num_updates: Int[Array, ""]


def reward_surrogate(config: configs.OnPolicy, batch: Batch) -> Surrogate:
    """Returns the objective of a policy step: the surrogate with standardised advantages.

    Args:
        config: the config.
        batch: the batch, `[T, B]`.
    """
    advantages = standardize(batch.advantages, batch.values)
    return importance_sampled_surrogate(batch.actions, advantages, config.entropy_coef)


class FitInput(NamedTuple):
    """The input of a fit of the critic; targets are `[T, B]`, or `WithCosts`."""

    key: PRNGKeyArray
    sequences: Sequences
    targets: Any


PolicyStep = Callable[[PRNGKeyArray, StepInput], tuple[PyTree[Array], Any, Metrics]]


def make(
    env: Environment,
    config: configs.OnPolicy,
    *,
    agent: Agent,
    policy_step: PolicyStep,
    init_step_state: Callable[[PRNGKeyArray, PyTree[Array]], Any] = lambda key, params: (),
    extra_steps: int = 0,
    constrained: bool = False,
) -> Algorithm:
    """Returns the algorithm with the given policy step.

    Args:
        env: the environment.
        config: a validated config.
        agent: policy, critic and exploration.
        policy_step: `(key, step_input) -> (policy params, step_state, metrics)`.
        init_step_state: `(key, policy params) -> step_state`, for the first update.
        extra_steps: number of environment steps that the policy step itself takes in each update.
        constrained: whether the policy step needs advantages of the costs. If it does, each cost
            has its own critic.

    Examples:
        >>> from trpo_jax.algorithms.checks import prepare
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = configs.OnPolicy(num_envs=4, num_steps=16)
        >>> config, agent = prepare(env, config, None)
        >>> def policy_step(key, step_input):
        ...     mean = jnp.mean(step_input.batch.advantages)
        ...     return step_input.actor.policy_params, (), {"advantage_mean": mean}
        >>> algorithm = make(env, config, agent=agent, policy_step=policy_step)
        >>> state = algorithm.init(jax.random.key(0))
        >>> state, metrics = jax.jit(algorithm.update)(state)
        >>> bool(jnp.isfinite(metrics["advantage_mean"]))
        True
    """
    if constrained:
        agent = agent._replace(critic=with_costs(agent.critic, len(env.costs)))
    seen = partial(observe, env.observation, normalized=config.normalize_observations)

    def act(actor: Actor, key: PRNGKeyArray, episodes, acting):
        observations = seen(actor.observation_statistics, episodes.observation)
        return agent.act(actor.policy_params, key, episodes, observations, acting)

    def improve(state: TrainState, trajectory: Transition):
        keys = update_keys(state)
        # Only the next rollout uses the updated statistics. Old log-probabilities, KL divergences
        # and the Fisher matrix assume that the policy saw this batch with the frozen statistics.
        frozen = state.actor.observation_statistics
        statistics = update_observing(env.observation, frozen, trajectory.observation)
        # Adding zero makes the batch wait for the update; otherwise it is in memory twice.
        frozen = jax.tree.map(lambda old, new: old + 0 * new, frozen, statistics)
        state = state._replace(actor=state.actor._replace(observation_statistics=frozen))
        state, step_input, targets = estimate(env, config, agent, state, trajectory, constrained)
        policy_params, step_state, policy_metrics = policy_step(keys.policy, step_input)
        batch = step_input.batch
        metrics = {
            **episode_metrics(trajectory, env.costs),
            **policy_metrics,
            "explained_variance": explained_variance(batch.values, batch.targets),
            "reward_signal": step_input.signal,
        }
        acting = state.rollout.acting
        noise_state = agent.exploration.prepare(keys.noise, acting.noise_state)
        acting = acting._replace(noise_state=noise_state)
        state = state._replace(
            actor=Actor(policy_params, statistics),
            rollout=state.rollout._replace(acting=acting),
            step_state=step_state,
            num_updates=state.num_updates + 1,
        )
        return state, FitInput(keys.critic, step_input.sequences, targets), metrics

    def fit(critic: Any, fit_input: FitInput) -> tuple[Any, Metrics]:
        critic, loss = agent.critic.fit(
            fit_input.key, critic, fit_input.sequences, fit_input.targets
        )
        names = ("critic_loss", "cost_critic_loss")
        return critic, dict(zip(names, jax.tree.leaves(loss), strict=False))

    policy = acting_by(
        agent.policy, env.observation, agent.critic_observation, config.normalize_observations
    )
    steps_per_update = config.num_envs * config.num_steps + extra_steps
    return Algorithm(
        env,
        partial(init_state, env, config, agent, init_step_state),
        act,
        improve,
        fit,
        policy,
        config.num_steps,
        steps_per_update,
        config,
        agent,
        agent.policy.carry,
    )


def init_state(
    env: Environment,
    config: configs.OnPolicy,
    agent: Agent,
    init_step_state: Callable[[PRNGKeyArray, PyTree[Array]], Any],
    key: PRNGKeyArray,
) -> TrainState:
    """Returns the state at the start of a run; see `make`."""
    keys = jax.random.split(key, 7)
    policy_params = agent.policy.init(keys[0])
    statistics = init_observing(env.observation)
    if config.normalize_observations and env.open is None:
        statistics = random_statistics(env, keys[5], config.num_envs, config.num_steps)
    return TrainState(
        actor=Actor(policy_params, statistics),
        critic=agent.critic.init(keys[1]),
        reward_statistics=init_statistics(()),
        reward_range=RewardRange(jnp.float32(jnp.inf), jnp.float32(-jnp.inf), jnp.zeros((), bool)),
        rollout=RolloutState(
            episodes=stagger(env, start_episodes(env, keys[2], config.num_envs)),
            acting=agent.init_acting(keys[4], config.num_envs),
            reward_sums=jnp.zeros(config.num_envs, jnp.float32),
            carry=agent.policy.carry(config.num_envs),
            critic_carry=agent.critic.carry(config.num_envs),
        ),
        step_state=init_step_state(keys[6], policy_params),
        key=keys[3],
        num_updates=jnp.zeros((), jnp.int32),
    )


def random_statistics(
    env: Environment, key: PRNGKeyArray, num_envs: int, num_steps: int
) -> Statistics:
    """Returns statistics of the observations under random actions.

    The policy acts and learns with the same statistics in its first update. Statistics that change
    much afterwards would change the policy, so the first statistics must be near the later ones.

    Args:
        env: an environment on the device.
        key: consumed by actions, steps and resets.
        num_envs: number of environments side by side.
        num_steps: number of steps of each environment, cut to `RANDOM_STEPS`.
    """
    start_key, run_key = jax.random.split(key)
    act = lambda key, shown: random_actions(key, env.action, num_envs, split_mask(shown)[1])
    episodes = start_episodes(env, start_key, num_envs)
    _, trajectory = rollout(env, act, run_key, episodes, min(num_steps, RANDOM_STEPS))
    return update_observing(
        env.observation, init_observing(env.observation), trajectory.observation
    )


def estimate(
    env: Environment,
    config: configs.OnPolicy,
    agent: Agent,
    state: TrainState,
    trajectory: Transition,
    constrained: bool = False,
) -> tuple[TrainState, StepInput, Any]:
    """Estimates the advantages of a trajectory.

    Returns:
        The state with updated reward statistics, reward range and memory of the critic; the input
        of the policy's step; the targets of the critic, which are `WithCosts` if `constrained`.
    """
    reward_scale = jnp.ones((), jnp.float32)
    if config.scale_rewards:
        reward_sums, sums = discounted_returns(
            trajectory.reward, trajectory.done, state.rollout.reward_sums, config.gamma
        )
        state = state._replace(
            reward_statistics=update_statistics(state.reward_statistics, sums),
            rollout=state.rollout._replace(reward_sums=reward_sums),
        )
        # Without this floor, sums that hardly vary would scale rewards up without limit.
        least = LEAST_SCALE * jnp.max(jnp.abs(sums))
        reward_scale = jnp.maximum(standard_deviation(state.reward_statistics), least)
    state = state._replace(reward_range=state.reward_range.widened(trajectory))
    signal = state.reward_range.signal
    observations, next_observations = (
        observe(
            env.observation, state.actor.observation_statistics, x, config.normalize_observations
        )
        for x in (trajectory.observation, trajectory.next_observation)
    )
    sequences = Sequences(state.rollout.critic_carry, observations, trajectory.first)
    values, carries = agent.critic.values(state.critic.params, sequences)
    critic_carry = jax.tree.map(lambda x: x[-1], carries)
    state = state._replace(rollout=state.rollout._replace(critic_carry=critic_carry))
    following = following_values(agent.critic, state.critic.params, carries, next_observations)

    def advantages_of(rewards, values, following, gamma):
        flags = [trajectory.terminated, trajectory.truncated]
        if rewards.ndim > 2:
            flags = [jnp.broadcast_to(x[..., None], rewards.shape) for x in flags]
        return generalized_advantages(rewards, values, following, *flags, gamma, config.gae_lambda)

    rewards, gamma = trajectory.reward / reward_scale, config.gamma
    if constrained:
        rewards = WithCosts(rewards, trajectory.costs)
        gamma = WithCosts(gamma, config.cost_gamma)
    advantages = jax.tree.map(advantages_of, rewards, values, following, gamma)
    targets = jax.tree.map(jnp.add, advantages, values)
    cost_advantages = advantages.costs if constrained else ()
    advantages, values, reward_targets = (
        x.reward if constrained else x for x in (advantages, values, targets)
    )
    batch = Batch(
        observations,
        trajectory.first,
        trajectory.action,
        jax.tree.map(lambda x: x[None], state.rollout.carry),
        trajectory.noise,
        jnp.where(signal, advantages, 0.0),
        values,
        reward_targets,
        cost_advantages,
    )
    step_input = StepInput(
        state.actor,
        state.critic.params,
        state.step_state,
        trajectory,
        batch,
        sequences,
        reward_scale,
        signal,
        state.num_updates,
    )
    return state, step_input, targets

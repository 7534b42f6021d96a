"""What all on-policy actor-critic algorithms share: everything but the policy's step.

One update: collect a trajectory, estimate advantages with the critic as it is, take the policy's
step, then fit the critic. An algorithm is `make(env, config, agent=..., policy_step=...)` with a
policy step of its own, so a comparison of two algorithms differs in nothing else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from trpo_jax.advantages import discounted_returns, generalized_advantages
from trpo_jax.agent import Agent
from trpo_jax.algorithms.base import Actor, Algorithm, Metrics, RolloutState, update_keys
from trpo_jax.algorithms.groups import OnPolicy
from trpo_jax.critics import (
    Sequences,
    WithCosts,
    explained_variance,
    following_values,
    with_costs,
)
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Transition, stagger
from trpo_jax.envs.specs import split_mask, split_part
from trpo_jax.normalization import (
    RunningStatistics,
    init_statistics,
    standard_deviation,
    update_statistics,
)
from trpo_jax.observing import Statistics, init_observing, observe, update_observing
from trpo_jax.rollout import episode_metrics, random_actions, rollout, start_episodes

RANDOM_STEPS = 128  # of each environment, at the most, that the first statistics are of
LEAST_SCALE = 0.01  # of the largest discounted sum: scaled sums are at most 100


class RewardRange(NamedTuple):
    """All that decides whether rewards have said anything yet; scalars, over a run so far.

    Attributes:
        low: the smallest reward.
        high: the largest.
        terminated: whether an episode terminated.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    terminated: Bool[Array, ""]

    def widened(self, trajectory: Transition) -> "RewardRange":
        """Returns the range that takes in a trajectory."""
        return RewardRange(
            jnp.minimum(self.low, jnp.min(trajectory.reward)),
            jnp.maximum(self.high, jnp.max(trajectory.reward)),
            self.terminated | jnp.any(trajectory.terminated),
        )

    @property
    def signal(self) -> Bool[Array, ""]:
        """Whether one action can have been better than another, as far as rewards say.

        Where all rewards are the same, to rounding, all actions are alike, and advantages are the
        critic's errors. Two things make a difference: a positive reward can be lost, which the
        first termination shows, and a negative one can be escaped, which is to be looked for.
        """
        largest = jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))
        differ = self.high - self.low > 10 * jnp.finfo(jnp.float32).eps * largest
        return differ | (self.low < 0) | (self.terminated & (largest > 0))


class TrainState(NamedTuple):
    """Everything a run is: saving it saves the run.

    Attributes:
        actor: parameters of the policy, and the statistics it sees observations through.
        critic: state of the critic.
        reward_statistics: statistics of the discounted reward sums.
        reward_range: what rewards have said so far.
        rollout: what goes on from one rollout to the next.
        step_state: what the policy's step keeps from update to update: moments of an optimiser, a
            replay buffer.
        key: base key; the keys of update k come from `fold_in(key, k)`.
        num_updates: updates done so far.
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
    """What an update learns from; leading axes `[T, B]`.

    Attributes:
        observations: s_t as networks see them.
        first: whether s_t is the first of an episode.
        actions: a_t.
        carry: the memory of the policy before the first step, `[1, B, ...]`.
        noise: what the actions depended on besides the observations and the memory.
        advantages: A_t, not standardised; 0 where rewards have said nothing yet.
        values: V(s_t) of the critic as it was.
        targets: what the critic is fitted to: the estimate of A_t, and V(s_t).
        cost_advantages: A_t of each cost, `[T, B, K]`; `()` where costs are not looked at.
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
    """What a policy's step may look at.

    Attributes:
        actor: what collected the trajectory.
        critic_params: parameters of the critic that estimated the advantages.
        step_state: what the step kept from the update before.
        trajectory: as the environment gave it, `[T, B]`.
        batch: the same as networks see it, with advantages, `[T, B]`.
        sequences: what the critic saw of it.
        reward_scale: what rewards were divided by.
        signal: whether rewards have said anything yet; see `RewardRange`.
        num_updates: updates done so far.
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


class FitInput(NamedTuple):
    """What the critic is fitted to; targets are `[T, B]`, or `WithCosts`."""

    key: PRNGKeyArray
    sequences: Sequences
    targets: Any


PolicyStep = Callable[[PRNGKeyArray, StepInput], tuple[PyTree[Array], Any, Metrics]]


def make(
    env: Environment,
    config: OnPolicy,
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
        agent: what acts and what judges.
        policy_step: `(key, step_input) -> (policy params, step_state, metrics)`.
        init_step_state: `(key, policy params) -> step_state`, for the first update.
        extra_steps: environment steps that the policy step takes in each update.
        constrained: whether the policy step looks at costs; then critics judge them.
    """
    if constrained:
        agent = agent._replace(critic=with_costs(agent.critic, len(env.costs)))
    seen = partial(observe, env.observation, normalized=config.normalize_observations)

    def act(actor: Actor, key: PRNGKeyArray, episodes, acting):
        observations = seen(actor.observation_statistics, episodes.observation)
        return agent.act(actor.policy_params, key, episodes, observations, acting)

    def improve(state: TrainState, trajectory: Transition):
        keys = update_keys(state)
        # For the next rollout: old log-probabilities, KL divergences and the Fisher matrix all
        # assume that the policy saw this batch through the same statistics.
        frozen = state.actor.observation_statistics
        statistics = update_observing(env.observation, frozen, trajectory.observation)
        # Adding zero makes what is seen wait for them: the batch would be kept twice otherwise.
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

    def policy(actor: Actor, carry: Any, observations: Any) -> tuple[Any, Distribution]:
        # The part that only the critic sees need not be there.
        spec, statistics, shown = (
            split_part(tree, agent.critic_observation)[0]
            for tree in (env.observation, actor.observation_statistics, observations)
        )
        return agent.policy.step(
            actor.policy_params,
            carry,
            observe(spec, statistics, shown, config.normalize_observations),
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
    config: OnPolicy,
    agent: Agent,
    init_step_state: Callable[[PRNGKeyArray, PyTree[Array]], Any],
    key: PRNGKeyArray,
) -> TrainState:
    """Returns the state that a run starts from; see `make`."""
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
    """Returns statistics of the observations that random actions lead to.

    A policy must see its first batch through the statistics that it acted by, and these must be
    near the later ones: the policy moves with them.

    Args:
        env: an environment on the device.
        key: consumed by actions, steps and resets.
        num_envs: environments side by side.
        num_steps: steps of each, of which `RANDOM_STEPS` are taken at the most.
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
    config: OnPolicy,
    agent: Agent,
    state: TrainState,
    trajectory: Transition,
    constrained: bool = False,
) -> tuple[TrainState, StepInput, Any]:
    """Returns what the policy's step may look at, advantages among it, and targets of the critic.

    The state comes back with what it keeps of rewards updated, and the critic's memory.
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
        # Sums that hardly vary, or hardly ever, would make rewards as large as one likes.
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

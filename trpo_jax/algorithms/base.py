"""The interface of every algorithm, and the parts of its state that other modules read."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trpo_jax.agent import Agent, Policy
from trpo_jax.algorithms import fields
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, Transition
from trpo_jax.envs.specs import ObservationSpec, split_part
from trpo_jax.normalization import RunningStatistics
from trpo_jax.observing import Statistics, observe
from trpo_jax.rollout import rollout_with_state

fields.register_configs()

State = (
    Any  # an immutable pytree with the fields `actor`, `critic`, `rollout`, `key`, `num_updates`
)
Metrics = dict[str, Float[Array, ""] | float | int]


class Actor(NamedTuple):
    """The part of a state that acting needs.

    Attributes:
        policy_params: parameters of the policy.
        observation_statistics: running statistics that standardise observations.
    """

    policy_params: PyTree[Array]
    observation_statistics: Statistics


class Learnt(NamedTuple):
    """The learnt part of a run. Another run can start from it.

    Attributes:
        actor: policy parameters and observation statistics, see `Actor`.
        critic: state of the critic.
        reward_statistics: running statistics that scale rewards; None if the algorithm has none.
    """

    actor: Any
    critic: Any = None
    reward_statistics: RunningStatistics | None = None


def learnt_of(state: State) -> Learnt:
    """Returns the learnt part of a state."""
    return Learnt(state.actor, state.critic, getattr(state, "reward_statistics", None))


class RolloutState(NamedTuple):
    """State that continues from one rollout to the next; every array has the leading axis `[B]`.

    Attributes:
        episodes: running episodes.
        acting: state that `Algorithm.act` carries from step to step. If it has a field `carry`,
            this is the memory of the policy.
        reward_sums: discounted sums of the rewards of the running episodes.
        carry: memory of the policy before the first step of the latest rollout.
        critic_carry: memory of the critic after the last step of the latest rollout.
    """

    episodes: Episode
    acting: Any
    reward_sums: Float[Array, " B"]
    carry: Any = ()
    critic_carry: Any = ()

    def after(self, episodes: Episode, acting: Any) -> "RolloutState":
        """Returns the state that follows a rollout, which ended with `episodes` and `acting`."""
        return self._replace(
            episodes=episodes, acting=acting, carry=getattr(self.acting, "carry", ())
        )


class Algorithm(NamedTuple):
    """A learning algorithm, made of pure functions. Each can be jitted, vmapped and scanned.

    The fields hold the primitive functions, and the methods call them. So the methods of
    `algorithm._replace(act=...)` use the new function.

    Attributes:
        env: the environment.
        init: `key -> state`; the state is a pytree with the fields `actor`, `critic`, `rollout` (a
            `RolloutState`), `key` and `num_updates`.
        act: `(state.actor, key, episodes [B], acting) -> (actions [B, ...], noise, acting)` draws
            the actions of one step of a rollout.
        improve: `(state, trajectory [T, B]) -> (state, fit_input, metrics)` estimates advantages
            and takes the step of the policy. It does not change `state.critic`. The next rollout
            needs its result.
        fit: `(state.critic, fit_input) -> (state.critic, metrics)` fits the critic. The next
            rollout can run at the same time.
        policy: `(state.actor, carry, observations [B, ...]) -> (carry, action distribution)` takes
            observations in the form that the environment gives. The part that only the critic
            sees may be missing. Evaluation uses this function.
        num_steps: T, steps of each environment in one update.
        steps_per_update: environment steps in one update, summed over all environments.
        config: the config of the algorithm; None if it was made without one.
        agent: the agent of the algorithm; None if it was made without one.
        carry: `num_envs -> carry` returns the memory of the policy at the start of episodes,
            `[B, ...]`. It is `()` if the policy has no memory.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> algorithm = trpo_jax.trpo.make(env, trpo_jax.trpo.Config(num_envs=4, num_steps=64))
        >>> algorithm.steps_per_update
        256
        >>> state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
        >>> trajectory.reward.shape
        (64, 4)
        >>> state, metrics = jax.jit(algorithm.learn)(state, trajectory)
        >>> bool(metrics["kl"] <= 0.01), int(state.num_updates)
        (True, 1)
    """

    env: Environment
    init: Callable[[PRNGKeyArray], State]
    act: Callable[[Any, PRNGKeyArray, Episode, Any], tuple[Any, Any, Any]]
    improve: Callable[[State, Transition], tuple[State, Any, Metrics]]
    fit: Callable[[Any, Any], tuple[Any, Metrics]]
    policy: Callable[[Any, Any, Any], tuple[Any, Distribution]]
    num_steps: int
    steps_per_update: int
    config: Any = None
    agent: Agent | None = None
    carry: Callable[[int], Any] = lambda num_envs: ()

    def collect(self, state: State) -> tuple[State, Transition]:
        """Returns the state after a rollout, and the trajectory `[T, B]`."""
        episodes, acting, trajectory = rollout_with_state(
            self.env,
            partial(self.act, state.actor),
            update_keys(state).collect,
            state.rollout.episodes,
            state.rollout.acting,
            self.num_steps,
        )
        return state._replace(rollout=state.rollout.after(episodes, acting)), trajectory

    def learn(self, state: State, trajectory: Transition) -> tuple[State, Metrics]:
        """Returns the state after learning from a trajectory `[T, B]`, and the metrics.

        The policy steps first, then the critic is fitted. A critic that is fitted first overfits
        to the returns of the batch, and the advantages shrink (Schulman et al. 2016,
        arXiv:1506.02438, section 5).
        """
        state, fit_input, metrics = self.improve(state, trajectory)
        critic, fit_metrics = self.fit(state.critic, fit_input)
        return state._replace(critic=critic), metrics | fit_metrics

    def update(self, state: State) -> tuple[State, Metrics]:
        """Collects a trajectory and learns from it. Returns the state and the metrics."""
        return self.learn(*self.collect(state))


class UpdateKeys(NamedTuple):
    """The keys of one update."""

    collect: PRNGKeyArray
    policy: PRNGKeyArray
    critic: PRNGKeyArray
    noise: PRNGKeyArray


def update_keys(state: State) -> UpdateKeys:
    """Returns the keys of the next update, made from `fold_in(state.key, num_updates)`."""
    return UpdateKeys(*jax.random.split(jax.random.fold_in(state.key, state.num_updates), 4))


def acting_by(
    policy: Policy, observation: ObservationSpec, hidden: str | None, normalized: bool
) -> Callable[[Actor, Any, Any], tuple[Any, Distribution]]:
    """Returns a policy as a function of the parameters and statistics of an actor.

    The function is `(actor, carry, observations [B, ...]) -> (carry, action distribution)`.

    Args:
        policy: the policy.
        observation: spec of the observations that the policy sees.
        hidden: name of the part of an observation that only the critic sees; None if there is none.
            Spec, statistics and observations may have this part or lack it.
        normalized: whether the policy sees standardised observations.
    """

    def act(actor: Actor, carry: Any, observations: Any) -> tuple[Any, Distribution]:
        spec, statistics, shown = (
            split_part(tree, hidden)[0]
            for tree in (observation, actor.observation_statistics, observations)
        )
        seen = observe(spec, statistics, shown, normalized)
        return policy.step(actor.policy_params, carry, seen)

    return act

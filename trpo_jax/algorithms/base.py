"""What every algorithm looks like from outside."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trpo_jax.agent import Agent
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, Transition
from trpo_jax.normalization import RunningStatistics
from trpo_jax.observing import Statistics
from trpo_jax.rollout import rollout_with_state

State = (
    Any  # an immutable pytree with the fields `actor`, `critic`, `rollout`, `key`, `num_updates`
)
Metrics = dict[str, Float[Array, ""] | float | int]


class Actor(NamedTuple):
    """All that acting needs.

    Attributes:
        policy_params: parameters of the policy.
        observation_statistics: what observations are standardised by.
    """

    policy_params: PyTree[Array]
    observation_statistics: Statistics


class Learnt(NamedTuple):
    """What a run has learnt: all that another one needs to start from it.

    Attributes:
        actor: what acting needs.
        critic: the state of the critic.
        reward_statistics: what rewards are scaled by; None of an algorithm that keeps none.
    """

    actor: Any
    critic: Any = None
    reward_statistics: RunningStatistics | None = None


def learnt_of(state: State) -> Learnt:
    """Returns what a state has learnt."""
    return Learnt(state.actor, state.critic, getattr(state, "reward_statistics", None))


class RolloutState(NamedTuple):
    """What goes on from one rollout to the next; every array has the leading axis `[B]`.

    Attributes:
        episodes: running episodes.
        acting: what acting carries from step to step; its field `carry`, if any, is the memory.
        reward_sums: discounted reward sums of the running episodes.
        carry: the memory of the policy before the first step of the latest rollout.
        critic_carry: the memory of the critic after its last step.
    """

    episodes: Episode
    acting: Any
    reward_sums: Float[Array, " B"]
    carry: Any = ()
    critic_carry: Any = ()

    def after(self, episodes: Episode, acting: Any) -> "RolloutState":
        """Returns what goes on from a rollout that ended in these episodes and this state."""
        return self._replace(
            episodes=episodes, acting=acting, carry=getattr(self.acting, "carry", ())
        )


class Algorithm(NamedTuple):
    """A learning algorithm: pure functions, each of which can be jitted, vmapped and scanned.

    The fields are primitives. The methods are made of them, so that `algorithm._replace(act=...)`
    changes all that follows from it.

    Attributes:
        env: the environment that it is on.
        init: `key -> state`; the state is a pytree with the fields `actor`, `critic`, `rollout` (a
            `RolloutState`), `key` and `num_updates`.
        act: `(state.actor, key, episodes [B], acting) -> (actions [B, ...], noise, acting)`, one
            step of a rollout.
        improve: `(state, trajectory [T, B]) -> (state, fit_input, metrics)`: all of an update that
            the next rollout waits for, which leaves `state.critic` alone.
        fit: `(state.critic, fit_input) -> (state.critic, metrics)`: the rest of the update.
        policy: `(state.actor, carry, observations [B, ...]) -> (carry, action distribution)`, for
            observations as the environment shows them, with or without the part that only the
            critic sees. Evaluation acts by it.
        num_steps: T, steps of each environment in one update.
        steps_per_update: environment steps in one update, of all environments together.
        config: the config that it was made from, if it was.
        agent: the agent that it was made from, if it was.
        carry: `num_envs -> carry`, the memory of the policy at the start of episodes, `[B, ...]`;
            `()` without one.
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
        """Returns the state after learning from a trajectory, and the metrics.

        The critic is fitted after the policy's step: a critic fitted first would explain away the
        very advantages that the step is to learn from (Schulman et al. 2016, arXiv:1506.02438,
        section 5).
        """
        state, fit_input, metrics = self.improve(state, trajectory)
        critic, fit_metrics = self.fit(state.critic, fit_input)
        return state._replace(critic=critic), metrics | fit_metrics

    def update(self, state: State) -> tuple[State, Metrics]:
        """Returns the state after one update, and the metrics: `collect`, then `learn`."""
        return self.learn(*self.collect(state))


class UpdateKeys(NamedTuple):
    """The keys of one update."""

    collect: PRNGKeyArray
    policy: PRNGKeyArray
    critic: PRNGKeyArray
    noise: PRNGKeyArray


def update_keys(state: State) -> UpdateKeys:
    """Returns the keys of the update that comes next, from `fold_in(state.key, num_updates)`."""
    return UpdateKeys(*jax.random.split(jax.random.fold_in(state.key, state.num_updates), 4))

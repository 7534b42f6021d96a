"""The agent: what acts and what judges, built once and handed to whatever needs it.

A policy is a few functions, the same for all kinds. With a memory, `step` carries it from one step
to the next, and `unroll` goes through whole sequences to learn from them. Without one, the carry is
`()`, and a `Network` of any library gives the policy by `memoryless`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num, PRNGKeyArray, PyTree

from trpo_jax import exploration
from trpo_jax.critics import Critic, adam_critic, trust_region_critic
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode
from trpo_jax.exploration import Exploration
from trpo_jax.networks import Network, make_critic, make_policy, over_two_axes

Params = PyTree[Array]


class Policy(NamedTuple):
    """What acts.

    Attributes:
        init: `key -> params`.
        carry: `num_envs -> carry`, the memory of B environments at the start of their episodes;
            every array of it has the leading axis `[B]`.
        step: `(params, carry, observations [B, ...]) -> (carry, distributions [B])`, to act.
        unroll: `(params, carry, observations [T, B, ...], first [T, B]) -> distributions [T, B]`,
            to learn; `carry` is that before the first step, and `first` says where an episode
            starts.
        settings: the arguments of `make_policy` that it was built with, by which a policy file
            describes it; None for a policy of the user's own.
    """

    init: Callable[[PRNGKeyArray], Params]
    carry: Callable[[int], Any]
    step: Callable[[Params, Any, Num[Array, "B ..."]], tuple[Any, Distribution]]
    unroll: Callable[[Params, Any, Num[Array, "T B ..."], Bool[Array, "T B"]], Distribution]
    settings: Mapping[str, Any] | None = None


class ActingState(NamedTuple):
    """What an agent carries from step to step; leading axes `[B]`.

    Attributes:
        carry: the memory of the policy.
        noise_state: what the exploration carries.
    """

    carry: Any
    noise_state: Any


class Context(NamedTuple):
    """What actions depended on besides the observations.

    Attributes:
        carry: the memory of the policy before each step.
        noise: what the exploration added.
    """

    carry: Any
    noise: Any


class Agent(NamedTuple):
    """A policy, a critic and an exploration.

    Attributes:
        policy: what acts.
        critic: what judges states.
        exploration: how actions are drawn from the policy.

    Example:
        >>> agent = make_agent(env, config)
        >>> agent = agent._replace(policy=memoryless(from_linen(MyPolicy(), env.observation)))
        >>> algorithm = trpo.make(env, config, agent=agent)
    """

    policy: Policy
    critic: Critic
    exploration: Exploration

    def init_acting(self, key: PRNGKeyArray, num_envs: int) -> ActingState:
        """Returns the state that acting in B = `num_envs` environments starts from."""
        init_key, prepare_key = jax.random.split(key)
        noise_state = self.exploration.init(init_key, num_envs)
        noise_state = self.exploration.prepare(prepare_key, noise_state)
        return ActingState(self.policy.carry(num_envs), noise_state)

    def act(
        self,
        params: Params,
        key: PRNGKeyArray,
        episodes: Episode,
        observations: Num[Array, "B ..."],
        state: ActingState,
    ) -> tuple[Num[Array, "B ..."], Context, ActingState]:
        """Draws an action for each of B environments.

        Args:
            params: of the policy.
            key: consumed by the draws.
            episodes: running episodes, leading axis `[B]`.
            observations: their observations as the policy sees them.
            state: from `init_acting`, or from the step before.

        Returns:
            The actions, what they depended on besides the observations, and the state to go on
            with.
        """
        carry = _restarted(self.policy, episodes.first, state.carry)
        next_carry, distribution = self.policy.step(params, carry, observations)
        actions, noise, noise_state = self.exploration.act(
            key, distribution, state.noise_state, episodes
        )
        return actions, Context(carry, noise), ActingState(next_carry, noise_state)

    def distributions(self, params: Params, batch: Any) -> Distribution:
        """Returns what the actions of a batch `[T, B]` were drawn from, at these parameters.

        Args:
            params: of the policy.
            batch: with the fields `observations`, `first` and `context`, in the order of time.
        """
        carry = jax.tree.map(lambda x: x[0], batch.context.carry)
        distribution = self.policy.unroll(params, carry, batch.observations, batch.first)
        return self.exploration.condition(distribution, batch.context.noise)


def memoryless(network: Network) -> Policy:
    """Returns the policy that a network is, whose output is the distribution of the actions.

    Example:
        >>> network = Network(init, lambda params, x: Categorical(x @ params["w"]))
        >>> policy = memoryless(network)
    """
    unroll = over_two_axes(network.apply)
    return Policy(
        init=network.init,
        carry=lambda num_envs: (),
        step=lambda params, carry, observations: ((), network.apply(params, observations)),
        unroll=lambda params, carry, observations, first: unroll(params, observations),
    )


def make_agent(env: Environment, config: Any) -> Agent:
    """Returns the agent that a config describes.

    Args:
        env: the environment.
        config: of an on-policy algorithm; without a field `exploration`, the noise is `white`.
    """
    settings = {
        "hidden_sizes": config.hidden_sizes,
        "activation": config.activation,
        "state_dependent_std": config.state_dependent_std,
    }
    network = make_policy(env.observation, env.action, log_std_init=config.log_std_init, **settings)
    values = make_critic(
        env.observation, hidden_sizes=config.hidden_sizes, activation=config.activation
    )
    return Agent(
        policy=memoryless(network)._replace(settings=settings),
        critic=CRITICS[config.gae_critic](values, config),
        exploration=EXPLORATIONS[getattr(config, "exploration", "white")](env, config),
    )


def _restarted(policy: Policy, first: Bool[Array, " B"], carry: Any) -> Any:
    """Returns the carry `[B]`, fresh where an episode starts."""
    expand = lambda x: first.reshape(-1, *[1] * (x.ndim - 1))
    fresh = policy.carry(first.shape[0])
    return jax.tree.map(lambda new, old: jnp.where(expand(old), new, old), fresh, carry)


# What the names in a config stand for.
CRITICS: dict[str, Callable[[Network, Any], Critic]] = {
    "adam": lambda network, config: adam_critic(
        network,
        learning_rate=config.critic_lr,
        epochs=config.critic_epochs,
        minibatches=config.critic_minibatches,
    ),
    "trust_region": lambda network, config: trust_region_critic(
        network, max_change=config.critic_max_change
    ),
}
EXPLORATIONS: dict[str, Callable[[Environment, Any], Exploration]] = {
    "white": lambda env, config: exploration.white(),
    "ou": lambda env, config: exploration.ou(env.action.size, config.ou_rho),
    "colored": lambda env, config: exploration.colored(
        env.action.size, config.color_beta, config.num_steps
    ),
}

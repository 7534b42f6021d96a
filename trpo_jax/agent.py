"""The agent: a policy, a critic and an exploration.

A policy is a few functions. All policies have the same functions. If a policy has a memory, `step`
carries the memory from one step to the next, and `unroll` goes through whole sequences to learn
from them. If a policy has no memory, its carry is `()`. `memoryless` makes such a policy from a
`Network`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from trpo_jax import exploration
from trpo_jax.critics import Critic, adam_critic, normalized, trust_region_critic
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment, key_shape
from trpo_jax.envs.episodes import Episode
from trpo_jax.envs.specs import ActionSpec, ArraySpec, ObservationSpec, split_mask, split_part
from trpo_jax.exploration import Exploration
from trpo_jax.networks import (
    Network,
    PolicyHead,
    Torso,
    ValueHead,
    example_seen,
    from_linen,
    make_critic,
    make_policy,
    make_policy_head,
    make_torso,
)
from trpo_jax.recurrent import (
    CELLS,
    Cell,
    RecurrentNetwork,
    recurrent_network,
    remembers,
    restarted,
    without_memory,
)

NO_MEMORY = "none"
# Fields of a config that describe the networks of both the policy and the critic.
SHARED_SETTINGS = ("hidden_sizes", "activation", "memory", "memory_size")
Params = PyTree[Array]


class Policy(NamedTuple):
    """The functions of a policy.

    Attributes:
        init: `key -> params`.
        carry: `num_envs -> carry`. Returns the memory of B environments at the start of their
            episodes. Each array of the carry has the leading axis `[B]`.
        step: `(params, carry, observations [B, ...]) -> (carry, distributions [B])`. Used to act.
        unroll: `(params, carry, observations [T, B, ...], first [T, B]) -> distributions [T, B]`.
            Used to learn. `carry` is the memory before the first step, and `first` marks the steps
            at which an episode starts.
        settings: the arguments of `build_policy` that describe the policy in a policy file. None
            for a policy that the user built.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> policy = trpo_jax.make_agent(env, trpo_jax.trpo.Config()).policy
        >>> params = policy.init(jax.random.key(0))
        >>> carry, distributions = policy.step(params, policy.carry(3), jnp.ones((3, 4)))
        >>> distributions.logits.shape
        (3, 2)
    """

    init: Callable[[PRNGKeyArray], Params]
    carry: Callable[[int], Any]
    step: Callable[[Params, Any, Any], tuple[Any, Distribution]]
    unroll: Callable[[Params, Any, Any, Bool[Array, "T B"]], Distribution]
    settings: Mapping[str, Any] | None = None

    @property
    def remembers(self) -> bool:
        """Whether the policy has a memory."""
        return remembers(self.carry)


class ActingState(NamedTuple):
    """The state that an agent carries from one step to the next. Its arrays are `[B, ...]`.

    Attributes:
        carry: the memory of the policy.
        noise_state: the state of the exploration.
    """

    carry: Any
    noise_state: Any


class Agent(NamedTuple):
    """A policy, a critic and an exploration.

    Attributes:
        policy: gives the distribution of the actions.
        critic: gives the values of states.
        exploration: draws the actions from the distribution of the policy.
        critic_observation: name of the part of an observation that only the critic sees. None if
            the policy sees every part.

    Examples:
        >>> env, config = trpo_jax.make_env("CartPole-v1"), trpo_jax.trpo.Config()
        >>> agent = trpo_jax.make_agent(env, config)
        >>> network = trpo_jax.Network(
        ...     init=lambda key: jnp.zeros((4, 2)),
        ...     apply=lambda params, observations: trpo_jax.Categorical(observations @ params),
        ... )
        >>> agent = agent._replace(policy=trpo_jax.memoryless(network))
        >>> algorithm = trpo_jax.trpo.make(env, config, agent=agent)
    """

    policy: Policy
    critic: Critic
    exploration: Exploration
    critic_observation: str | None = None

    def init_acting(self, key: PRNGKeyArray, num_envs: int) -> ActingState:
        """Returns the state before the first step in B = `num_envs` environments."""
        init_key, prepare_key = jax.random.split(key)
        noise_state = self.exploration.init(init_key, num_envs)
        noise_state = self.exploration.prepare(prepare_key, noise_state)
        return ActingState(self.policy.carry(num_envs), noise_state)

    def act(
        self,
        params: Params,
        key: PRNGKeyArray,
        episodes: Episode,
        observations: Any,
        state: ActingState,
    ) -> tuple[Any, Any, ActingState]:
        """Draws an action for each of B environments.

        Args:
            params: parameters of the policy.
            key: consumed to draw the actions.
            episodes: running episodes, leading axis `[B]`.
            observations: the observations of these episodes, as networks see them.
            state: from `init_acting`, or from the previous step.

        Returns:
            The actions, the noise of the exploration that the actions depended on, and the state
            for the next step.
        """
        carry = restarted(self.policy.carry, episodes.first, state.carry)
        carry, distribution = self.step(params, carry, observations)
        actions, noise, noise_state = self.exploration.act(
            key, distribution, state.noise_state, episodes
        )
        return actions, noise, ActingState(carry, noise_state)

    def step(self, params: Params, carry: Any, observations: Any) -> tuple[Any, Distribution]:
        """Returns the next memory of the policy and the action distributions, for B states."""
        return self.policy.step(params, carry, split_part(observations, self.critic_observation)[0])

    def distributions(self, params: Params, batch: Any) -> Distribution:
        """Returns the action distributions of a batch `[T, B]` for these parameters.

        Args:
            params: parameters of the policy.
            batch: has the fields `observations`, `first`, `carry` `[1, B, ...]` and `noise`. Its
                steps are in the order of time.
        """
        carry = jax.tree.map(lambda x: x[0], batch.carry)
        observations, _ = split_part(batch.observations, self.critic_observation)
        distribution = self.policy.unroll(params, carry, observations, batch.first)
        return self.exploration.condition(distribution, batch.noise)


def memoryless(network: Network) -> Policy:
    """Returns a policy without a memory.

    Args:
        network: its output is the distribution of the actions.

    Examples:
        >>> network = trpo_jax.Network(
        ...     init=lambda key: jnp.zeros((4, 2)),
        ...     apply=lambda params, observations: trpo_jax.Categorical(observations @ params),
        ... )
        >>> policy = trpo_jax.memoryless(network)
        >>> policy.remembers
        False
    """
    return policy_of(without_memory(network))


def policy_of(network: RecurrentNetwork) -> Policy:
    """Returns a policy from a recurrent network.

    Args:
        network: its outputs are the distributions of the actions.

    Examples:
        >>> network = trpo_jax.recurrent_network(
        ...     trpo_jax.Network(lambda key: (), lambda params, observations: observations),
        ...     num_features=4,
        ...     cell=trpo_jax.gru(8),
        ...     head=trpo_jax.Network(
        ...         init=lambda key: jnp.zeros((4 + 8, 2)),
        ...         apply=lambda params, x, observations: trpo_jax.Categorical(x @ params),
        ...     ),
        ... )
        >>> trpo_jax.policy_of(network).remembers
        True
    """
    unroll = lambda *args: network.unroll(*args)[0]
    return Policy(network.init, network.carry, network.step, unroll)


def make_agent(env: Environment, config: Any) -> Agent:
    """Returns the agent that a config describes.

    Args:
        env: the environment.
        config: config of an on-policy algorithm. If it has no field `exploration`, the noise is
            `white`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> agent = trpo_jax.make_agent(env, trpo_jax.trpo.Config(memory="gru"))
        >>> agent.policy.remembers
        True
    """
    hidden = config.critic_observation or env.critic_observation
    settings = {name: getattr(config, name) for name in (*SHARED_SETTINGS, "state_dependent_std")}
    policy = build_policy(
        split_part(env.observation, hidden)[0],
        env.action,
        log_std_init=config.log_std_init,
        memory_checkpoint=config.memory_checkpoint,
        **settings,
    )
    return Agent(
        policy=policy._replace(settings=settings),
        critic=critic_of(env.observation, None, config),
        exploration=EXPLORATIONS[getattr(config, "exploration", "white")](env, config),
        critic_observation=hidden,
    )


def build_policy(
    observation: ObservationSpec,
    action: ActionSpec,
    *,
    hidden_sizes: Sequence[int],
    activation: str,
    state_dependent_std: bool,
    log_std_init: Float[Array, ""] | float = 0.0,
    memory: str = NO_MEMORY,
    memory_size: int = 0,
    memory_checkpoint: bool = False,
) -> Policy:
    """Returns the policy that these settings describe, with or without a memory.

    The settings are fields of a config. See `make_policy` and `recurrent_network`.
    """
    if memory == NO_MEMORY:
        network = make_policy(
            observation,
            action,
            hidden_sizes=hidden_sizes,
            activation=activation,
            log_std_init=log_std_init,
            state_dependent_std=state_dependent_std,
        )
        return memoryless(network)
    torso = make_torso(observation, hidden_sizes, activation)
    head = make_policy_head(action, log_std_init, state_dependent_std)
    cell = CELLS[memory](memory_size)
    return policy_of(_remembering(observation, torso, cell, head, memory_checkpoint))


def build_critic(
    observation: ObservationSpec,
    *,
    hidden_sizes: Sequence[int],
    activation: str,
    memory: str,
    memory_size: int,
    memory_checkpoint: bool,
) -> RecurrentNetwork:
    """Returns the network of a critic that these settings describe. Its outputs are values."""
    if memory == NO_MEMORY:
        network = make_critic(observation, hidden_sizes=hidden_sizes, activation=activation)
        return without_memory(network)
    torso = make_torso(observation, hidden_sizes, activation)
    cell = CELLS[memory](memory_size)
    return _remembering(observation, torso, cell, ValueHead(), memory_checkpoint)


def critic_of(
    observation: ObservationSpec, view: Callable[[Any, int], Any] | None, config: Any
) -> Critic:
    """Returns the critic that a config describes.

    Args:
        observation: spec of the observations that the critic sees.
        view: `(observations, number of batch axes) -> observations of the critic`, applied to the
            observations as networks see them. If None, the critic sees them as they are.
        config: config of an on-policy algorithm.
    """
    shared = {name: getattr(config, name) for name in SHARED_SETTINGS}
    network = build_critic(observation, memory_checkpoint=config.memory_checkpoint, **shared)
    if view is not None:
        own = network
        network = own._replace(
            step=lambda params, carry, x: own.step(params, carry, view(x, 1)),
            unroll=lambda params, carry, x, first: own.unroll(params, carry, view(x, 2), first),
        )
    critic = CRITICS[config.gae_critic](network, config)
    return normalized(critic) if config.normalize_values else critic


def _remembering(
    observation: ObservationSpec,
    torso: Torso,
    cell: Cell,
    head: PolicyHead | ValueHead,
    checkpoint: bool,
) -> RecurrentNetwork:
    """Returns the network of a torso, a cell and a head. The head sees the mask of actions."""
    features = from_linen(torso, observation)
    of_one = lambda key: features.apply(features.init(key), example_seen(observation))
    width = jax.eval_shape(of_one, key_shape()).shape[-1]
    joined = ArraySpec((width + cell.size,), np.dtype(np.float32))
    outputs = Network(
        from_linen(head, joined).init,
        lambda params, x, seen: head.apply({"params": params}, x, split_mask(seen)[1]),
    )
    return recurrent_network(features, width, cell, outputs, checkpoint)


# The critics and explorations that the names in a config stand for.
CRITICS: dict[str, Callable[[RecurrentNetwork, Any], Critic]] = {
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

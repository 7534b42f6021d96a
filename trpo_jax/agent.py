"""The agent: what acts and what judges, built once and handed to whatever needs it.

A policy is a few functions, the same for all kinds. With a memory, `step` carries it from one step
to the next, and `unroll` goes through whole sequences to learn from them. Without one, the carry is
`()`, and a `Network` of any library gives the policy by `memoryless`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from trpo_jax import exploration
from trpo_jax.critics import Critic, adam_critic, normalized, trust_region_critic
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import (
    ActionSpec,
    ArraySpec,
    Environment,
    ObservationSpec,
    split_mask,
    split_part,
)
from trpo_jax.envs.episodes import Episode
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
# Fields of a config that say what the networks of policy and critic are made of.
SHARED_SETTINGS = ("hidden_sizes", "activation", "memory", "memory_size")
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
    step: Callable[[Params, Any, Any], tuple[Any, Distribution]]
    unroll: Callable[[Params, Any, Any, Bool[Array, "T B"]], Distribution]
    settings: Mapping[str, Any] | None = None

    @property
    def remembers(self) -> bool:
        """Whether it has a memory."""
        return remembers(self.carry)


class ActingState(NamedTuple):
    """What an agent carries from step to step; leading axes `[B]`.

    Attributes:
        carry: the memory of the policy.
        noise_state: what the exploration carries.
    """

    carry: Any
    noise_state: Any


class Agent(NamedTuple):
    """A policy, a critic and an exploration.

    Attributes:
        policy: what acts.
        critic: what judges states.
        exploration: how actions are drawn from the policy.
        critic_observation: name of the part of an observation that the policy does not see; None
            for no part.

    Example:
        >>> agent = make_agent(env, config)
        >>> agent = agent._replace(policy=memoryless(from_linen(MyPolicy(), env.observation)))
        >>> algorithm = trpo.make(env, config, agent=agent)
    """

    policy: Policy
    critic: Critic
    exploration: Exploration
    critic_observation: str | None = None

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
        observations: Any,
        state: ActingState,
    ) -> tuple[Any, Any, ActingState]:
        """Draws an action for each of B environments.

        Args:
            params: of the policy.
            key: consumed by the draws.
            episodes: running episodes, leading axis `[B]`.
            observations: their observations as networks see them.
            state: from `init_acting`, or from the step before.

        Returns:
            The actions, the noise that they depended on besides the observations, and the state to
            go on with.
        """
        carry = restarted(self.policy.carry, episodes.first, state.carry)
        carry, distribution = self.step(params, carry, observations)
        actions, noise, noise_state = self.exploration.act(
            key, distribution, state.noise_state, episodes
        )
        return actions, noise, ActingState(carry, noise_state)

    def step(self, params: Params, carry: Any, observations: Any) -> tuple[Any, Distribution]:
        """Returns the next memory of the policy, and its distributions, for B observations."""
        return self.policy.step(params, carry, split_part(observations, self.critic_observation)[0])

    def distributions(self, params: Params, batch: Any) -> Distribution:
        """Returns what the actions of a batch `[T, B]` were drawn from, at these parameters.

        Args:
            params: of the policy.
            batch: with the fields `observations`, `first`, `carry` `[1, B, ...]` and `noise`, in
                the order of time.
        """
        carry = jax.tree.map(lambda x: x[0], batch.carry)
        observations, _ = split_part(batch.observations, self.critic_observation)
        distribution = self.policy.unroll(params, carry, observations, batch.first)
        return self.exploration.condition(distribution, batch.noise)


def memoryless(network: Network) -> Policy:
    """Returns the policy that a network is, whose output is the distribution of the actions.

    Example:
        >>> network = Network(init, lambda params, x: Categorical(x @ params["w"]))
        >>> policy = memoryless(network)
    """
    return policy_of(without_memory(network))


def policy_of(network: RecurrentNetwork) -> Policy:
    """Returns the policy that a network with a memory is; its outputs are distributions.

    Example:
        >>> policy = policy_of(recurrent_network(features, 64, gru(32), head))
    """
    unroll = lambda *args: network.unroll(*args)[0]
    return Policy(network.init, network.carry, network.step, unroll)


def make_agent(env: Environment, config: Any) -> Agent:
    """Returns the agent that a config describes.

    Args:
        env: the environment.
        config: of an on-policy algorithm; without a field `exploration`, the noise is `white`.
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
    """Returns the policy that settings describe, with or without a memory.

    The settings are fields of a config; see `make_policy` and `recurrent_network`.
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
    """Returns the network of a critic that settings describe; its outputs are values."""
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
        observation: what it sees.
        view: `(observations as networks see them, number of batch axes) -> what it sees of them`;
            all of them if None.
        config: of an on-policy algorithm.
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
    """Returns the network of a torso, a cell and a head, which reads the mask in observations."""
    features = from_linen(torso, observation)
    of_one = lambda key: features.apply(features.init(key), example_seen(observation))
    width = jax.eval_shape(of_one, jax.random.key(0)).shape[-1]
    joined = ArraySpec((width + cell.size,), np.dtype(np.float32))
    outputs = Network(
        from_linen(head, joined).init,
        lambda params, x, seen: head.apply({"params": params}, x, split_mask(seen)[1]),
    )
    return recurrent_network(features, width, cell, outputs, checkpoint)


# What the names in a config stand for.
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

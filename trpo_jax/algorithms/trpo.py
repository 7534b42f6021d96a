"""Trust-region policy optimisation (Schulman et al. 2015, arXiv:1502.05477), single path.

One update: collect a trajectory, estimate advantages with the critic as it is, take a
trust-region step of the policy, then fit the critic. The order matters: a critic fitted first
would explain away the very advantages the step is to learn from (Schulman et al. 2016,
arXiv:1506.02438, section 5).
"""

from collections.abc import Callable
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray, PyTree

from trpo_jax.advantages import discounted_returns, generalized_advantages, standardize
from trpo_jax.algorithms import config as fields
from trpo_jax.algorithms.base import Actor, Algorithm, Metrics, make_acting, observe
from trpo_jax.critic import CriticState, explained_variance, fit_critic, init_critic
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, Transition
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.networks import ACTIVATIONS, Network, make_critic, make_policy
from trpo_jax.normalization import (
    RunningStatistics,
    init_statistics,
    standard_deviation,
    update_statistics,
)
from trpo_jax.rollout import episode_metrics, rollout, start_episodes
from trpo_jax.trust_region import TrustRegionInfo, importance_sampled_surrogate, trust_region_step


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config:
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    num_envs: int = fields.integer(8, "environments stepped side by side", 1)
    num_steps: int = fields.integer(256, "steps of each environment in one update", 1)
    gamma: float = fields.real(0.99, "discount of future rewards", 0.0, 1.0)
    gae_lambda: float = fields.real(0.95, "lambda of generalised advantage estimation", 0.0, 1.0)
    max_kl: float = fields.real(
        0.01, "radius of the trust region: mean KL(old || new), in nats", 0.0, open_low=True
    )
    damping: float = fields.real(
        0.1, "added to the diagonal of the Fisher matrix in the solve", 0.0
    )
    damped_scaling: bool = fields.flag(
        True, "scale the step by the damped Fisher matrix, which falls somewhat short of max_kl"
    )
    cg_iters: int = fields.integer(10, "conjugate-gradient iterations", 1)
    fisher_subsample: int = fields.integer(
        1, "keep every k-th time step in Fisher-vector products", 1
    )
    line_search_steps: int = fields.integer(10, "step lengths tried at the most", 1)
    line_search_shrink: float = fields.real(
        0.8, "factor from one step length to the next", 0.0, 1.0, open_low=True, open_high=True
    )
    entropy_coef: float = fields.real(
        0.0, "weight of the policy's mean entropy beside the standardised advantages", 0.0
    )
    critic_lr: float = fields.real(1e-3, "step size of Adam for the critic", 0.0)
    critic_epochs: int = fields.integer(10, "passes over the batch when fitting the critic", 1)
    critic_minibatches: int = fields.integer(
        16, "parts of each pass; must divide num_envs * num_steps", 1
    )
    hidden_sizes: tuple[int, ...] = fields.integers(
        (64, 64), "width of each hidden layer, policy and critic", 1
    )
    activation: str = fields.choice("tanh", "nonlinearity of the hidden layers", tuple(ACTIVATIONS))
    log_std_init: float = fields.real(0.0, "initial log standard deviation of continuous actions")
    state_dependent_std: bool = fields.flag(
        False, "let the standard deviation of continuous actions depend on the state"
    )
    normalize_observations: bool = fields.flag(
        True, "standardise observations by running statistics"
    )
    scale_rewards: bool = fields.flag(
        False, "divide rewards by the running deviation of their discounted sum"
    )


class TrainState(NamedTuple):
    """Everything a run is: saving it saves the run.

    Attributes:
        actor: parameters of the policy, and the statistics it sees observations through.
        critic: parameters and optimiser of the critic.
        reward_statistics: of the discounted reward sums.
        reward_sums: discounted reward sums of the running episodes, `[B]`.
        episodes: running episodes, leading axis `[B]`.
        key: base key; the keys of update k come from `fold_in(key, k)`.
        num_updates: updates done so far.
    """

    actor: Actor
    critic: CriticState
    reward_statistics: RunningStatistics
    reward_sums: Float[Array, " B"]
    episodes: Episode
    key: PRNGKeyArray
    num_updates: Int[Array, ""]


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns TRPO on an environment.

    `make` may be called inside a traced function: `jax.vmap` over configs whose real-valued fields
    are arrays runs one program for all of them.

    Args:
        env: the environment, from `trpo_jax.envs.make` or of the caller's own.
        config: hyperparameters; the defaults if None.

    Raises:
        ConfigurationError: if a field's value cannot work.
    """
    config = Config() if config is None else config
    _validate(config)
    policy_network, critic_network = _networks(env, config)
    policy = make_acting(policy_network, config.normalize_observations)

    def init(key: PRNGKeyArray) -> TrainState:
        policy_key, critic_key, env_key, run_key = jax.random.split(key, 4)
        return TrainState(
            actor=Actor(policy_network.init(policy_key), init_statistics(env.observation.shape)),
            critic=init_critic(critic_network.init(critic_key)),
            reward_statistics=init_statistics(()),
            reward_sums=jnp.zeros(config.num_envs, jnp.float32),
            episodes=start_episodes(env, env_key, config.num_envs),
            key=run_key,
            num_updates=jnp.zeros((), jnp.int32),
        )

    def collect(state: TrainState) -> tuple[TrainState, Transition]:
        key = _update_keys(state).collect
        act = lambda act_key, observations: policy(state.actor, observations).sample(act_key)
        episodes, trajectory = rollout(env, act, key, state.episodes, config.num_steps)
        return state._replace(episodes=episodes), trajectory

    def learn(state: TrainState, trajectory: Transition) -> tuple[TrainState, Metrics]:
        frozen = state.actor.observation_statistics
        updated = update_statistics(frozen, trajectory.observation)
        # The first batch was collected without any statistics, and is seen through its own: to
        # learn from it as it was would move the policy by several times `max_kl` once there are
        # some. An initial policy hardly depends on what it sees, so the actions stay on-policy.
        seen_through = jax.tree.map(
            lambda old, new: jnp.where(frozen.count > 0, old, new), frozen, updated
        )
        state, batch = _estimate(config, critic_network.apply, seen_through, state, trajectory)
        policy_params, step_info = _policy_step(
            config, policy_network.apply, state.actor.policy_params, batch
        )
        # After the policy: a critic fitted first would explain away what the step is to learn from.
        critic, critic_loss = fit_critic(
            _update_keys(state).critic,
            critic_network.apply,
            state.critic,
            batch.observations.reshape(-1, *env.observation.shape),
            batch.targets.reshape(-1),
            learning_rate=config.critic_lr,
            epochs=config.critic_epochs,
            minibatches=config.critic_minibatches,
        )
        metrics = {
            **episode_metrics(trajectory),
            **step_info._asdict(),
            "critic_loss": critic_loss,
            "explained_variance": explained_variance(batch.values, batch.targets),
        }
        # The updated statistics come last: old log-probabilities, KL divergences and the Fisher
        # matrix all assume that the policy saw the batch through the same ones.
        state = state._replace(
            actor=Actor(policy_params, updated),
            critic=critic,
            num_updates=state.num_updates + 1,
        )
        return state, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    def update(state: TrainState) -> tuple[TrainState, Metrics]:
        return learn(*collect(state))

    return Algorithm(init, update, collect, learn, policy, config.num_envs * config.num_steps)


class _UpdateKeys(NamedTuple):
    collect: PRNGKeyArray
    critic: PRNGKeyArray


class _Batch(NamedTuple):
    """What an update learns from; leading axes `[T, B]`, observations as networks see them."""

    observations: Float[Array, "T B ..."]
    actions: Num[Array, "T B ..."]
    advantages: Float[Array, "T B"]
    values: Float[Array, "T B"]
    targets: Float[Array, "T B"]


def _update_keys(state: TrainState) -> _UpdateKeys:
    return _UpdateKeys(*jax.random.split(jax.random.fold_in(state.key, state.num_updates)))


def _networks(env: Environment, config: Config) -> tuple[Network, Network]:
    shape = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
    policy = make_policy(
        env.observation,
        env.action,
        log_std_init=config.log_std_init,
        state_dependent_std=config.state_dependent_std,
        **shape,
    )
    return policy, make_critic(env.observation, **shape)


def _validate(config: Config) -> None:
    fields.validate(config)
    batch = config.num_envs * config.num_steps
    if batch % config.critic_minibatches:
        raise ConfigurationError(
            f"critic_minibatches = {config.critic_minibatches} does not divide the batch of "
            f"num_envs * num_steps = {config.num_envs} * {config.num_steps} = {batch}. "
            "Choose a divisor of the batch."
        )
    if config.fisher_subsample > config.num_steps:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th time step of only "
            f"num_steps = {config.num_steps}. Choose at most num_steps."
        )


def _scale_rewards(
    config: Config, state: TrainState, trajectory: Transition
) -> tuple[Float[Array, "T B"], TrainState]:
    if not config.scale_rewards:
        return trajectory.reward, state
    reward_sums, sums = discounted_returns(
        trajectory.reward, trajectory.done, state.reward_sums, config.gamma
    )
    statistics = update_statistics(state.reward_statistics, sums)
    state = state._replace(reward_statistics=statistics, reward_sums=reward_sums)
    return trajectory.reward / standard_deviation(statistics), state


def _estimate(
    config: Config,
    critic_apply: Callable[..., Array],
    statistics: RunningStatistics,
    state: TrainState,
    trajectory: Transition,
) -> tuple[TrainState, _Batch]:
    observations, next_observations = (
        observe(statistics, x, config.normalize_observations)
        for x in (trajectory.observation, trajectory.next_observation)
    )
    rewards, state = _scale_rewards(config, state, trajectory)
    values = critic_apply(state.critic.params, observations)
    advantages = generalized_advantages(
        rewards,
        values,
        critic_apply(state.critic.params, next_observations),
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    batch = _Batch(observations, trajectory.action, advantages, values, advantages + values)
    return state, batch


def _policy_step(
    config: Config, policy_apply: Callable[..., Distribution], params: PyTree[Array], batch: _Batch
) -> tuple[PyTree[Array], TrustRegionInfo]:
    fisher_observations = batch.observations[:: config.fisher_subsample]
    with jax.default_matmul_precision("float32"):
        fvp = fisher_vector_product(lambda p: policy_apply(p, fisher_observations), params)
    return trust_region_step(
        params,
        lambda p: policy_apply(p, batch.observations),
        importance_sampled_surrogate(
            batch.actions, standardize(batch.advantages), config.entropy_coef
        ),
        fvp,
        max_kl=config.max_kl,
        damping=config.damping,
        cg_iters=config.cg_iters,
        line_search_steps=config.line_search_steps,
        line_search_shrink=config.line_search_shrink,
        damped_scaling=config.damped_scaling,
    )

"""TRPO with the vine scheme (Schulman et al. 2015, arXiv:1502.05477, section 5.2 and figure 1).

A trajectory shows the result of only one action in each state. The vine restarts the environment
from N states of a trajectory (the trunk) and runs K short branches from each of them. Each branch
has another first action. This measures the differences between the actions of a state, which the
single path of `trpo` must estimate with a critic. The branches of a state use the same random
numbers for environment and policy, so only the first action differs.

The rewards of the trunk train only the critic, which affects the policy if branches are
bootstrapped. All steps of the simulator count, also the steps after a branch has ended.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from trpo_jax import exploration
from trpo_jax.advantages import init_spread, standardize, update_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare, require_no_memory
from trpo_jax.algorithms.natural_gradient import kl_radius, make_solve, require_solver, step_options
from trpo_jax.algorithms.on_policy import Batch, StepInput
from trpo_jax.critics import Sequences
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import Discrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import observe
from trpo_jax.trust_region import trust_region_step
from trpo_jax.vine import branch_return, differences, draw_actions, self_normalized_surrogate

Config = configs.TRPOVine


class Branches(NamedTuple):
    """Branches from N states, with K first actions each.

    Attributes:
        batch: the batch at these states, leading axes `[N, 1]`.
        actions: first action of each branch, in the form that the policy gives.
        log_probs: log-probability of each first action under the distribution that it was drawn
            from.
        returns: discounted return of each branch, in the environment's units.
    """

    batch: Batch
    actions: PyTree[Num[Array, "N K ..."]]
    log_probs: Float[Array, "N K"]
    returns: Float[Array, "N K"]


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with the vine scheme on an environment; see `trpo.make` for the arguments.

    The exploration of an agent is not used. The actions of the trunk are independent draws.

    Examples:
        >>> env = trpo_jax.make_env("Pendulum-v1")
        >>> config = trpo_jax.trpo_vine.Config(num_states=8, num_branches=2, branch_steps=5)
        >>> algorithm = trpo_jax.trpo_vine.make(env, config.replace(num_envs=4, num_steps=16))
        >>> algorithm.steps_per_update  # 4 * 16 of the trunk and 8 * 2 * 5 of the branches
        144
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["branch_return_std"] > 0)
        True
    """
    config, agent = prepare(env, config or Config(), agent)
    require_solver(env, config, agent)
    require_no_memory(agent, "trpo_vine starts branches from single states")
    _validate_branches(env, config)
    agent = agent._replace(exploration=_recording())
    num_branches = config.num_branches
    if isinstance(env.action, Discrete):
        num_branches = min(num_branches, env.action.num_actions)
    branch_rollouts = make_branches(env, config, agent, num_branches)
    extra_steps = config.num_states * num_branches * config.branch_steps
    steps_per_update = config.num_envs * config.num_steps + extra_steps

    def policy_step(key, step_input):
        branch_key, solve_key = jax.random.split(key)
        branches, params = branch_rollouts(branch_key, step_input), step_input.actor.policy_params
        distributions = lambda p: agent.distributions(p, branches.batch)
        advantages = differences(branches.returns)
        spread, strength = update_spread(
            step_input.step_state, jnp.std(advantages), config.penalty_memory
        )
        params, info = trust_region_step(
            params,
            lambda p: jax.tree.map(lambda x: x[:, 0], distributions(p)),
            self_normalized_surrogate(
                branches.actions,
                branches.log_probs,
                standardize(advantages),
                config.entropy_coef,
            ),
            make_solve(env, config, agent, solve_key, params, branches.batch),
            max_kl=kl_radius(env, config, step_input.num_updates, steps_per_update),
            **step_options(env, config, strength),
        )
        metrics = info._asdict() | {"advantage_strength": strength}
        metrics["branch_return_std"] = jnp.mean(jnp.std(branches.returns, axis=1))
        return params, spread, metrics

    return on_policy.make(
        env,
        config,
        agent=agent,
        policy_step=policy_step,
        init_step_state=init_spread,
        extra_steps=extra_steps,
    )


def make_branches(
    env: Environment, config: Config, agent: Agent, num_branches: int
) -> Callable[[PRNGKeyArray, StepInput], Branches]:
    """Returns `(key, step_input) -> branches`, which restarts the environment and runs branches."""
    num_rows = config.num_envs * config.num_steps

    def branch_rollouts(key, step_input):
        rows_key, actions_key, branch_key = jax.random.split(key, 3)
        rows = jax.random.choice(rows_key, num_rows, (config.num_states,), replace=False)
        time, column = jnp.divmod(rows, config.num_envs)
        at_states = lambda tree: jax.tree.map(lambda x: x[time, column], tree)
        episodes = at_states(step_input.trajectory.noise)
        batch = jax.tree.map(lambda x: x[:, None], at_states(step_input.batch))
        statistics, params = step_input.actor.observation_statistics, step_input.actor.policy_params
        seen = lambda x: observe(env.observation, statistics, x, config.normalize_observations)
        one = lambda observation: jax.tree.map(lambda x: x[None], seen(observation))
        actions, log_probs = draw_actions(
            actions_key,
            env,
            agent.step(params, (), jax.tree.map(lambda x: x[:, 0], batch.observations))[1],
            num_branches,
        )

        def act(key, observation):
            distribution = agent.step(params, (), one(observation))[1]
            return jax.tree.map(lambda x: x[0], distribution.sample(key))

        def value(observation):
            if not config.branch_bootstrap:
                return jnp.zeros(())
            shown = jax.tree.map(lambda x: x[None], one(observation))
            sequences = Sequences((), shown, jnp.zeros((1, 1), bool))
            values, _ = agent.critic.values(step_input.critic_params, sequences)
            # Without a signal in the rewards, the critic's value is only error.
            return jnp.where(step_input.signal, step_input.reward_scale * values[0, 0], 0.0)

        def branch(key, episode, action):
            return branch_return(
                env, act, value, key, episode, action, config.branch_steps, config.gamma
            )

        # All branches of a state use one key: common random numbers.
        of_one_state = jax.vmap(branch, in_axes=(None, None, 0))
        keys = jax.random.split(branch_key, config.num_states)
        return Branches(batch, actions, log_probs, jax.vmap(of_one_state)(keys, episodes, actions))

    return branch_rollouts


def _recording() -> exploration.Exploration:
    """Returns independent draws that store the running episode of each step as their noise."""
    white = exploration.white()

    def act(key, distribution, noise_state, episodes):
        actions, _, noise_state = white.act(key, distribution, noise_state, episodes)
        return actions, episodes, noise_state

    return white._replace(act=act)


def _validate_branches(env: Environment, config: Config) -> None:
    num_rows = config.num_envs * config.num_steps
    if not env.restartable:
        raise ConfigurationError(
            f"trpo_vine restarts the environment from stored states, but {env.name} cannot be "
            "restarted. Choose trpo, or an environment that can be restarted, such as CartPole-v1."
        )
    if config.num_branches < 2:
        raise ConfigurationError(
            f"num_branches = {config.num_branches} compares no actions: the loss of a state is a "
            "weighted mean over its branches, and a mean of one branch is constant. Choose at "
            "least 2."
        )
    if config.num_states > num_rows:
        raise ConfigurationError(
            f"num_states = {config.num_states} is more than the states of the trajectory, num_envs "
            f"* num_steps = {config.num_envs} * {config.num_steps} = {num_rows}. Choose at most "
            f"{num_rows}."
        )
    if config.fisher_subsample > config.num_states:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th state, but there are "
            f"only num_states = {config.num_states}. Choose at most num_states."
        )

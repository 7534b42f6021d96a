"""The hyperparameters of each algorithm, with their defaults, their bounds and their help texts.

`Config` of an algorithm's module is one of these classes. It inherits groups of fields that several
algorithms share, and adds its own fields. The first sentence of a group's docstring is a heading of
`experiments/train.py --help`. That command imports this module, so this module imports no JAX.
"""

from typing import no_type_check  # `make` checks the values, and leaves may be arrays

from trpo_jax.algorithms import fields


@no_type_check
@fields.config
class OnPolicy:
    """Rollouts, advantages, critic, networks and normalisation."""

    num_envs: int = fields.integer(8, "number of environments that run side by side", 1)
    num_steps: int = fields.integer(256, "number of steps of each environment in one update", 1)
    gamma: fields.Real = fields.real(0.99, "discount factor of future rewards", 0.0, 1.0)
    gae_lambda: fields.Real = fields.real(
        0.95,
        "lambda of generalised advantage estimation; larger values rely more on sampled rewards "
        "and less on the critic",
        0.0,
        1.0,
    )
    decay_steps: int = fields.integer(
        0,
        "number of environment steps until max_kl (or policy_lr, or step_size) has fallen linearly "
        "to 0; 0 keeps it constant",
        0,
        10**15,  # as many as `total_steps`
    )
    entropy_coef: fields.Real = fields.real(
        0.0,
        "weight of the policy's mean entropy, which is added to the surrogate; larger values keep "
        "actions more random; 0 adds nothing",
        0.0,
    )
    gae_critic: str = fields.choice(
        "adam",
        "how the critic is fitted: adam runs several epochs of minibatch Adam, trust_region takes "
        "one Gauss-Newton step of bounded size",
        ("adam", "trust_region"),
    )
    critic_lr: fields.Real = fields.real(1e-3, "learning rate of Adam for the critic", 0.0)
    critic_epochs: int = fields.integer(
        10, "number of passes over the batch in one fit of the critic", 1
    )
    critic_minibatches: int = fields.integer(
        16,
        "number of minibatches in one pass of the critic; must divide num_envs * num_steps",
        1,
    )
    critic_max_change: fields.Real = fields.real(
        0.1,
        "largest step of the critic if gae_critic is trust_region: the mean squared change of its "
        "values, divided by twice its mean squared error",
        0.0,
        open_low=True,
    )
    hidden_sizes: tuple[int, ...] = fields.integers(
        (64, 64), "width of each hidden layer of the policy and of the critic", 1
    )
    activation: str = fields.choice(
        "tanh", "activation function of the hidden layers", ("tanh", "relu", "elu", "gelu", "swish")
    )
    log_std_init: fields.Real = fields.real(
        0.0, "initial logarithm of the standard deviation of continuous actions", -10.0, 10.0
    )
    state_dependent_std: bool = fields.flag(
        False,
        "let the policy network compute the standard deviation of continuous actions from the "
        "observation; otherwise it is the same for all observations",
    )
    memory: str = fields.choice(
        "none",
        "recurrent cell that remembers earlier observations; the policy and the critic each have "
        "their own; none is a network without memory",
        ("none", "gru", "lstm"),
    )
    memory_size: int = fields.integer(
        64, "number of units in the memory of the policy and in the memory of the critic", 1
    )
    memory_checkpoint: bool = fields.flag(
        False,
        "save device memory: for derivatives, compute the values inside the memory cell again "
        "instead of storing them",
    )
    critic_observation: str = fields.name(
        "",
        "name of the part of the observation that only the critic sees; it replaces the part that "
        "the environment names",
    )
    normalize_observations: bool = fields.flag(
        True, "standardise observations with their running mean and standard deviation"
    )
    scale_rewards: bool = fields.flag(
        False, "divide rewards by the running standard deviation of their discounted sum"
    )
    normalize_values: bool = fields.flag(
        False, "standardise the critic's targets with their running mean and standard deviation"
    )


@no_type_check
@fields.config
class Team:
    """Team of agents that share one reward."""

    share_parameters: bool = fields.flag(
        False, "let all agents use one policy network, which also sees the number of the agent"
    )
    normalize_values: bool = fields.flag(
        True, "standardise the critic's targets with their running mean and standard deviation"
    )


@no_type_check
@fields.config
class Exploration:
    """Correlation over time of the noise in continuous actions; see `trpo_jax.exploration`."""

    exploration: str = fields.choice(
        "white",
        "noise of continuous actions over time: white is independent at each step, ou is an "
        "Ornstein-Uhlenbeck process, colored has a spectrum of 1 / f^color_beta",
        ("white", "ou", "colored"),
    )
    ou_rho: fields.Real = fields.real(
        0.5,
        "correlation of the Ornstein-Uhlenbeck process between successive steps; 0 is white noise",
        0.0,
        1.0,
        open_high=True,
    )
    color_beta: fields.Real = fields.real(
        0.5, "exponent of colored noise: 0 is white, 1 is pink, 2 is red noise", 0.0, 2.0
    )


@no_type_check
@fields.config
class NaturalGradient:
    """Direction and length of the natural-gradient step."""

    max_kl: fields.Real = fields.real(
        0.01, "radius of the trust region: mean KL(old || new), in nats", 0.0, open_low=True
    )
    max_kl_per_dimension: bool = fields.flag(
        False,
        "let max_kl, kl_penalty and damping refer to the mean KL divergence of an action's "
        "components instead of their sum; the radius is then max_kl times the number of components",
    )
    kl_penalty: fields.Real = fields.real(
        0.0,
        "weight of the KL divergence, which is subtracted from the surrogate inside of the trust "
        "region; a weak gradient then gives a short step; 0 subtracts nothing, so that every step "
        "ends at the edge of the region",
        0.0,
    )
    penalty_memory: fields.Real = fields.real(
        0.0,
        "let kl_penalty grow if the advantages spread less than in recent updates; the memory of "
        "recent updates shrinks by this factor in each update; 0 keeps kl_penalty constant",
        0.0,
        1.0,
        open_high=True,
    )
    damping: fields.Real = fields.real(
        0.1,
        "number added to the diagonal of the Fisher matrix when the direction is computed; larger "
        "values turn the step towards the plain gradient",
        0.0,
    )
    damped_scaling: bool = fields.flag(
        True,
        "compute the length of the step with the damped Fisher matrix; the step then ends a little "
        "before max_kl",
    )
    cg_iters: int = fields.integer(
        10, "number of conjugate-gradient iterations; more give a more exact direction", 1
    )
    solver: str = fields.choice(
        "cg",
        "solver for the direction: cg is conjugate gradient, kronecker preconditions it with a "
        "Kronecker-factored approximation of the Fisher matrix",
        ("cg", "kronecker"),
    )
    fisher_subsample: int = fields.integer(
        1,
        "use every k-th time step for the Fisher matrix, or every k-th sequence if the policy has "
        "a memory; 1 uses all",
        1,
    )
    fisher_precision: str = fields.choice(
        "default",
        "precision of the matrix products in Fisher-vector products: default is the default of "
        "the device (TF32 on recent GPUs); the rest of the step always uses float32",
        ("default", "float32"),
    )


@no_type_check
@fields.config
class TrustRegion(NaturalGradient):
    """Line search along the natural-gradient step."""

    line_search_steps: int = fields.integer(
        10, "largest number of step lengths to try; 1 tries the full step only", 1
    )
    line_search_shrink: fields.Real = fields.real(
        0.8,
        "factor between one step length and the next",
        0.0,
        1.0,
        open_low=True,
        open_high=True,
    )
    kl_peak: fields.Real = fields.real(
        0.0,
        "bound on KL(old || new) at every state of the batch, as a multiple of the radius; 0 "
        "bounds only the mean over the states",
        0.0,
    )


@no_type_check
@fields.config
class Proximal:
    """Epochs of minibatch Adam on the policy's loss."""

    loss: str = fields.choice(
        "clip",
        "loss that keeps the probability ratio near 1: clip is PPO's clipped surrogate, spo is the "
        "quadratic penalty of SPO",
        ("clip", "spo"),
    )
    clip: fields.Real = fields.real(
        0.2,
        "distance of the probability ratio from 1 at which the gain stops growing; larger values "
        "allow larger changes of the policy",
        0.0,
        open_low=True,
    )
    policy_lr: fields.Real = fields.real(3e-4, "learning rate of Adam for the policy", 0.0)
    policy_epochs: int = fields.integer(
        10, "number of passes over the batch in one update of the policy", 1
    )
    policy_minibatches: int = fields.integer(
        32,
        "number of minibatches in one pass of the policy; must divide num_envs * num_steps",
        1,
    )
    max_grad_norm: fields.Real = fields.real(
        0.5,
        "largest norm of the policy's gradient; a longer gradient is scaled down to it",
        0.0,
        open_low=True,
    )


@no_type_check
@fields.config
class Constrained:
    """Limits on costs."""

    cost_limit: fields.Real | tuple[float, ...] = fields.real(
        25.0,
        "largest mean cost of an episode, without discount; one number for each cost, or one for "
        "all costs",
        several=True,
    )
    cost_gamma: fields.Real = fields.real(0.99, "discount factor of future costs", 0.0, 1.0)


@no_type_check
@fields.config
class AdamPrice(Constrained):
    """Multipliers of a Lagrangian."""

    multiplier_lr: fields.Real = fields.real(
        0.035, "learning rate of Adam for the multipliers of the costs", 0.0
    )


@no_type_check
@fields.config
class TRPO(TrustRegion, Exploration, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""


@no_type_check
@fields.config
class NPG(NaturalGradient, Exploration, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    normalized_step: bool = fields.flag(
        True,
        "let the step end where a quadratic model of the KL divergence is max_kl; otherwise the "
        "step is step_size * F^-1 g",
    )
    step_size: fields.Real = fields.real(
        0.1, "multiple of F^-1 g that a step takes without normalized_step", 0.0, open_low=True
    )


@no_type_check
@fields.config
class VPG(Exploration, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    policy_lr: fields.Real = fields.real(1e-2, "learning rate of Adam for the policy", 0.0)


@no_type_check
@fields.config
class PPO(Proximal, Exploration, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""


@no_type_check
@fields.config
class UATRPO(TRPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    c: fields.Real = fields.real(
        1.0,
        "weight of the gradient's uncertainty in the trust region; larger values shorten steps "
        "along uncertain directions; 0 is TRPO",
        0.0,
    )
    alpha: fields.Real = fields.real(
        0.05,
        "1 - alpha is the level of the confidence ellipsoid of the gradient; smaller values make "
        "the ellipsoid larger",
        0.0,
        1.0,
        open_low=True,
        open_high=True,
    )


@no_type_check
@fields.config
class QProp(TrustRegion, Exploration, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    eta: str = fields.choice(
        "conservative",
        "where Q is used as a control variate: conservative uses it where its sign agrees with the "
        "advantage, aggressive also uses it elsewhere with the opposite sign, standard uses it "
        "everywhere as it is",
        ("conservative", "aggressive", "standard"),
    )
    common_scale: bool = fields.flag(
        True,
        "divide both parts of the gradient by the same standard deviation; otherwise only the "
        "sampled part is divided, which is biased",
    )
    replay_size: int = fields.integer(
        100_000, "number of environment steps in the replay buffer; at least one batch", 1
    )
    q_lr: fields.Real = fields.real(1e-3, "learning rate of Adam for Q", 0.0)
    q_tau: fields.Real = fields.real(
        5e-3,
        "share by which the target network moves towards Q after each step of Adam",
        0.0,
        1.0,
    )
    q_minibatch: int = fields.integer(
        64, "number of replayed environment steps in one step of Adam for Q", 1
    )
    q_updates: int = fields.integer(
        0,
        "number of steps of Adam for Q in one update; 0 means one for each environment step of the "
        "update",
        0,
    )


@no_type_check
@fields.config
class TRPOVine(TrustRegion, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    num_states: int = fields.integer(
        64, "number of states of the trajectory from which branches start", 1
    )
    num_branches: int = fields.integer(
        4,
        "number of first actions to try from each state where branches start, at least 2; a "
        "discrete action is tried at most once",
        1,
    )
    branch_steps: int = fields.integer(
        10,
        "largest number of steps of a branch; the paper uses 50 to 100, without a bootstrap",
        1,
    )
    branch_bootstrap: bool = fields.flag(
        True,
        "add the critic's value of the last state to the return of a branch that does not "
        "terminate; the paper does not do this",
    )
    fisher_subsample: int = fields.integer(
        1, "use every k-th of the num_states states for the Fisher matrix; 1 uses all", 1
    )


@no_type_check
@fields.config
class TRPOHeldOut(TRPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    alpha: fields.Real = fields.real(
        0.05,
        "largest p-value with which the line search accepts a step; smaller values accept fewer "
        "steps",
        0.0,
        1.0,
        open_low=True,
        open_high=True,
    )


@no_type_check
@fields.config
class TRPOEnsemble(TRPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    num_critics: int = fields.integer(4, "number of critics in the ensemble", 2)
    uncertainty_exponent: fields.Real = fields.real(
        1.0,
        "exponent of the critics' disagreement in the weight of a state; larger values change the "
        "policy less where critics disagree; 0 weights all states alike",
        0.0,
    )


@no_type_check
@fields.config
class CPO(Constrained, TRPO):
    """Margin below the limit on a cost.

    Real numbers are pytree leaves; integers, names and booleans are static.
    """

    cost_margin_rate: fields.Real = fields.real(
        0.0,
        "rate of a margin below the cost limit: each update adds this share of (cost - limit) to "
        "the margin, which is never negative; 0 means no margin",
        0.0,
    )


@no_type_check
@fields.config
class PCPO(CPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    projection: str = fields.choice(
        "kl",
        "distance that decides which allowed step is nearest: kl is the KL divergence, l2 is the "
        "Euclidean distance of the parameters",
        ("kl", "l2"),
    )


@no_type_check
@fields.config
class TRPOLag(AdamPrice, TRPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""


@no_type_check
@fields.config
class TRPOPID(Constrained, TRPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    pid_p: fields.Real = fields.real(
        0.1, "proportional gain: weight of the smoothed excess of the cost over its limit", 0.0
    )
    pid_i: fields.Real = fields.real(
        0.01, "integral gain: weight of the sum of all excesses; the sum is never negative", 0.0
    )
    pid_d: fields.Real = fields.real(
        0.01,
        "derivative gain: weight of the rise of the smoothed excess since the last update; a fall "
        "counts as 0",
        0.0,
    )
    pid_smoothing: fields.Real = fields.real(
        0.9,
        "weight of the past in the smoothed excess; 0 means no smoothing",
        0.0,
        1.0,
        open_high=True,
    )


@no_type_check
@fields.config
class PPOLag(AdamPrice, PPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""


@no_type_check
@fields.config
class HATRPO(Team, TrustRegion, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""


@no_type_check
@fields.config
class HAPPO(Team, Proximal, OnPolicy):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""


@no_type_check
@fields.config
class MAPPO(HAPPO):
    """Hyperparameters. Real numbers are pytree leaves; integers, names and booleans are static."""

    share_parameters: bool = fields.flag(
        True, "let all agents use one policy network, which also sees the number of the agent"
    )


CONFIGS: dict[str, type] = {
    "trpo": TRPO,
    "npg": NPG,
    "vpg": VPG,
    "ppo": PPO,
    "ua_trpo": UATRPO,
    "qprop": QProp,
    "trpo_vine": TRPOVine,
    "trpo_held_out": TRPOHeldOut,
    "trpo_ensemble": TRPOEnsemble,
    "cpo": CPO,
    "pcpo": PCPO,
    "trpo_lag": TRPOLag,
    "trpo_pid": TRPOPID,
    "ppo_lag": PPOLag,
    "hatrpo": HATRPO,
    "happo": HAPPO,
    "mappo": MAPPO,
}
for _name, _config in CONFIGS.items():  # messages and pickles name a config as users do
    _config.__module__ = f"trpo_jax.algorithms.{_name}"
    _config.__name__ = _config.__qualname__ = "Config"

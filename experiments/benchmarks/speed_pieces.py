"""Measures the pieces of an update, in units of one policy gradient on the same batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Num
from timing import time_in_turns

from trpo_jax.advantages import generalized_advantages
from trpo_jax.critics import Sequences, adam_critic, init_critic
from trpo_jax.envs.specs import ArraySpec, Box, Discrete
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.line_search import backtracking
from trpo_jax.networks import make_critic, make_policy
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import (
    importance_sampled_surrogate,
    surrogate_gradient,
    trust_region_step,
)

CG_ITERS = 10
SUBSAMPLE = 10  # as in the paper of TRPO: Fisher-vector products over a tenth of the states
MAX_KL, DAMPING = 0.01, 0.1
SHRINK, LENGTHS = 0.8, 10
ROWS = 16  # environments of the batch, for advantages and critic
MATRIX = 2_048  # rows of the square matrices that measure the speed of the device

ANEW = "product, linearised anew"
PRODUCT = "product, linearised once"
COUNTED = ("forward", "gradient", ANEW, "product, forward over reverse", "product, reverse twice")


class Net(NamedTuple):
    """Kind of networks to measure, with the spaces of observations and actions."""

    name: str
    observation: ArraySpec
    action: Discrete | Box
    options: dict[str, Any]


class Batch(NamedTuple):
    """Random data, leading axis `[N]`."""

    observations: Num[Array, "N ..."]
    actions: Num[Array, "N ..."]
    advantages: Num[Array, " N"]


def nets() -> tuple[Net, ...]:
    """Returns two nets with the spaces of HalfCheetah, and one with those of MinAtar Breakout."""
    vector = ArraySpec((17,), np.dtype(np.float32))
    pixels = ArraySpec((10, 10, 4), np.dtype(np.float32))
    torques = Box(-np.ones(6, np.float32), np.ones(6, np.float32))
    return (
        Net("64 x 64", vector, torques, {"hidden_sizes": (64, 64)}),
        Net("256 x 256", vector, torques, {"hidden_sizes": (256, 256)}),
        Net("convolutions", pixels, Discrete(3), {"hidden_sizes": (128,), "activation": "relu"}),
    )


def measure(net: Net, batch_size: int, repeats: int) -> list[dict[str, Any]]:
    """Returns one row for each piece, with its seconds, its cost in gradients, and its FLOP/s.

    The cost in gradients is the median over turns. FLOP/s use the number of operations that the
    compiler counts. They are None if a loop hides the operations from the compiler.
    """
    functions, arguments = prepare(net, batch_size)
    lowered = [jax.jit(function).lower(*arguments) for function in functions.values()]
    with ThreadPoolExecutor() as threads:
        programs = threads.map(lambda program: program.compile(), lowered)
        compiled = dict(zip(functions, programs, strict=True))
    seconds = time_in_turns({name: partial(f, *arguments) for name, f in compiled.items()}, repeats)
    flops = {name: compiled[name].cost_analysis()["flops"] for name in COUNTED}
    seconds[PRODUCT] = seconds["conjugate gradient, 10 iterations"] / CG_ITERS
    flops[PRODUCT] = flops[ANEW] - flops["forward"]
    return [
        {
            "net": net.name,
            "batch": batch_size,
            "piece": piece,
            "seconds": float(np.median(x)),
            "gradients": float(np.median(x / seconds["gradient"])),
            "flops_per_second": flops[piece] / float(np.median(x)) if piece in flops else None,
        }
        for piece, x in seconds.items()
    ]


def prepare(
    net: Net, batch_size: int, cg_iters: int = CG_ITERS
) -> tuple[dict[str, Callable[..., Any]], tuple[Any, ...]]:
    """Returns the pieces as functions, and their arguments, which are the same for all pieces."""
    policy = make_policy(net.observation, net.action, **net.options)
    critic = make_critic(net.observation, **net.options)
    keys = jax.random.split(jax.random.key(0), 5)
    params = policy.init(keys[0])
    observations = jax.random.normal(keys[1], (batch_size, *net.observation.shape))
    actions = policy.apply(params, observations).sample(keys[2])
    batch = Batch(observations, actions, jax.random.normal(keys[3], (batch_size,)))
    arguments = params, init_critic(critic.init(keys[4])), batch

    def distribution(batch, params):
        return policy.apply(params, batch.observations)

    def surrogate(batch):
        return importance_sampled_surrogate(batch.actions, batch.advantages)

    def divergence(params, batch):
        old = distribution(batch, params)
        return lambda p: jnp.mean(old.kl(distribution(batch, p)))

    def gradient(params, _, batch):
        return surrogate_gradient(params, partial(distribution, batch), surrogate(batch))

    def metric(params, batch):
        return fisher_vector_product(partial(distribution, batch), params)

    def forward_over_reverse(params, _, batch):
        return jax.jvp(jax.grad(divergence(params, batch)), (params,), (params,))[1]

    def reverse_twice(params, _, batch):
        slope = jax.grad(divergence(params, batch))
        return jax.grad(lambda p: optax.tree.vdot(slope(p), params))(params)

    def solver(every, params, batch):
        product = metric(params, thinned(batch, every))
        return damped_solver(product, damping=DAMPING, num_iterations=cg_iters)

    def solve(every, params, _, batch):
        return solver(every, params, batch)(params)

    def search(max_kl, params, _, batch):
        old = distribution(batch, params)

        def evaluate(candidate):
            new = distribution(batch, candidate)
            return surrogate(batch)(new, old) + 1e3, jnp.mean(
                old.kl(new)
            )  # so the gain is always large enough

        step = optax.tree.scale(1e-3, params)
        return backtracking(evaluate, params, step, max_kl, SHRINK, LENGTHS)

    def step(every, params, _, batch):
        return trust_region_step(
            params,
            partial(distribution, batch),
            surrogate(batch),
            solver(every, params, batch),
            max_kl=MAX_KL,
            damping=DAMPING,
            line_search_steps=LENGTHS,
            line_search_shrink=SHRINK,
        )

    def by_time(x):
        return x.reshape(-1, ROWS, *x.shape[1:])

    def fit(_, critic_state, batch):
        observations, targets = map(by_time, (batch.observations, batch.advantages))
        return adam_critic(critic, learning_rate=1e-3, epochs=1, minibatches=16).fit(
            jax.random.key(0),
            critic_state,
            Sequences((), observations, jnp.zeros(targets.shape, bool)),
            targets,
        )

    def advantages(_, __, batch):
        rewards = by_time(batch.advantages)
        ended = jnp.abs(rewards) > 3
        return generalized_advantages(rewards, rewards, rewards, ended, ended, 0.99, 0.95)

    return {
        "forward": lambda params, _, batch: distribution(batch, params),
        "gradient": gradient,
        ANEW: lambda params, _, batch: metric(params, batch)(params),
        "product, forward over reverse": forward_over_reverse,
        "product, reverse twice": reverse_twice,
        "conjugate gradient, 10 iterations": partial(solve, 1),
        "the same over a tenth of the states": partial(solve, SUBSAMPLE),
        "line search, one length": partial(search, jnp.inf),
        "line search, ten lengths": partial(search, -1.0),
        "policy step": partial(step, 1),
        "the same with a tenth in the metric": partial(step, SUBSAMPLE),
        "critic, one pass of 16 minibatches": fit,
        "advantages": advantages,
    }, arguments


def thinned(batch: Batch, every: int) -> Batch:
    """Returns every `every`-th row of a batch."""
    return jax.tree.map(lambda x: x[::every], batch)


def matmul_flops_per_second(repeats: int, dtype: Any, precision: str) -> float:
    """Returns the FLOP/s of a large matrix product, which is the best that the device can do."""
    matrix = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX)).astype(dtype)
    multiply = jax.jit(partial(jnp.dot, precision=precision))
    seconds = time_in_turns({"product": lambda: multiply(matrix, matrix)}, repeats)["product"]
    return 2 * MATRIX**3 / float(np.median(seconds))

"""Exploration: how actions are drawn from a policy over time.

A trust region bounds how far the policy moves in an update, never the actions: those are drawn from
the policy as it is. What can be chosen is how the noise of one step is related to that of the next.

- `white`: each action on its own, as in every textbook.
- `ou`: an Ornstein-Uhlenbeck process runs beside the policy, x' = rho x + sqrt(1 - rho^2) xi, which
  is its exact solution from one step to the next. An action is drawn as if its standardised noise
  were the next x, by a draw of its own: from N(mean + rho std x, (1 - rho^2) std^2). Nothing that
  the policy does changes x, so x is part of the state, and that Gaussian has an exact
  log-probability, KL divergence, Fisher metric and policy gradient. (Were the action's own noise
  the next x, this would be (action - mean) / std, which changes with the policy: the gradient at
  fixed x is then another one.) The same `max_kl` allows a mean step shorter by sqrt(1 - rho^2).
- `colored`: noise with a power spectrum of 1 / f^beta (Hollenstein, Martius and Piater 2024,
  "Colored noise in PPO"). Each action alone has the policy's own distribution, which is what
  log-probabilities, KL divergences and the Fisher metric are computed from. That is an
  approximation: given the past, which the state carries, the noise is not standard normal.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from trpo_jax.distributions import DiagGaussian, Distribution
from trpo_jax.envs.episodes import Episode

COLORED_HORIZON = 1000  # steps after which coloured noise is drawn anew, rounded up to rollouts


class Exploration(NamedTuple):
    """A way to draw actions over time, for B environments at once.

    Attributes:
        init: `num_envs -> memory`, carried from step to step and rollout to rollout.
        begin: `(key, memory) -> memory`, at the start of each rollout.
        act: `(key, distribution [B], memory, episodes [B]) -> (actions [B, ...], context, memory)`;
            `context` is what the action depended on besides the observation.
        condition: `(distribution, context) -> distribution` that the actions were drawn from, for
            any batch axes.
    """

    init: Callable[[int], Any]
    begin: Callable[[PRNGKeyArray, Any], Any]
    act: Callable[[PRNGKeyArray, Distribution, Any, Episode], tuple[Num[Array, "B ..."], Any, Any]]
    condition: Callable[[Distribution, Any], Distribution]


def white() -> Exploration:
    """Returns independent draws from the policy."""
    return Exploration(
        init=lambda num_envs: (),
        begin=lambda key, memory: memory,
        act=lambda key, distribution, memory, episodes: (distribution.sample(key), (), memory),
        condition=lambda distribution, context: distribution,
    )


def ou(size: int, rho: Float[Array, ""] | float) -> Exploration:
    """Returns draws whose standardised noise follows an Ornstein-Uhlenbeck process.

    The process starts each episode from its stationary law, so every action alone has the policy's
    own distribution. The noises of two actions k steps apart have the correlation rho^(k + 2). With
    rho = 0 the draws are those of `white`, bit for bit.

    Args:
        size: dimensions of the action.
        rho: correlation of the process from one step to the next, in [0, 1): exp(-theta dt) for
            dx = -theta x dt + sqrt(2 theta) dW.
    """
    if isinstance(rho, float | int) and rho == 0:
        return white()  # adding zero is not free of rounding once compiled

    def next_value(process: DiagGaussian, value: Float[Array, "..."]) -> DiagGaussian:
        return DiagGaussian(
            process.mean + rho * jnp.exp(process.log_std) * value,
            process.log_std + 0.5 * jnp.log1p(-jnp.square(rho)),
        )

    def act(key, distribution, value, episodes):
        start_key, next_key = jax.random.split(jax.random.fold_in(key, 0))
        standard = DiagGaussian(jnp.zeros_like(value), jnp.zeros_like(value))
        value = jnp.where((episodes.length == 0)[:, None], standard.sample(start_key), value)
        actions = next_value(distribution, value).sample(key)
        return actions, value, next_value(standard, value).sample(next_key)

    return Exploration(
        init=lambda num_envs: jnp.zeros((num_envs, size), jnp.float32),
        begin=lambda key, value: value,
        act=act,
        condition=next_value,
    )


class _ColoredMemory(NamedTuple):
    noise: Float[Array, "L B D"]
    position: Array


def colored(size: int, beta: Float[Array, ""] | float, num_steps: int) -> Exploration:
    """Returns draws whose standardised noise has a spectrum of 1 / f^beta.

    A sequence of about `COLORED_HORIZON` steps serves several rollouts, whatever episodes end in
    them.

    Args:
        size: dimensions of the action.
        beta: exponent; 0 is white, 1 pink, 2 red.
        num_steps: steps of one rollout.
    """
    length = num_steps * math.ceil(COLORED_HORIZON / num_steps)

    def init(num_envs):
        noise = jnp.zeros((length, num_envs, size), jnp.float32)
        return _ColoredMemory(noise, jnp.full((), length, jnp.int32))

    def begin(key, memory):
        fresh = colored_noise(key, beta, memory.noise.shape)
        used_up = memory.position >= length
        return _ColoredMemory(
            jnp.where(used_up, fresh, memory.noise), jnp.where(used_up, 0, memory.position)
        )

    def act(key, distribution, memory, episodes):
        noise = memory.noise[memory.position]
        actions = distribution.mean + jnp.exp(distribution.log_std) * noise
        return actions, (), memory._replace(position=memory.position + 1)

    return Exploration(init, begin, act, lambda distribution, context: distribution)


def colored_noise(
    key: PRNGKeyArray, beta: Float[Array, ""] | float, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Returns Gaussian noise with a spectrum of 1 / f^beta along the first axis, of unit variance.

    Drawn in the frequency domain (Timmer and Koenig 1995, "On generating power law noise"); the
    lowest frequency, which a sequence cannot resolve, gets the power of the one above it.
    """
    length = shape[0]
    frequencies = jnp.maximum(jnp.fft.rfftfreq(length), 1.0 / length)
    amplitudes = frequencies ** (-0.5 * beta)
    # Each inner frequency counts twice, itself and its conjugate; the ends are real.
    ends = jnp.zeros(len(amplitudes), bool).at[0].set(True).at[-1].set(length % 2 == 0)
    power = jnp.sum(jnp.where(ends, 1.0, 2.0) * amplitudes**2) / length**2
    real, imaginary = jax.random.normal(key, (2, len(amplitudes), *shape[1:]))
    column = (len(amplitudes),) + (1,) * (len(shape) - 1)
    ends = ends.reshape(column)
    spectrum = jnp.where(ends, real, jnp.sqrt(0.5) * (real + 1j * imaginary))
    signal = jnp.fft.irfft(amplitudes.reshape(column) * spectrum, n=length, axis=0)
    return signal / jnp.sqrt(power)

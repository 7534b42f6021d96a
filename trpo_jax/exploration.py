"""Exploration: how actions are drawn from a policy over time.

A trust region bounds how far the policy moves in an update, never the actions: those are drawn from
the policy as it is. An exploration chooses how the noise of one step is related to that of the
next.

- `white`: the noise of each action is independent, as in every textbook.
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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from trpo_jax.distributions import DiagGaussian, Distribution
from trpo_jax.envs.episodes import Episode

MEMORY = 1000  # steps that coloured noise looks back: the period of its lowest frequency


class Exploration(NamedTuple):
    """A way to draw actions over time, for B environments at once.

    Every array of a noise state has the leading axis `[B]`.

    Attributes:
        init: `(key, num_envs) -> noise_state`, carried from step to step and rollout to rollout.
        prepare: `(key, noise_state) -> noise_state`, before each rollout.
        act: `(key, distribution [B], noise_state, episodes [B]) -> (actions [B, ...], noise,
            noise_state)`; `noise` is what the action depended on besides the observation.
        condition: `(distribution, noise) -> distribution` that the actions were drawn from, for
            any batch axes.
    """

    init: Callable[[PRNGKeyArray, int], Any]
    prepare: Callable[[PRNGKeyArray, Any], Any]
    act: Callable[[PRNGKeyArray, Distribution, Any, Episode], tuple[Num[Array, "B ..."], Any, Any]]
    condition: Callable[[Distribution, Any], Distribution]


def white() -> Exploration:
    """Returns independent draws from the policy."""
    return Exploration(
        init=lambda key, num_envs: (),
        prepare=lambda key, noise_state: noise_state,
        act=lambda key, distribution, noise_state, episodes: (
            distribution.sample(key),
            (),
            noise_state,
        ),
        condition=lambda distribution, noise: distribution,
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
        action_key, start_key, next_key = jax.random.split(key, 3)
        standard = DiagGaussian(jnp.zeros_like(value), jnp.zeros_like(value))
        value = jnp.where(episodes.first[:, None], standard.sample(start_key), value)
        actions = next_value(distribution, value).sample(action_key)
        return actions, value, next_value(standard, value).sample(next_key)

    return Exploration(
        init=lambda key, num_envs: jnp.zeros((num_envs, size), jnp.float32),  # not acted by
        prepare=lambda key, value: value,
        act=act,
        condition=next_value,
    )


class ColoredState(NamedTuple):
    """What coloured noise carries.

    Attributes:
        past: the latest white noise, which the next coloured noise is made from.
        noise: coloured noise of the next rollout.
        position: the step of the rollout that comes next.
    """

    past: Float[Array, "B L D"]
    noise: Float[Array, "B T D"]
    position: Int[Array, " B"]


def colored(size: int, beta: Float[Array, ""] | float, num_steps: int) -> Exploration:
    """Returns draws whose standardised noise has a spectrum of 1 / f^beta.

    The noise is one stationary process for each environment and component, which goes on over
    rollouts and over the ends of episodes.

    Args:
        size: dimensions of the action.
        beta: exponent; 0 is white, 1 pink, 2 red.
        num_steps: T, steps of one rollout.
    """

    def init(key, num_envs):
        past = jax.random.normal(key, (num_envs, MEMORY - 1, size), jnp.float32)
        noise = jnp.zeros((num_envs, num_steps, size), jnp.float32)
        return ColoredState(past, noise, jnp.zeros(num_envs, jnp.int32))

    def prepare(key, state):
        fresh = jax.random.normal(key, state.noise.shape, jnp.float32)
        white = jnp.concatenate([state.past, fresh], axis=1)
        position = jnp.zeros_like(state.position)
        return ColoredState(white[:, num_steps:], color(white, beta), position)

    def act(key, distribution, state, episodes):
        noise = jax.vmap(lambda noise, t: noise[t])(state.noise, state.position)
        actions = distribution.mean + jnp.exp(distribution.log_std) * noise
        return actions, (), state._replace(position=state.position + 1)

    return Exploration(init, prepare, act, lambda distribution, noise: distribution)


def color(white: Float[Array, "*B N D"], beta: Float[Array, ""] | float) -> Float[Array, "*B T D"]:
    """Returns noise with a spectrum of 1 / f^beta and unit variance, from white noise.

    A moving average over L = `MEMORY` steps of white noise gives T = N - L + 1 steps. Its weights
    are the inverse Fourier transform of f^(-beta/2) (Timmer and Koenig 1995, "On generating power
    law noise"), so that the spectrum is exact at the frequencies 1/L, 2/L, ...; a mean over L steps
    cannot be resolved, and gets the power of the lowest frequency.
    """
    frequencies = jnp.maximum(jnp.fft.rfftfreq(MEMORY), 1.0 / MEMORY)
    weights = jnp.fft.fftshift(jnp.fft.irfft(frequencies ** (-0.5 * beta), n=MEMORY))
    weights = weights / jnp.linalg.norm(weights)
    length = white.shape[-2]
    product = jnp.fft.rfft(white, axis=-2) * jnp.fft.rfft(weights, n=length)[:, None]
    # The circular convolution is right from the first step that has L steps behind it.
    return jnp.fft.irfft(product, n=length, axis=-2)[..., MEMORY - 1 :, :].astype(white.dtype)

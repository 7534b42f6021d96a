"""Exploration: how actions are drawn from a policy over time.

A trust region bounds how far the policy moves in an update. It does not bound the actions, which
are drawn from the policy as it is. An exploration decides how the noise of one step depends on the
noise of the steps before.

- `white`: the noise of each action is independent. This is the usual choice.
- `ou`: the noise follows an Ornstein-Uhlenbeck process x' = rho x + sqrt(1 - rho^2) xi, which is
  the exact solution from one step to the next. The action is drawn from
  N(mean + rho std x, (1 - rho^2) std^2), with a separate random number. The policy has no
  influence on the process, so x is part of the state. The Gaussian given x has an exact
  log-probability, KL divergence, Fisher metric and policy gradient. (The noise of the action must
  not be the next x. That noise is (action - mean) / std, which depends on the policy, so the
  gradient at fixed x would be wrong.) The same `max_kl` allows a step of the mean that is shorter
  by sqrt(1 - rho^2).
- `colored`: noise with a power spectrum of 1 / f^beta (Hollenstein, Martius and Piater 2024,
  "Colored noise in PPO"). Each single action has the distribution of the policy. The
  log-probability, the KL divergence and the Fisher metric are computed from this distribution. This
  is an approximation, because the state contains information about the past noise, and given the
  past noise the noise is not standard normal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from trpo_jax.distributions import DiagGaussian, Distribution
from trpo_jax.envs.episodes import Episode

MEMORY = 1000  # each step of coloured noise is an average over so many steps of white noise


class Exploration(NamedTuple):
    """A way to draw actions over time, for B environments at once.

    Every array of a noise state has the leading axis `[B]`.

    Attributes:
        init: `(key, num_envs) -> noise_state`. The noise state is carried from step to step and
            from rollout to rollout.
        prepare: `(key, noise_state) -> noise_state`, called before each rollout.
        act: `(key, distribution [B], noise_state, episodes [B]) -> (actions [B, ...], noise,
            noise_state)`. The action depends on `noise` as well as on the observation.
        condition: `(distribution, noise) -> distribution` from which the actions were drawn, for
            any batch axes.
    """

    init: Callable[[PRNGKeyArray, int], Any]
    prepare: Callable[[PRNGKeyArray, Any], Any]
    act: Callable[[PRNGKeyArray, Distribution, Any, Episode], tuple[Num[Array, "B ..."], Any, Any]]
    condition: Callable[[Distribution, Any], Distribution]


def white() -> Exploration:
    """Returns an exploration with independent draws from the policy.

    Examples:
        >>> explore, policy = white(), trpo_jax.DiagGaussian(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
        >>> noise_state = explore.init(jax.random.key(0), num_envs=4)
        >>> actions, noise, noise_state = explore.act(jax.random.key(1), policy, noise_state, None)
        >>> actions.shape, noise
        ((4, 2), ())
    """
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
    """Returns an exploration whose standardised noise follows an Ornstein-Uhlenbeck process.

    The process starts each episode from its stationary distribution. So each single action has the
    distribution of the policy. The noises of two actions k steps apart have the correlation
    rho^(k + 2). With rho = 0 the actions are exactly those of `white`.

    Args:
        size: number of dimensions of the action.
        rho: correlation of the process between two steps, in [0, 1). It is exp(-theta dt) for
            dx = -theta x dt + sqrt(2 theta) dW.

    Examples:
        >>> explore = ou(size=1, rho=0.5)
        >>> policy = trpo_jax.DiagGaussian(jnp.zeros((4, 1)), jnp.zeros((4, 1)))
        >>> given = explore.condition(policy, jnp.ones((4, 1)))  # the process is at x = 1
        >>> print(given.mean[0], jnp.array_str(jnp.exp(given.log_std[0]), precision=3))
        [0.5] [0.866]
    """
    if isinstance(rho, float | int) and rho == 0:
        return white()  # the compiled program below would differ from `white` by rounding

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
        init=lambda key, num_envs: jnp.zeros((num_envs, size), jnp.float32),  # never used
        prepare=lambda key, value: value,
        act=act,
        condition=next_value,
    )


class ColoredState(NamedTuple):
    """The noise state of `colored`.

    Attributes:
        past: the latest white noise, from which the next coloured noise is made.
        noise: the coloured noise of the next rollout.
        position: the index of the next step in the rollout.
    """

    past: Float[Array, "B L D"]
    noise: Float[Array, "B T D"]
    position: Int[Array, " B"]


def colored(size: int, beta: Float[Array, ""] | float, num_steps: int) -> Exploration:
    """Returns an exploration whose standardised noise has a spectrum of 1 / f^beta.

    The noise of each environment and component is one stationary process. It continues over
    rollouts and over the ends of episodes.

    Args:
        size: number of dimensions of the action.
        beta: exponent; 0 is white noise, 1 pink noise, 2 red noise.
        num_steps: T, the steps of one rollout.

    Examples:
        >>> explore = colored(size=2, beta=0.5, num_steps=16)
        >>> noise_state = explore.init(jax.random.key(0), num_envs=4)
        >>> noise_state = explore.prepare(jax.random.key(1), noise_state)  # before each rollout
        >>> noise_state.noise.shape
        (4, 16, 2)
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
    """Returns noise with a spectrum of 1 / f^beta and unit variance, made from white noise.

    It is a moving average over L = `MEMORY` steps of the white noise, so N steps of white noise
    give T = N - L + 1 steps. The weights of the average are the inverse Fourier transform of
    f^(-beta/2) (Timmer and Koenig 1995, "On generating power law noise"). So the spectrum is exact
    at the frequencies 1/L, 2/L, ... The frequency 0 gets the power of 1/L, because L steps cannot
    resolve lower frequencies.

    Args:
        white: independent standard normal numbers.
        beta: exponent of the spectrum.

    Examples:
        >>> white_noise = jax.random.normal(jax.random.key(0), (MEMORY + 499, 3))
        >>> color(white_noise, beta=1.0).shape
        (500, 3)
    """
    frequencies = jnp.maximum(jnp.fft.rfftfreq(MEMORY), 1.0 / MEMORY)
    weights = jnp.fft.fftshift(jnp.fft.irfft(frequencies ** (-0.5 * beta), n=MEMORY))
    weights = weights / jnp.linalg.norm(weights)
    length = white.shape[-2]
    product = jnp.fft.rfft(white, axis=-2) * jnp.fft.rfft(weights, n=length)[:, None]
    # The circular convolution is right only at steps with L - 1 steps before them.
    return jnp.fft.irfft(product, n=length, axis=-2)[..., MEMORY - 1 :, :].astype(white.dtype)

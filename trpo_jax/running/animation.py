"""A policy at work: the frames of one episode, and a GIF of them."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Num
from PIL import Image

from trpo_jax.envs.base import Environment, StepResult
from trpo_jax.errors import ConfigurationError
from trpo_jax.host_rollout import failures_named
from trpo_jax.records.files import write_whole

COLORS = 64  # of a GIF: half the size of all 256, and hardly to be told from them
MAX_FPS = 50  # frames that follow closer are shown at a tenth of a second by browsers


def play(
    env: Environment,
    act: Callable[[Num[Array, "..."]], Num[Array, "..."]],
    seed: int,
    num_steps: int,
    every: int = 1,
) -> tuple[list[np.ndarray], float]:
    """Returns frames of an episode, and the rewards of its steps together.

    Args:
        env: the environment.
        act: `observation -> action`, as the environment shows and takes them.
        seed: decides the episode.
        num_steps: steps of it at the most.
        every: steps from one frame to the next.

    Returns:
        Frames `[H, W, 3]` of bytes, the first from before the first step, and the return.

    Raises:
        ConfigurationError: if the environment cannot be drawn.
        EnvironmentFailure: if it runs on the host and fails, or cannot draw itself.
    """
    if env.open is None and env.render is None:
        raise ConfigurationError(
            f"Environment {env.name!r} has nothing to draw itself with. Those of gymnax, Brax, "
            "Playground, Gymnasium and EnvPool have."
        )
    episode = _on_device if env.open is None else _on_host
    views, rewards = [], []
    for index, (view, reward) in enumerate(episode(env, act, seed, num_steps)):
        rewards.append(reward)
        if index % every == 0:
            views.append(view())
    with failures_named(env):
        frames = views if env.render is None else env.render(views)
    return [np.asarray(frame) for frame in frames], float(np.sum(rewards))


def _on_device(env, act, seed, num_steps) -> Iterator[tuple[Callable[[], Any], float]]:
    reset_key, run_key = jax.random.split(jax.random.key(seed))
    step = jax.jit(env.step)
    state, observation = jax.jit(env.reset)(reset_key)
    yield lambda: state, 0.0
    for t in range(min(num_steps, env.time_limit or num_steps)):
        state, result = step(jax.random.fold_in(run_key, t), state, act(observation))
        yield lambda state=state: state, float(result.reward)
        if result.terminated or result.truncated:
            break
        observation = result.observation


def _on_host(env, act, seed, num_steps) -> Iterator[tuple[Callable[[], np.ndarray], float]]:
    with failures_named(env), closing(env.open(seed, 1, render=True)) as pool:
        draw = lambda: pool.render()[0]
        observations = pool.reset(np.ones(1, bool))
        yield draw, 0.0
        for _ in range(num_steps):
            result: StepResult = pool.step(np.asarray(act(observations)))
            yield draw, float(result.reward[0])
            if result.terminated[0] or result.truncated[0]:
                break
            observations = result.observation


def write_gif(path: Path, frames: Sequence[np.ndarray], *, width: int, fps: float | int) -> None:
    """Writes an animation that repeats for ever; a frame that repeats the one before costs nothing.

    Args:
        path: the file.
        frames: `[H, W, 3]` of bytes.
        width: in pixels; frames are scaled to it.
        fps: frames per second, at most `MAX_FPS`.

    Raises:
        StorageFailure: if it cannot be written.
    """
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    images = [Image.fromarray(frame).resize((width, height)) for frame in frames]
    # One palette for all, of as many frames as show whatever comes up: colours do not flicker.
    sample = np.concatenate([np.asarray(image) for image in images[:: len(images) // 8 + 1]])
    palette = Image.fromarray(sample).quantize(COLORS)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    first, *rest = images
    content = io.BytesIO()
    first.save(content, "gif", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
    write_whole(path, content.getvalue())

"""Plays one episode with a policy, draws its frames, and writes them as a GIF or an MP4."""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trpo_jax.envs.base import Environment, StepResult
from trpo_jax.envs.observations import centre
from trpo_jax.errors import ConfigurationError
from trpo_jax.host_rollout import failures_named
from trpo_jax.installing import how_to_install
from trpo_jax.records.acting import ActingPolicy
from trpo_jax.records.files import write_whole
from trpo_jax.running.memory import require_room

COLORS = 64  # a GIF with 64 colours has half the size of one with 256, and looks almost the same
MAX_FPS = 50  # browsers play a GIF with more frames per second at only ten frames per second
MAX_SIDE = {".gif": 65_535, ".mp4": 16_384}  # the largest width or height of each format
CAPTION = 16  # height of the caption below the picture, in pixels
PIXEL_BYTES = 8  # memory for a pixel of a picture and of its copies


class Film(NamedTuple):
    """The pictures and the sums of an episode.

    Attributes:
        images: pictures with captions, one every few steps. The first one shows the state before
            the first step.
        num_steps: number of steps of the episode.
        total_reward: the sum of the rewards of these steps.
        total_costs: the sums of the costs of these steps, `[K]`.
        cut: whether the episode was stopped before its end.
    """

    images: list[Image.Image]
    num_steps: int
    total_reward: float
    total_costs: np.ndarray
    cut: bool


def play(
    env: Environment,
    act: ActingPolicy,
    seed: int,
    num_steps: int,
    every: int = 1,
    width: int = 320,
) -> Film:
    """Plays an episode and draws it. The captions count the steps and mark an episode that is cut.

    Args:
        env: the environment.
        act: the policy that plays.
        seed: decides the episode.
        num_steps: maximum number of steps.
        every: number of steps from one frame to the next. The last step always has a frame.
        width: width of the pictures in pixels.

    Raises:
        ConfigurationError: if the environment cannot be drawn, or the pictures need more memory
            than there is.
        EnvironmentFailure: if an environment on the host fails, or cannot draw itself.
    """
    if env.open is None and env.render is None:
        raise ConfigurationError(
            f"Environment {env.name!r} cannot draw itself. Environments of gymnax, Brax, "
            "Playground, Gymnasium, EnvPool and PettingZoo can, and MPE and SMAX of JaxMARL."
        )
    draw_later = env.render is not None  # `env.render` draws all frames at once
    views: list[Any] = []
    images: list[Image.Image] = []
    total_reward, total_costs, done = 0.0, np.zeros(len(env.costs)), False

    def draw(frame: Any, step: int, last: bool) -> None:
        frame = np.asarray(frame)
        height = max(1, round(frame.shape[0] * width / frame.shape[1]))
        require_room(
            f"Picture {len(images) + 1} of {width:,} x {height:,} pixels",
            width * (height + CAPTION) * PIXEL_BYTES,
            jax.local_devices(backend="cpu")[0],
            [f"--width ({width:,})", f"--steps ({num_steps:,})"],
        )
        text = f"step {step:,}" + (", cut" if last and not done else "")
        images.append(captioned(frame, width, height, text))

    episode = _on_device if env.open is None else _on_host
    for step, (view, reward, costs, done) in enumerate(episode(env, act, seed, num_steps)):
        total_reward += reward
        total_costs += costs
        last = done or step == num_steps
        if step % every == 0 or last:
            if draw_later:
                views.append((view(), step, last))
            else:
                draw(view(), step, last)
    if draw_later:
        with failures_named(env):
            frames = env.render([view for view, _, _ in views])
        for frame, (_, *place) in zip(frames, views, strict=True):
            draw(frame, *place)
    return Film(images, step, total_reward, total_costs, not done)


def _on_device(env, act, seed, num_steps) -> Iterator[tuple[Callable[[], Any], float, Any, bool]]:
    reset_key, run_key = jax.random.split(jax.random.key(seed))
    step = jax.jit(env.step)
    state, observation = jax.jit(env.reset)(reset_key)
    carry = act.carry(1)
    yield lambda: state, 0.0, 0.0, False
    for t in range(num_steps):
        carry, actions = act.step(carry, jax.tree.map(lambda x: x[None], observation))
        action = jax.tree.map(lambda x: x[0], actions)
        state, result = step(jax.random.fold_in(run_key, t), state, action)
        done = bool(result.terminated | result.truncated) or t + 1 == env.time_limit
        costs = np.asarray(result.costs)
        yield lambda state=state: state, float(result.reward), costs, done
        if done:
            break
        observation = result.observation


def _on_host(env, act, seed, num_steps) -> Iterator[tuple[Callable[[], Any], float, Any, bool]]:
    with failures_named(env), closing(env.open(seed, 1, render=True)) as pool:
        draw = lambda: pool.render()[0]
        observations, carry = pool.reset(np.ones(1, bool)), act.carry(1)
        yield draw, 0.0, 0.0, False
        for t in range(num_steps):
            carry, actions = act.step(carry, centre(env.observation, observations))
            result: StepResult = pool.step(jax.tree.map(np.asarray, actions))
            done = bool(result.terminated[0] | result.truncated[0]) or t + 1 == env.time_limit
            costs = np.asarray(result.costs[0] if env.costs else ())
            yield draw, float(result.reward[0]), costs, done
            if done:
                break
            observations = result.observation


def captioned(frame: np.ndarray, width: int, height: int, text: str) -> Image.Image:
    """Returns a frame `[H, W, 3]` that is scaled to a size, with a line of text below it."""
    image = Image.new("RGB", (width, height + CAPTION))
    image.paste(Image.fromarray(frame).resize((width, height)))
    font = ImageFont.load_default(CAPTION - 4)
    ImageDraw.Draw(image).text((4, height), text, "white", font)
    return image


def write_animation(path: Path, images: Sequence[Image.Image], fps: float | int) -> None:
    """Writes pictures as a GIF or as an MP4. The suffix of the file decides.

    Args:
        path: the file.
        images: the pictures, all of the same size.
        fps: frames per second; at most `MAX_FPS` in a GIF.

    Raises:
        StorageFailure: if the file cannot be written.
    """
    write_whole(path, _mp4(images, fps) if path.suffix == ".mp4" else _gif(images, fps))


def _gif(images: Sequence[Image.Image], fps: float | int) -> bytes:
    """Returns a GIF that plays in an endless loop. Unchanged parts of a frame take no space."""
    # All frames share one palette, made from several of them, so that colours do not flicker.
    sample = np.concatenate([np.asarray(image) for image in images[:: len(images) // 8 + 1]])
    palette = Image.fromarray(sample).quantize(COLORS)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    first, *rest = images
    content = io.BytesIO()
    first.save(content, "gif", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
    return content.getvalue()


def require_video() -> None:
    """Raises a ConfigurationError with the extra to install if the package for MP4 is missing."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "An .mp4 needs the package imageio-ffmpeg. A .gif needs no further package. Install "
            f"imageio-ffmpeg with: {how_to_install('video')}"
        ) from error


def _mp4(images: Sequence[Image.Image], fps: float | int) -> bytes:
    import imageio_ffmpeg

    size = [side // 2 * 2 for side in images[0].size]  # the format needs even sizes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "episode.mp4")
        writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=1)
        writer.send(None)
        for image in images:
            writer.send(np.ascontiguousarray(np.asarray(image)[: size[1], : size[0]]))
        writer.close()
        return path.read_bytes()

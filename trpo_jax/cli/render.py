"""Plays one episode with a policy of a run, and writes it as a GIF or an MP4."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile

# Rendering needs no screen and no loudspeaker. Settings of the user take precedence.
HEADLESS = {"SDL_VIDEODRIVER": "offscreen", "SDL_AUDIODRIVER": "dummy"}
if sys.platform == "linux":
    HEADLESS["MUJOCO_GL"] = "egl"
for variable, value in HEADLESS.items():
    os.environ.setdefault(variable, value)

from rich.console import Console

from trpo_jax.cli.command_line import cache_compilations, user_errors
from trpo_jax.cli.environments import make_stored
from trpo_jax.cli.render_flags import parse
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, StorageFailure
from trpo_jax.records.files import make_parents
from trpo_jax.records.limits import stored_limits
from trpo_jax.records.policies import load_policy
from trpo_jax.records.policy_files import with_origin
from trpo_jax.records.runs import read_description
from trpo_jax.running.animation import MAX_FPS, MAX_SIDE, play, require_video, write_animation
from trpo_jax.running.settings import MOST, require_at_least, require_at_most


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors(EnvironmentFailure, StorageFailure):
        args = parse(sys.argv[1:] if argv is None else argv)
        for name in ("steps", "every", "fps", "width"):
            if getattr(args, name) <= 0:
                raise ConfigurationError(f"--{name} {getattr(args, name)} must be more than 0.")
        require_at_least(episode=(args.episode, 0))
        require_at_most(episode=(args.episode, MOST))
        checkpoint = f"-{args.checkpoint}" if args.checkpoint else ""
        out = args.out or args.folder / f"episode{checkpoint}.gif"
        if out.suffix not in MAX_SIDE:
            raise ConfigurationError(f"--out {out} must be a .gif or an .mp4.")
        if out.suffix == ".gif" and args.fps > MAX_FPS:
            raise ConfigurationError(
                f"--fps {args.fps:g} is more than the {MAX_FPS} that a GIF can play."
            )
        if args.width > MAX_SIDE[out.suffix]:
            raise ConfigurationError(
                f"--width {args.width:,} is more than the {MAX_SIDE[out.suffix]:,} pixels that a "
                f"{out.suffix} can hold."
            )
        if out.exists():
            raise ConfigurationError(
                f"{out} exists, and will not be overwritten. Choose another file with --out."
            )
        if out.suffix == ".mp4":
            require_video()
        with libraries_quiet():
            env = make_stored(read_description(args.folder), args, processes=False)
            act = load_policy(args.folder, args.seed, env, checkpoint=args.checkpoint)
            env = with_origin(env, act.observation)
            make_parents(out)
            cache_compilations()
            limits = stored_limits(args.folder, len(env.costs))
            film = play(env, act, args.episode, args.steps, args.every, args.width)
            write_animation(out, film.images, args.fps)
    size = out.stat().st_size / 1000
    costs = "".join(
        f", cost {name} {cost:.1f}" + ("" if limits is None else f" (limit {limits[k]:g})")
        for k, (name, cost) in enumerate(zip(env.costs, film.total_costs, strict=True))
    )
    cut = ", cut by --steps" if film.cut else ""
    console.print(
        f"Return {film.total_reward:.1f}{costs} in {film.num_steps:,} steps{cut}: "
        f"{out} ({len(film.images):,} frames, {size:,.0f} kB)"
    )
    return 0


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """Hides the messages of sound and graphics libraries, unless something fails."""
    sys.stderr.flush()
    shown = os.dup(2)
    with TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(said.fileno(), 2)
        try:
            yield
        except (ConfigurationError, StorageFailure):
            raise
        except BaseException:
            said.seek(0)
            os.write(shown, said.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)

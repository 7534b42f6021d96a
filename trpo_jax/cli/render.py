"""Plays one episode with a policy of a run, and writes it as a GIF or an MP4.

The command prints the return of the episode, and its costs with their limits.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

# Rendering needs no screen and no loudspeaker. Settings of the user take precedence.
HEADLESS = {"SDL_VIDEODRIVER": "offscreen", "SDL_AUDIODRIVER": "dummy"}
if sys.platform == "linux":
    HEADLESS["MUJOCO_GL"] = "egl"
for variable, value in HEADLESS.items():
    os.environ.setdefault(variable, value)

from rich.console import Console

from trpo_jax.cli.command_line import Parser, cache_compilations, command_name, user_errors
from trpo_jax.cli.environment_flags import add_environment_flags, make_stored
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, StorageFailure
from trpo_jax.records.files import make_parents
from trpo_jax.records.limits import stored_limits
from trpo_jax.records.policies import load_policy
from trpo_jax.records.policy_files import with_origin
from trpo_jax.records.runs import read_description
from trpo_jax.running.animation import MAX_FPS, MAX_SIDE, play, require_video, write_animation


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors(EnvironmentFailure, StorageFailure):
        args = build_parser().parse_args(argv)
        for name in ("steps", "every", "fps", "width"):
            if getattr(args, name) <= 0:
                raise ConfigurationError(f"--{name} {getattr(args, name)} must be more than 0.")
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


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = Parser(prog=command_name("render"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, help="folder of a run")
    help_text = (
        "seed whose policy plays (default: the seed with the best evaluation; with limits on "
        "costs, the best that keeps them)"
    )
    add("--seed", type=int, metavar="N", help=help_text)
    help_text = (
        "use a policy of a checkpoint instead of the final policy: best (the highest return in "
        "the evaluations during training; with limits on costs, the highest that keeps them), "
        "latest, or the number of an update"
    )
    add("--checkpoint", metavar="WHICH", help=help_text)
    help_text = "play in another environment, which has the same observations and actions"
    add("--env", metavar="NAME", help=help_text)
    add_environment_flags(parser)
    help_text = "number that chooses the random episode (default: 0)"
    add("--episode", type=int, default=0, metavar="N", help=help_text)
    help_text = "maximum number of steps (default: 1000)"
    add("--steps", type=int, default=1000, metavar="N", help=help_text)
    help_text = "number of steps from one frame to the next (default: 1)"
    add("--every", type=int, default=1, metavar="N", help=help_text)
    add("--fps", type=float, default=30, metavar="X", help="frames per second (default: 30)")
    help_text = "width of the picture in pixels (default: 320)"
    add("--width", type=int, default=320, metavar="N", help=help_text)
    help_text = (
        "file that ends in .gif or .mp4 and must not exist (default: episode.gif in the folder of "
        "the run, or episode-WHICH.gif for a checkpoint)"
    )
    add("--out", type=Path, metavar="FILE", help=help_text)
    return parser

"""Measures the goals for an accelerator: many seeds in one program, beside published speeds.

On a CPU, the same measurements run with fewer seeds and environments. They show that the script
works, and judge no goal.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import speed_training as training
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.running.defaults import defaults

ROOT = Path(__file__).parents[2]
MATHEMATICS = (  # tests of these modules run on the device, with its default precision
    "test_distributions.py",
    "test_fisher.py",
    "test_solvers.py",
    "test_line_search.py",
    "test_trust_region.py",
    "test_kronecker.py",
    "test_transform.py",
    "algorithms/test_trpo.py",
)
TEST_SECONDS = 90
SEEDS_OF_PARTS = {"gpu": (1, 64, 1_024), "cpu": (1, 4)}


class Goal(NamedTuple):
    """A goal for one GPU.

    Attributes:
        what: name of the measurement. {} is the number of seeds or environments.
        bound: the goal.
        at_least: whether the measurement has to be at least, or at most, the goal.
        anchor: published speed with which the goal compares.
        needs: package of the environment.
        gpu: numbers of seeds or environments on a GPU. Each number is measured.
        cpu: the same on a CPU.
        measure: `size -> measurement`.
    """

    what: str
    bound: float
    at_least: bool
    anchor: str
    needs: str
    gpu: tuple[int, ...]
    cpu: tuple[int, ...]
    measure: Callable[[int], float]


def made(env_name: str, **settings: Any) -> Algorithm:
    """Returns TRPO on an environment with the settings of `train.py`, except for `settings`."""
    config = defaults("trpo", env_name).config.replace(**settings)
    return trpo.make(envs.make(env_name), config)


def steps_per_second(algorithm: Algorithm, num_seeds: int, repeats: int = 3) -> float:
    """Returns the environment steps per second of all seeds together."""
    states = jax.jit(jax.vmap(algorithm.init))(jax.random.split(jax.random.key(0), num_seeds))
    advance = jax.jit(partial(training.advance_all, algorithm)).lower(states).compile()
    seconds = time_in_turns({"advance": partial(advance, states)}, repeats)["advance"]
    return algorithm.steps_per_update * training.UPDATES * num_seeds / float(np.median(seconds))


def seconds_to_return(num_seeds: int) -> float:
    """Returns the seconds in which all seeds reach a CartPole return of 475, or infinity."""
    seconds = training.seeds_to_return(made("CartPole-v1"), num_seeds)["all"]
    return np.inf if seconds is None else seconds


def beside_ppo(name: str, num_seeds: int) -> float:
    """Returns the time of TRPO divided by the time of PPO, with batches of the same size."""
    return 1 / training.beside_ppo(num_seeds, 3)["ratios"][name]


CARTPOLE = lambda seeds: steps_per_second(made("CartPole-v1"), seeds)
BREAKOUT = lambda seeds: steps_per_second(made("Breakout-MinAtar"), seeds)
ANT = lambda count: steps_per_second(made("brax/ant", num_envs=count, num_steps=16), 1)
HOPPER = lambda seeds: 1e6 / steps_per_second(made("brax/hopper"), seeds)

PUREJAXRL = "PureJaxRL's PPO on an A100: "
CLASSIC = PUREJAXRL + "8.5 to 10.4 million"
RETURN = "CartPole, seconds until all of {} seeds have a return of 475"
RATIO = "time of TRPO over PPO, CartPole, {} seeds"
MILLION = "hopper of Brax, seconds of a million steps of a seed, with {} seeds side by side"
ALONE = "ant of Brax, steps/s of one seed with {} environments"
QUARTER, ALL = partial(beside_ppo, "trpo, a quarter"), partial(beside_ppo, "trpo")

GOALS = (
    Goal(
        "CartPole, steps/s, seeds: {}",
        25e3,
        True,
        PUREJAXRL + "20,000",
        "gymnax",
        (1,),
        (1,),
        CARTPOLE,
    ),
    Goal(
        "CartPole, steps/s, seeds: {}",
        10e6,
        True,
        CLASSIC,
        "gymnax",
        (1_024, 4_096),
        (8, 16),
        CARTPOLE,
    ),
    Goal(RETURN, 60, False, "", "gymnax", (1_024,), (4,), seconds_to_return),
    Goal(
        "Breakout of MinAtar, steps/s, seeds: {}",
        8e6,
        True,
        PUREJAXRL + "7.9 million",
        "gymnax",
        (256,),
        (2,),
        BREAKOUT,
    ),
    Goal(RATIO, 1.3, False, "", "gymnax", (1_024,), (4,), QUARTER),
    Goal(RATIO + ", all states in the metric", 1.3, False, "", "gymnax", (1_024,), (4,), ALL),
    Goal(MILLION, 0.8, False, "rejax's PPO on an A100: 0.8", "brax", (300,), (1,), HOPPER),
    Goal(ALONE, 0.5e6, True, "CleanRL's PPO: 0.6 million", "brax", (4_096,), (16,), ANT),
)


def measure_goals(kind: str, deadline: float) -> Iterator[dict[str, Any]]:
    """Yields a row for each goal. `new` is None if its package is missing, or no time is left.

    Args:
        kind: kind of the device, "gpu" or "cpu".
        deadline: reading of `time.monotonic` after which no measurement starts.
    """
    for goal, size in [(x, size) for x in GOALS for size in getattr(x, kind)]:
        there = find_spec(goal.needs) is not None and time.monotonic() < deadline
        started = time.monotonic()
        yield {
            "what": goal.what.format(f"{size:,}"),
            "new": float(goal.measure(size)) if there else None,
            "goal": (goal.bound, goal.at_least) if kind == "gpu" else None,
            "anchor": goal.anchor,
            "seconds": time.monotonic() - started,
        }


def measure_parts(kind: str, deadline: float) -> Iterator[dict[str, Any]]:
    """Yields the seconds of the parts of an update on CartPole, and the space of a seed.

    If a part takes about as long with many seeds as with one, the launches of kernels take its
    time, and not its arithmetic.
    """
    algorithm = made("CartPole-v1")
    for num_seeds in SEEDS_OF_PARTS[kind]:
        if time.monotonic() > deadline:
            return
        states = jax.jit(jax.vmap(algorithm.init))(jax.random.split(jax.random.key(0), num_seeds))
        calls, seconds = {}, time.monotonic()

        def compiled(function, *arguments):
            return partial(jax.jit(jax.vmap(function)).lower(*arguments).compile(), *arguments)

        calls["collect"] = compiled(algorithm.collect, states)
        collected, trajectory = calls["collect"]()
        calls["policy"] = compiled(algorithm.improve, collected, trajectory)
        improved, fit_input, _ = calls["policy"]()
        calls["critic"] = compiled(algorithm.fit, improved.critic, fit_input)
        seconds = time.monotonic() - seconds
        update = jax.jit(jax.vmap(algorithm.update)).lower(states).compile()
        planned = update.memory_analysis()
        space = planned.temp_size_in_bytes + planned.argument_size_in_bytes
        yield {
            "num_seeds": num_seeds,
            **{name: float(np.median(x)) for name, x in time_in_turns(calls, 5).items()},
            "compilation": seconds,
            "bytes_per_seed": space / num_seeds,
        }


def run_tests() -> dict[str, Any]:
    """Runs the tests of the mathematics on the device, and returns the last line of pytest."""
    files = [str(ROOT / "tests" / name) for name in MATHEMATICS]
    words = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-m", "not heavy", *files]
    try:
        done = subprocess.run(
            words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"tests": f"not finished in {TEST_SECONDS} s", "failed": []}
    lines = done.stdout.splitlines() or ["no output"]
    return {"tests": lines[-1], "failed": re.findall(r"^FAILED (\S+)", done.stdout, re.M)}


def resume_on_cpu() -> dict[str, str]:
    """Trains on this device, continues the run on a CPU, and returns how both runs ended."""
    train = [sys.executable, str(ROOT / "experiments" / "train.py"), "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "run"))
        ended = {}
        for where, words, platform in (
            ("here", ["--total-steps", "8192", "--checkpoint-every", "2", "--out", out], {}),
            ("then on a CPU", ["--resume", out, "--total-steps", "16384"], "cpu"),
        ):
            environment = os.environ | ({"JAX_PLATFORMS": platform} if platform else {})
            done = subprocess.run(
                [*train, *words], env=environment, stderr=subprocess.PIPE, text=True
            )
            last = (done.stderr.strip().splitlines() or [""])[-1]
            ended[where] = "finished" if done.returncode == 0 else f"failed: {last}"
    return ended

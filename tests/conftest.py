"""The set-up of all tests: checked shapes, cheap compilation, and float64 as a fixture."""

import os
import shutil
import tempfile
from importlib.metadata import version

from jaxtyping import install_import_hook

# Compilation takes most of the time of the tests, and these emitters take half of it. One part of
# a program compiles faster than many parts, since the tests use every core in any case. Later
# versions may not have these flags, and XLA aborts if it does not know a flag.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1"
    )
# All tests and their child processes share one cache of compiled programs. The first process makes
# the cache, unless JAX_COMPILATION_CACHE_DIR names one. Such a cache is kept.
FIRST = "JAX_COMPILATION_CACHE_DIR" not in os.environ
PROGRAMS = tempfile.mkdtemp(prefix="programs-") if FIRST else ""
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", PROGRAMS)
os.environ |= {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}

# Checks every annotated shape and dtype at each call. Must come before any import of trpo_jax.
install_import_hook("trpo_jax", "beartype.beartype")

import jax
import pytest


def pytest_unconfigure():
    """Removes the cache of compiled programs."""
    if FIRST:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_programs():
    """Compiles equal runs once, for files that repeat and resume runs of suites by their names."""
    from trpo_jax.running import plan, program, train

    def once(function, key_of):
        """Returns the function, but calls with an equal key other than None share a result."""
        results = {}

        def shared(*args, **options):
            key = key_of(*args, **options)
            if key is None:
                return function(*args, **options)
            if key not in results:
                results[key] = function(*args, **options)
            return results[key]

        return shared

    def of_algorithm(task, config, **own):
        key = task.module, task.env.name, repr(task.options), config
        return None if own or task.env.open else key

    def of_runs(make, num_runs, values, updates_per_chunk, placement=None):
        algorithm = make(values)
        known = placement is None and algorithm.config is not None
        key = algorithm.env.name, algorithm.config, num_runs, updates_per_chunk
        return key if known else None

    def of_evaluation(env, *args, **options):
        return None if env.open or options["placement"] else (*args, *options.values())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "make_of", once(plan.make_of, of_algorithm))
        patch.setattr(program, "compile_runs", once(program.compile_runs, of_runs))
        patch.setattr(train, "make_evaluation", once(train.make_evaluation, of_evaluation))
        yield


@pytest.fixture
def x64():
    """Runs a test in float64, so that results agree with an oracle to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def called_by_module(monkeypatch):
    """Makes printed commands begin with `python -m trpo_jax`."""
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setattr("sys.argv", ["somewhere/trpo_jax/__main__.py"])

"""Shared by all tests: shapes are checked, compilation is cheap, and float64 is there on demand."""

import os
import shutil
import tempfile
from importlib.metadata import version

from jaxtyping import install_import_hook

# Compilation is most of what the tests cost, and these emitters are half of it. Later versions know
# no such flag, and XLA aborts on one that it does not know.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )
# All tests, and the processes that they start, share one cache of compiled programs. The first
# process of a test run makes it, unless JAX_COMPILATION_CACHE_DIR names one that is to be kept.
FIRST = "JAX_COMPILATION_CACHE_DIR" not in os.environ
PROGRAMS = tempfile.mkdtemp(prefix="programs-") if FIRST else ""
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", PROGRAMS)
os.environ |= {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}

# Before anything imports trpo_jax: every annotated shape and dtype is checked at each call.
install_import_hook("trpo_jax", "beartype.beartype")

import jax
import pytest


def pytest_unconfigure():
    """Removes the cache of compiled programs."""
    if FIRST:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture
def x64():
    """Runs a test in float64, where an oracle and its test agree to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def called_by_module(monkeypatch):
    """Makes commands that are printed begin with `python -m trpo_jax`."""
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setattr("sys.argv", ["somewhere/__main__.py"])

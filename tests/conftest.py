"""Shared by all tests: shape annotations are checked, and float64 is there to be asked for."""

import os
from importlib.metadata import version

from jaxtyping import install_import_hook

# Compilation is most of what the tests cost, and these emitters are half of it. Later versions know
# no such flag, and XLA aborts on one that it does not know.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )

# The scripts would use the cache of whoever runs the tests.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

# Before anything imports trpo_jax: every annotated shape and dtype is checked at each call.
install_import_hook("trpo_jax", "beartype.beartype")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# This halves the rest. The scripts, which are tested in processes of their own, do without.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Runs a test in float64, where an oracle and its test agree to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def shared_programs(tmp_path_factory):
    """Lets the tests of a module that compile the same programs again find them compiled."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_enable_compilation_cache": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield

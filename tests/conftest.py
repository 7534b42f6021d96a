"""Shared by all tests: shape annotations are checked, and float64 is there to be asked for."""

from jaxtyping import install_import_hook

# Before anything imports trpo_jax: every annotated shape and dtype is checked at each call.
install_import_hook("trpo_jax", "beartype.beartype")

import jax
import pytest

# Compilation is most of what these tests cost, and this halves it. The scripts, which are tested in
# processes of their own, compile as users' programs do.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Runs a test in float64, where an oracle and its test agree to many digits."""
    with jax.enable_x64(True):
        yield

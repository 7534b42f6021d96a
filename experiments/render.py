"""Runs `trpo-jax render`; `--help` explains every flag."""

import sys

from trpo_jax.cli.render import main

if __name__ == "__main__":
    sys.exit(main())

"""Runs `trpo-jax plot`; `--help` explains every flag."""

import sys

from trpo_jax.cli.plot import main

if __name__ == "__main__":
    sys.exit(main())

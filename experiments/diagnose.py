"""Runs `trpo-jax diagnose`; `--help` explains every flag."""

import sys

from trpo_jax.cli.diagnose import main

if __name__ == "__main__":
    sys.exit(main())

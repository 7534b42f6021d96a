import io

import numpy as np
from rich.console import Console

from trpo_jax.analysis.statistics import summarize
from trpo_jax.cli.display import print_evaluation


def test_many_seeds_are_summed_up():
    console = Console(file=io.StringIO(), width=80)
    scores = np.arange(40.0)
    print_evaluation(console, range(40), scores, summarize(scores), 64)
    text = console.file.getvalue()
    assert "24 more in summary.json" in text
    assert "19.5" in text

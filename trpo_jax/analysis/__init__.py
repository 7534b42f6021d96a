"""Numbers of finished runs: returns, groups of seeds, statistics, comparisons and diagnosis."""

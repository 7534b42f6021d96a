"""The analysis of stored runs: returns, groups, statistics, comparisons and diagnosis."""

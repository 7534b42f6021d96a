"""The analysis of stored runs: returns, groups, statistics, comparisons and diagnosis."""

WINDOW = 20  # least number of episodes in a running return

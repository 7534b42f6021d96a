"""Running algorithms: compiled programs, the loop around them, evaluation and sweeps."""

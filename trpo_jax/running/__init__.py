"""Training runs, evaluations and sweeps: their compiled programs and the loop around them."""

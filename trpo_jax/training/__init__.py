"""What a run needs around the maths: loop, evaluation, files and figures."""

"""Side-by-side measurements of mmreason and stock TRL; run with `python -m benchmarks.<name>`."""

"""The benchmark: every figure is a ratio against a floor measured beside it. `python -m bench --help`."""

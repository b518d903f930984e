"""States that stay on the device between ticks: one graph that gathers, steps and scatters."""

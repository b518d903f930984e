"""Ways in: each transport converts and admits, nothing else."""

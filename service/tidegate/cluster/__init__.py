"""Several worker processes behind the same ports: their identity, their start, and the owner of each session."""

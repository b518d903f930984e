"""What users would pick instead: the same graph behind other servers, measured beside ours. `make bench-peers`."""

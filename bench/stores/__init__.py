"""What durable sessions cost, store by store: `python -m bench.stores`."""

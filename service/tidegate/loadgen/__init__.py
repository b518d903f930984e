"""A load generator for a running server: what `tidegate bench` does.

`load` says what to do, how long the chunks are and when they are due, `drive` does it through the `senders`, `record`
holds what was seen, `measure` puts them together, `report` tells it.
"""

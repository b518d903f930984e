"""The Open Inference Protocol, version 2, with Triton's sequence extension: a thin transport over the same core."""

"""The Open Inference Protocol, version 2, with Triton's sequence extension: a thin ingress over the same core."""

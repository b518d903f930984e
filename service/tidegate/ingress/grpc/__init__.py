"""The gRPC ingress: services of `tidegate.v1` over the core, health and reflection."""

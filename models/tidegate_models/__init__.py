"""Recurrent networks in PyTorch, the tasks they learn and the data they learn from.

Knows nothing of bundles, ONNX or the service: `tidegate_export` reads what a training leaves behind (`runs.load_run`).
"""

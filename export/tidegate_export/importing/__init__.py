"""`tidegate import`: an ONNX file of anybody's, with its state in tensors, becomes a bundle."""

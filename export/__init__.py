"""Deployment: `onnx` writes a model as an ONNX graph, `runtime` runs one with the call signature of a model."""

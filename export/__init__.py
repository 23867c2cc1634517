"""Deployment: `onnx` writes a model as an ONNX graph, `runtime` runs one with the call signature of a model."""

LARGEST = 2**31 - 1  # bytes of one ONNX file: what protobuf can hold

"""ONNX graphs of a checkpoint's networks, with the fused operators as nodes of their own."""

"""TensorRT engines: built from ONNX files, with this project's kernels as plugins, and compared with the original.

Nothing here imports `tensorrt` before a function needs it: everything else works, and is tested, without it.
"""

from swiftdiffusion.python_backends.controlnet import TritonPythonModel

__all__ = ["TritonPythonModel"]

from swiftdiffusion.python_backends.preprocess import TritonPythonModel

__all__ = ["TritonPythonModel"]

from swiftdiffusion.python_backends.cancel import TritonPythonModel

__all__ = ["TritonPythonModel"]

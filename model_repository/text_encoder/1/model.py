from swiftdiffusion.python_backends.text_encoder import TritonPythonModel

__all__ = ["TritonPythonModel"]

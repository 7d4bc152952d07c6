from swiftdiffusion.python_backends.denoiser import TritonPythonModel

__all__ = ["TritonPythonModel"]

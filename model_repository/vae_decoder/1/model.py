from swiftdiffusion.python_backends.vae_decoder import TritonPythonModel

__all__ = ["TritonPythonModel"]

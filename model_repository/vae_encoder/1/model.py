from swiftdiffusion.python_backends.vae_encoder import TritonPythonModel

__all__ = ["TritonPythonModel"]

from swiftdiffusion.python_backends.unet_shard import TritonPythonModel

__all__ = ["TritonPythonModel"]

from swiftdiffusion.python_backends.lora_store import TritonPythonModel

__all__ = ["TritonPythonModel"]

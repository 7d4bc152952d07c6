from swiftdiffusion.python_backends.control_image_store import TritonPythonModel

__all__ = ["TritonPythonModel"]

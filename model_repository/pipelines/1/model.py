from swiftdiffusion.python_backends.pipelines import TritonPythonModel

__all__ = ["TritonPythonModel"]

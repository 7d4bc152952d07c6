from swiftdiffusion.python_backends.common.lean_diffusers import import_pipelines

import_pipelines()
from swiftdiffusion.python_backends.text_encoder import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]

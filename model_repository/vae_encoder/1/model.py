from swiftdiffusion.python_backends.common.lean_diffusers import import_diffusers

import_diffusers()
from swiftdiffusion.python_backends.vae_encoder import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]

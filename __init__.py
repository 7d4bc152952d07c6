"""SwiftDiffusion on Triton: Stable Diffusion XL and 1.5 served from a Triton model repository."""

__version__ = "0.1.0"

"""From a diffusers checkpoint to a Triton model repository, and the demo family."""

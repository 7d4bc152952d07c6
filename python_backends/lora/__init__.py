"""LoRA files: found by name, fetched, checked, made canonical, and patched into the weights."""

"""Networks of PyTorch: checkpoints, the UNet and its halves, what evaluates them, text encoding, latent decoding.

May import `kernels`, `tensorrt`, `lora.patching` and the rooms below them.
"""

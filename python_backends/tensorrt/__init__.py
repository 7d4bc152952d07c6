"""Engines of TensorRT and TensorRT-RTX at run time: checked, loaded, run. They read the parameters of a network.

May import `lora.patching` and the rooms below it. Nothing here imports either package before a function needs it:
everything else works, and is tested, without them.
"""

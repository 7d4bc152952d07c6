"""TensorRT engines at run time: checked, loaded, run, and refitted with LoRAs.

Nothing here imports `tensorrt` before a function needs it: everything else works, and is tested, without it.
"""

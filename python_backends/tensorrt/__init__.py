"""TensorRT engines at run time: checked, loaded, run, and refitted with LoRAs.

May import `lora.patching` and the rooms below it. Nothing here imports `tensorrt` before a function needs it:
everything else works, and is tested, without it.
"""

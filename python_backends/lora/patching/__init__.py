"""Factors into weights, in place, and which set is there.

May import `kernels`, `lora.files` and the rooms below them.
"""

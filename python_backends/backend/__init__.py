"""What a model needs of Triton: settings, tensors, other models, reloading, metrics.

May import `networks` and the rooms below it.
"""

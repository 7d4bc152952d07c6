"""A client's request: parsed, checked, completed, cancelled.

May import `common` and `shared_memory`; needs no torch.
"""

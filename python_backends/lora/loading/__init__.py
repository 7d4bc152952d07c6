"""Names to files: the catalogue and its profiles, fetching, caches, tickets.

May import `lora.files` and the rooms below it; needs no torch.
"""

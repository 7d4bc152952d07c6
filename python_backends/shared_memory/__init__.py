"""What several processes of a server share: byte-bounded caches of files, leases on them, the directory where they lie.

LoRAs and ControlNets' pictures use it. May import `common`; needs no torch.
"""

"""Runs of requests: sampler state, LoRAs of a run, which shard evaluates what, the report.

May import `controlnets` and the rooms below it.
"""

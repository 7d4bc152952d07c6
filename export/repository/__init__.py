"""Writes a model repository: what was asked for, what fits it, the configuration of every model."""

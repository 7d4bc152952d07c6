"""Triton Python backends of the pipeline, and the logic that they share."""

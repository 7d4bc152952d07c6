"""Load tests of a running server with NVIDIA's perf_analyzer."""

"""Clients of the wire contract: Python, command line, perf_analyzer."""

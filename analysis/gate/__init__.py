"""Base against head: paired and unpaired verdicts, baselines, and the gate's output.

It may import `summary`, `checks`, `metrics` and their imports.
"""

"""Base against head: paired and unpaired verdicts, baselines, and the gate's output.

Imports `summary`, `checks`, `metrics` and what these import.
"""

"""The largest load at which a server meets an SLO, and how many replicas a demand needs.

Imports `summary`, `slo`, `metrics` and what these import.
"""

"""Finds the highest load at which a server meets an SLO, and the number of replicas that a demand
needs.

It may import `summary`, `slo`, `metrics` and their imports.
"""

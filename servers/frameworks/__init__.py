"""Code that several servers of one web framework share.

Imports `contract`, `engines`, `runtime`.
"""

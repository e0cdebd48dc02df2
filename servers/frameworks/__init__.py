"""Code that several servers of one web framework, or behind nginx, share.

Imports `contract`, `engines`, `runtime`.
"""

"""Finds, starts, supervises and stops servers.

Imports `contract` and, for models, `engines`; never a server.
"""

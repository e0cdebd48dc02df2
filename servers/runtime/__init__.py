"""Finds, starts, supervises and ends servers.

Imports `contract` and, for models, `engines`; never a server.
"""

"""The API of our servers: paths, fields, framing, errors, /metrics, and the conformance checks.

Imports no web framework and no engine.
"""

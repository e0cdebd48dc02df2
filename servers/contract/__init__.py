"""The API that every server of ours speaks: paths, fields, framing, errors; and its checks.

Imports no web framework and no engine; `metrics` is the middleware for /metrics.
"""

"""Common claims about serving architectures, and the campaigns that test them.

Starts `python -m loadtests` for each campaign of `claims.toml`, and imports nothing else of
`loadtests`.
"""

"""What people say about serving architectures, and the campaigns that test it.

Starts `python -m loadtests` for each campaign of `claims.toml`; imports nothing else of
`loadtests`.
"""

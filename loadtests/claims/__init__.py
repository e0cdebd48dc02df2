"""Common claims about serving architectures, and the campaigns that test them.

Starts `python -m loadtests` for each campaign of `claims.toml`, then `python -m analysis claims`.
Of `loadtests` it imports only `schema` and `campaign.analysis_process`.
"""

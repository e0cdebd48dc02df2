"""Finds out what somebody else's endpoint is and does, by sending it requests.

May import the contract's client side (chunks, sse, token_counts, oracle) and runtime's limits.
"""

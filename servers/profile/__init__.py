"""What an endpoint is and does: found out by asking it, where the contract is not ours to check.

May import the contract's client side (chunks, sse, token_counts, oracle) and runtime's limits.
"""

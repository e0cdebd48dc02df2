"""One request on the wire: connect, send, stamp what arrives, parse it.

Knows nothing of Locust, scenarios or campaigns. Imports `schema` and the servers' contract.
"""

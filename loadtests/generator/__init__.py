"""The Locust processes that send the load: users, pacing, coordination and rows.

`locustfile` is the only module that imports Locust. Imports `client`, `workload` and `schema`.
"""

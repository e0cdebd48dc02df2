"""The API of our servers: paths, fields, framing, errors, /metrics, and the conformance checks.

Imports no web framework and no engine. What the load generator needs of it stands here and in
`chunks`, `sse`, `oracle` and `token_counts`: each of its processes would need a tenth of a second
to import the pydantic models of `api`.
"""

from typing import Any

JsonObject = dict[str, Any]  # at a border only: on the wire, on a command line, in a file

"""Makes other formats from a model's folder, once, for servers that cannot read it.

These modules run in the environment of the server that needs them, which has few packages: they
import only the standard library, `servers.runtime.build_cache` and their format's own library.
"""

"""Programs that tests start in a process of their own, by path or with `python -m`.

Most import gevent's hub or Locust, which change the sockets of the process that imports them.
"""

"""One request on the wire: connects, sends, stamps each read, and parses the response.

    connection.py         one kept-alive connection and its states, composed of:
      transport.py          sockets, TLS, the kernel's stamps
      http.py websocket.py  protocols: encode requests, find the ends of responses
      blocking.py           a reader that blocks, and connections that use it
      gevent_connection.py  a reader under which other greenlets run, and connections that use it
    reader.py             the socket reader of a process: python_reader.py or native.py, native.c
    response.py           parses finished responses

It knows nothing of Locust, scenarios or campaigns. Imports the servers' contract and build cache.
"""

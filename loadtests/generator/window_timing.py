"""The timing of the window's edges: seconds on which the coordinator and its workers must agree.

The coordinator announces the window before it opens, and a worker must know of it before it decides
about the last request of the warm-up. At the other edge, workers send a little longer than the
window lasts, so that it closes under load, and the coordinator waits until all have stopped.
"""

ANNOUNCED_BEFORE_S = 0.3  # the coordinator announces the window so long before it opens
KNOWN_BEFORE_S = 0.1  # an open loop decides so long before a request is due whether to send it
SENT_AFTER_S = 0.1  # workers send for so long after the window's end
STOPPED_AFTER_S = 0.2  # so long after the window's end no worker sends any more

MESSAGE_S = 0.05  # what a message from the coordinator to a worker may take
if KNOWN_BEFORE_S + MESSAGE_S > ANNOUNCED_BEFORE_S or SENT_AFTER_S + MESSAGE_S > STOPPED_AFTER_S:
    raise AssertionError("workers must know of the window's edges before they reach them")

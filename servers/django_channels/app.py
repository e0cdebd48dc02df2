"""Django on Daphne with a blocking engine in a thread pool: an async view that streams, and a
Channels consumer for WebSockets.
"""

import django
from channels.routing import ProtocolTypeRouter
from django.conf import settings
from django.core.asgi import get_asgi_application

from servers.contract import api
from servers.contract.metrics_middleware import AsgiMetrics
from servers.django_channels.consumers import CompletionsConsumer

settings.configure(
    ROOT_URLCONF="servers.django_channels.urls",
    ALLOWED_HOSTS=["*"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=api.MAX_BODY_BYTES,
    # by default, every unknown path and every refused request is logged
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "loggers": {"django.request": {"level": "ERROR"}},
    },
)
django.setup()
application = AsgiMetrics(
    ProtocolTypeRouter({"http": get_asgi_application(), "websocket": CompletionsConsumer.as_asgi()})
)

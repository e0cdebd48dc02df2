"""The base of all handlers, and the handlers that generate nothing."""

import threading
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from tornado.web import RequestHandler

from servers.contract import api, metrics
from servers.contract.api import ContractError
from servers.contract.metrics import CountedRequest


class Metrics(RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(metrics.render_metrics(self.request.query))


class Handler(RequestHandler):
    """The base of all handlers except Metrics: counts requests, checks the key, and renders errors
    in OpenAI's envelope.
    """

    def initialize(self, kind: Any = None) -> None:
        self.kind = kind
        self.engine, self.pool = self.settings["engine"], self.settings["pool"]
        self.gone = threading.Event()
        self.upgrading = self.request.headers.get("Upgrade", "").lower() == "websocket"
        # on a WebSocket the messages count, not the handshake
        self.counted = None if self.upgrading else CountedRequest(self.request.path)

    def prepare(self) -> None:
        refusal = metrics.find_refusal(
            self.request.headers.get("Authorization", ""), str(len(self.request.body))
        )
        if refusal and self.request.path != "/health":
            raise refusal

    def on_finish(self) -> None:
        if self.counted:
            self.counted.status = 499 if self.gone.is_set() else self.get_status()
            self.counted.end()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, ContractError):
            super().log_exception(typ, value, tb)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        shown = (
            error if isinstance(error, ContractError) else ContractError(status_code, self._reason)
        )
        self.set_status(shown.status)
        for name, value in shown.headers.items():
            self.set_header(name, value)
        self.finish(shown.body())


class Health(Handler):
    def get(self) -> None:
        self.finish({"status": "ok"})


class Models(Handler):
    def get(self) -> None:
        self.finish(api.models_body(self.engine.model))


class Unknown(Handler):
    def prepare(self) -> None:
        super().prepare()
        raise ContractError(404, f"there is no path {self.request.path}")

"""LitServe: one process for HTTP (`spec.py`), one for the model, and a third that holds the queues
of requests and tokens.
"""

import argparse
import os
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve as ls
import litserve.server
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from servers import engines
from servers.contract import api
from servers.contract.api import ContractError, Outcome
from servers.contract.metrics_middleware import AsgiMetrics
from servers.litserve.spec import Contract


class CompletionsLitAPI(ls.LitAPI):
    """The inference worker's part."""

    def setup(self, _: str) -> None:
        self.engine = engines.load_blocking()
        self.pool = ThreadPoolExecutor(max_workers=1)

    def decode_request(self, request: tuple[api.Request, float]) -> engines.Job:
        wanted, received = request
        try:
            job = self.engine.prepare(wanted)
        except ContractError as error:
            raise HTTPException(error.status, error.body()) from None
        job.received = received  # includes the wait in LitServe's queue
        return job

    def predict(self, job: engines.Job) -> Iterator[str | Outcome]:
        items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
        generation = self.pool.submit(self.engine.generate, job, items.put)
        generation.add_done_callback(lambda done: items.put(done.exception() or done.result()))
        while isinstance(item := items.get(), str):
            yield item
        if isinstance(item, BaseException):
            raise item
        yield item


async def refused(_: Request, error: ContractError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def http_error(_: Request, error: StarletteHTTPException) -> Response:
    from_worker: Any = error.detail
    body = (
        from_worker
        if isinstance(from_worker, dict)
        else api.error_body(error.status_code, error.detail)
    )
    return JSONResponse(body, error.status_code, error.headers)


def main() -> None:
    settings = engines.Settings.from_environment()
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    os.environ["SERVEOFF_ENGINE_THREADS"] = str(max(1, settings.threads // arguments.workers))

    # LitServe fails with the newer `mcp` that vLLM installs
    litserve.server._MCP_AVAILABLE = False
    owner = os.getpid()

    def end(*_: object) -> None:
        """Shut down as LitServe does on Ctrl-C. The processes it forks inherit this handler."""
        if os.getpid() == owner:
            raise KeyboardInterrupt
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    server = ls.LitServer(
        CompletionsLitAPI(spec=Contract(settings.model)),
        devices=1,
        workers_per_device=arguments.workers,
        timeout=False,
        middlewares=[AsgiMetrics],
    )
    server.app.add_exception_handler(ContractError, refused)
    server.app.add_exception_handler(StarletteHTTPException, http_error)
    server.uvicorn_graceful_timeout = 10
    server.run(
        host=arguments.host,
        port=arguments.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        loop="uvloop",
        http="httptools",
        access_log=False,
    )


if __name__ == "__main__":
    main()

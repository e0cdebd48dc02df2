"""Tornado's own server with a blocking engine in a thread pool: the application, its start and its
shutdown.
"""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

from tornado.httpserver import HTTPServer
from tornado.options import define, options
from tornado.web import Application

from servers import engines
from servers.contract import api, metrics
from servers.contract.api import ChatCompletionRequest, CompletionRequest
from servers.tornado.completions import CompletionsHandler
from servers.tornado.handlers import Health, Metrics, Models, Unknown


def make_app() -> Application:
    kinds = {api.COMPLETIONS: CompletionRequest, api.CHAT_COMPLETIONS: ChatCompletionRequest}
    return Application(
        [
            ("/health", Health),
            ("/v1/models", Models),
            ("/metrics", Metrics),
            *((path, CompletionsHandler, {"kind": kind}) for path, kind in kinds.items()),
        ],
        default_handler_class=Unknown,
        websocket_max_message_size=api.MAX_BODY_BYTES,
        # the handlers find these in their `settings`
        engine=engines.load_blocking(),
        pool=ThreadPoolExecutor(max_workers=40),  # as many as servers/fastapi_threadpool has
    )


async def main(app: Application) -> None:
    define("listen", help="HOST:PORT")
    options.parse_command_line()
    host, _, port = options.listen.rpartition(":")
    server = HTTPServer(app)
    server.listen(int(port), host)
    metrics.LoopLag.watch()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    await ending.wait()
    server.stop()
    await metrics.wait_until_idle()


if __name__ == "__main__":
    # the engine loads before asyncio runs: Ctrl-C then stops it at once
    asyncio.run(main(make_app()))

"""The smallest server that conforms to the contract, with one fault at a time that breaks it.

python -m tests.helpers.faulty_server early_role 8000
python -m servers verify http://127.0.0.1:8000
"""

import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, TextMessage

from servers.contract import api, oracle
from servers.contract.api import (
    ChatCompletionRequest,
    CompletionRequest,
    CompletionResponse,
    ContractError,
    Outcome,
)

MODEL = "serveoff-tiny"
PREFILL_S, STEP_S = 0.03, 0.002
CONTEXT = 100_000
KINDS = {api.COMPLETIONS: CompletionRequest, api.CHAT_COMPLETIONS: ChatCompletionRequest}


class Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    server: "Server"
    upgraded: WSConnection | None = None

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: Any, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def do_GET(self) -> None:
        if self.path in KINDS and "Upgrade" in self.headers:
            self.talk()
        elif self.path == "/health":
            self.reply(200, {})
        elif self.path == "/v1/models":
            self.reply(200, api.models_body(MODEL))
        elif self.path == "/metrics" and self.server.fault != "no_metrics":
            while self.server.fault == "stands_still_while_it_answers" and self.server.prompts:
                time.sleep(0.01)
            gauge = (
                "# TYPE serveoff_requests_in_flight gauge\nserveoff_requests_in_flight"
                f" {len(self.server.prompts)}\n"
            )
            self.reply(200, gauge.encode(), "text/plain")
        else:
            self.reply(405 if self.path in KINDS else 404, api.error_body(404, "no such page"))

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        fault = self.server.fault
        try:
            if length > api.MAX_BODY_BYTES:
                raise ContractError(413, "too long")
            if fault == "500_for_bad_json":
                json.loads(body)
            self.answer(api.parse_request(KINDS[self.path], body))
        except ContractError as error:
            message = traceback.format_exc() if fault == "stack_trace" else str(error)
            self.reply(error.status, api.error_body(error.status, message, error.param))
        except ValueError:
            self.reply(500, api.error_body(500, "failed"))
        except OSError:  # the client has gone
            pass

    def answer(self, request: api.Request) -> None:
        if request.model != MODEL:
            raise ContractError(404, "no such model")
        asked = request.max_tokens or 16
        if asked > CONTEXT:
            raise ContractError(400, "beyond the context", "max_tokens")
        chat = isinstance(request, ChatCompletionRequest)
        prompt = (
            oracle.chat_text([(m.role, m.content) for m in request.messages])
            if chat
            else request.prompt
        )
        with self.server.in_flight(prompt):
            if self.upgraded:
                self.stream(request, prompt, asked)
            elif request.stream:
                self.send_response(200)
                self.send_header("Content-Type", api.SSE_CONTENT_TYPE)
                self.end_headers()
                self.stream(request, prompt, asked)
            else:
                *words, outcome = self.server.generate(prompt, asked)
                self.reply(
                    200, CompletionResponse(request, MODEL).complete("".join(words), outcome)
                )

    def stream(self, request: api.Request, prompt: str, asked: int) -> None:
        fault, answer = self.server.fault, CompletionResponse(request, MODEL)
        if fault == "early_role":
            self.wfile.write(answer._chunk("", None).encode())
        held = ""
        for i, item in enumerate(self.server.generate(prompt, asked)):
            # a comment is no fault
            text = (": still here\n\n" if fault == "sends_comments" else "") + answer.event(item)
            if i == 30:  # late, so only a check of the whole stream finds it
                text = {"drops_a_token": "", "doubles_a_token": 2 * text}.get(fault, text)
            if fault == "no_done":
                text = text.removesuffix(api.DONE)
            if fault == "wrong_usage_of_streams":
                text = text.replace('"completion_tokens": ', '"completion_tokens": 1')
            held += text
            # buffered as a proxy would
            if fault != "buffers" or len(held) > 16_384 or not isinstance(item, str):
                try:
                    self.send_events(held)
                except OSError:
                    if fault not in (
                        "vanished_client_holds_its_slot",
                        "stands_still_while_it_answers",
                    ):
                        raise
                held = ""

    def send_events(self, events: str) -> None:
        if self.upgraded:
            self.wfile.write(
                b"".join(
                    self.upgraded.send(TextMessage(payload)) for payload in api.split_events(events)
                )
            )
        else:
            self.wfile.write(events.encode())

    def talk(self) -> None:
        """Serve a WebSocket to its end, answering each message like a POST."""
        self.upgraded = WSConnection(ConnectionType.SERVER)
        self.upgraded.initiate_upgrade_connection(
            [(name.encode(), value.encode()) for name, value in self.headers.items()], self.path
        )
        self.wfile.write(self.upgraded.send(AcceptConnection()))
        while data := self.connection.recv(65536):
            self.upgraded.receive_data(data)
            for message in self.upgraded.events():
                if isinstance(message, TextMessage):
                    try:
                        self.answer(api.parse_request(KINDS[self.path], message.data.encode()))
                    except ContractError as error:
                        if self.server.fault == "hangs_up_on_refusal":
                            return
                        self.wfile.write(self.upgraded.send(TextMessage(api.error_message(error))))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault: str = "", port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.fault = fault
        self.prompts: list[str] = []
        self.turn = threading.Lock()

    @contextmanager
    def in_flight(self, prompt: str) -> Iterator[None]:
        with self.turn:
            self.prompts.append(prompt)
        try:
            yield
        finally:
            with self.turn:
                self.prompts.remove(prompt)

    def generate(self, prompt: str, asked: int) -> Iterator[str | Outcome]:
        count = max(asked, 8) if self.fault == "ignores_max_tokens" else asked
        due = began = time.perf_counter()
        due += PREFILL_S
        for i in range(count):
            time.sleep(max(0.0, due - time.perf_counter()))
            due += STEP_S
            if self.fault == "mixes_up_requests" and i == 10:
                prompt = self.prompts[-1]  # of the newest request
            yield " " + oracle.VOCABULARY[(oracle.successor_index(prompt) + i) % oracle.WORDS]
        reported = count + 1 if self.fault == "wrong_usage" else count
        yield Outcome(
            oracle.count_tokens(prompt),
            reported,
            "length",
            0.0,
            1e3 * PREFILL_S,
            1e3 * (time.perf_counter() - began - PREFILL_S),
        )


@contextmanager
def running(fault: str = "") -> Iterator[str]:
    """Run the server and yield its base URL."""
    with Server(fault) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    Server(sys.argv[1], int(sys.argv[2])).serve_forever()

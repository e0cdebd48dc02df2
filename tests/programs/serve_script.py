"""Serves a script of tests/helpers/endpoint_script.py, and appends a JSON line for each request to
the record. Prints its port.

python -m tests.programs.serve_script SCRIPT.json RECORD.jsonl
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from tests.helpers.endpoint_script import (
    CHAT,
    COMPLETIONS,
    LOAD,
    Failure,
    Json,
    Response,
    Script,
    Served,
    words_of,
)

TLS_HANDSHAKE = b"\x16"
END_S = 0.1  # for the record of what a client has just read
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


class Refused(Exception):
    """The status and the words of a response that is no completion."""

    def __init__(self, status: int, words: str, headers: str = ""):
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers


class Connection:
    """One client's, and what is written to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer, self.answered = reader, writer, 0

    async def read_request(self) -> tuple[Served, bytes] | None:
        try:
            if (first := await self.reader.readexactly(1)) == TLS_HANDSHAKE:
                self.write("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return None
            head = (first + await self.reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            return None
        line, *lines = head.split("\r\n")[:-2]
        headers = {
            name.lower(): value.strip()
            for name, _, value in (each.partition(":") for each in lines)
        }
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = line.split(" ")
        return Served(method, path, time.perf_counter(), headers, {}), body

    def write(self, data: str) -> None:
        self.writer.write(data.encode())

    def write_chunk(self, data: str) -> None:
        size = len(data.encode())
        self.write(f"{size:x}\r\n{data}\r\n")

    def reply(self, status: int, body: str, headers: str = "", kind: str = "json") -> None:
        self.write(
            f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\nContent-Type:"
            f" application/{kind}\r\nContent-Length: {len(body.encode())}\r\n{headers}\r\n{body}"
        )


class Server:
    """Answers every connection by the script."""

    def __init__(self, script: Script, record: TextIO):
        self.script, self.record, self.began_s = script, record, time.perf_counter()
        self.in_flight: list[str] = []  # prompts
        self.seen: Counter[str] = Counter()
        self.failures = 0
        self.kinds_of_load, self.kinds_of_probes = (itertools.cycle(script.kinds) for _ in "ab")

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while read := await connection.read_request():
                if self.script.serves is not None and connection.answered >= self.script.serves:
                    break
                if not await self.answer(connection, *read):
                    break
                connection.answered += 1
        writer.close()

    async def answer(self, connection: Connection, served: Served, body: bytes) -> bool:
        """Whether the connection stays open."""
        try:
            return await self.dispatch(connection, served, body)
        except Refused as refused:
            served.status = refused.status
            error = {"message": refused.words, "type": "x", "code": refused.status}
            connection.reply(refused.status, json.dumps({"error": error}), refused.headers)
            return True
        finally:
            self.record.write(json.dumps(asdict(served)) + "\n")
            self.record.flush()

    async def dispatch(self, connection: Connection, served: Served, body: bytes) -> bool:
        script, parts = self.script, urlsplit(served.path)
        if script.redirect:
            where = f"Location: {script.redirect}{served.path}\r\n"
            raise Refused(308, "moved", where)
        if script.header:
            name, _, value = script.header.partition(": ")
            if served.headers.get(name.lower()) != value:
                raise Refused(401, f"Access denied due to a missing {name}")
        if script.query and script.query not in parts.query.split("&"):
            raise Refused(404, f"the query parameter {script.query.partition('=')[0]} is missing")
        if time.perf_counter() - self.began_s < script.loading_s:
            raise Refused(503, script.loading)
        if served.method == "GET":
            connection.write("".join(script.interim))
            return self.show(connection, served, parts.path)
        chat = parts.path == script.root + CHAT
        if not (chat or parts.path == script.root + COMPLETIONS) or (
            parts.path.removeprefix(script.root) not in script.endpoints
        ):
            raise Refused(404, "Not Found")
        try:
            served.body = json.loads(body)
        except ValueError:
            raise Refused(400, "not JSON") from None
        self.check(served.body)
        return await self.complete(connection, served, chat)

    def show(self, connection: Connection, served: Served, path: str) -> bool:
        script = self.script
        if path == script.root + "/models" and script.models_refused:
            raise Refused(*script.models_refused)
        if path == script.root + "/models" and script.models is not None:
            more = {"max_model_len": script.context} if script.context else {}
            models = [{"id": name, "object": "model"} | more for name in script.models]
            served.status = 200
            connection.reply(200, json.dumps({"object": "list", "data": models}))
        elif path == "/metrics" and script.metrics:
            served.status = 200
            connection.reply(200, script.metrics, kind="text")
        else:
            raise Refused(404, "Not Found")
        return True

    def check(self, body: Json) -> None:
        known = self.script.models
        if known is not None and body.get("model") not in known:
            raise Refused(404, f"The model `{body.get('model')}` does not exist.")
        present = {name for name, value in body.items() if value is not None}
        present |= {f"stream_options.{name}" for name in body.get("stream_options") or ()}
        present |= {f"role {message.get('role')}" for message in body.get("messages") or ()}
        for name, (status, words) in self.script.refused.items():
            if name in present:
                raise Refused(status, words)
        for name, (status, words) in self.script.required.items():
            if name not in present:
                raise Refused(status, words)

    async def complete(self, connection: Connection, served: Served, chat: bool) -> bool:
        script, body = self.choose_kind(served), served.body
        connection.write("".join(script.interim))
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        if asked < script.least_tokens:
            raise Refused(400, f"max_tokens must be at least {script.least_tokens}")
        text = body.get("prompt", "")
        prompt = (
            " ".join(str(message.get("content") or "") for message in body.get("messages") or ())
            if chat
            else " ".join(text)
            if isinstance(text, list)
            else str(text)
        )
        count = asked
        if script.lengths:
            least, most = script.lengths
            count = least + sum(prompt.encode()) % (most - least + 1)
            count = min(count, asked) if script.heeds_max_tokens else count
        response = Response(script, served, chat, prompt, count)
        if script.context and response.prompt_tokens + asked > script.context:
            raise Refused(
                400,
                f"This model's maximum context length is {script.context} tokens. However, you"
                f" requested {response.prompt_tokens + asked} tokens.",
            )
        failure = self.failure_of(script, served)
        if failure and failure.status != 200:
            wait = f"Retry-After: {failure.retry_after}\r\n" if failure.retry_after else ""
            raise Refused(failure.status, failure.words, wait)
        self.seen[prompt] += 1
        self.in_flight.append(prompt)
        served.in_flight, served.status = len(self.in_flight), 200
        try:
            if response.streams:
                stays = await Stream(self, connection, response, prompt, failure).send()
                served.whole = failure is None
                return stays
            await asyncio.sleep(script.first_s + script.step_s * sum(1 for _ in response.chunks()))
            for begin, end in response.chunks():
                self.spoil(response, prompt, begin, end)
            served.sent.append((time.perf_counter(), count))
            connection.reply(200, json.dumps(response.plain()))
            served.whole = True
            return True
        finally:
            self.in_flight.remove(prompt)

    def choose_kind(self, served: Served) -> Script:
        """The script of one completion."""
        script = self.script
        if not served.is_load and script.probe_pace != 1:
            first_s, step_s = script.first_s * script.probe_pace, script.step_s * script.probe_pace
            script = replace(script, first_s=first_s, step_s=step_s)
        if not script.kinds:
            return script
        served.kind = next(self.kinds_of_load if served.is_load else self.kinds_of_probes)
        return script.of_kind(served.kind)

    def failure_of(self, script: Script, served: Served) -> Failure | None:
        failure = script.failure
        if failure is None or (failure.when == LOAD and not served.is_load):
            return None
        self.failures += 1
        if failure.dies and self.failures > failure.after_requests:
            os._exit(1)
        if self.failures <= failure.after_requests:
            return None
        return None if self.failures % failure.every else failure

    def spoil(self, response: Response, prompt: str, begin: int, end: int) -> None:
        """Makes the text of these tokens differ as the script describes, as things are now."""
        text, words = response.script.text, response.words
        busy, again = len(self.in_flight) > 1, self.seen[prompt] > 1
        if begin <= 19 < end and ((text == "busy" and busy) or (text == "second" and again)):
            words[19] = "zuzu"
        others = [each for each in self.in_flight if each != prompt]
        if text == "mixed" and others and begin >= 10:
            words[begin:end] = words_of(others[-1], len(words))[begin:end]


class Stream:
    """One streamed response on its way."""

    def __init__(
        self,
        server: Server,
        connection: Connection,
        response: Response,
        prompt: str,
        failure: Failure | None,
    ):
        self.server, self.connection, self.response = server, connection, response
        self.prompt, self.failure, self.script = prompt, failure, response.script
        self.events: list[tuple[str, int]] = []  # that wait for a write
        self.numbers = itertools.count()

    def frame(self, data: Json) -> str:
        n, script = next(self.numbers), self.script
        text = json.dumps(data, indent=1 if script.pretty else None)
        if script.pretty:
            text = text.replace("\n", "\ndata: ")
        event = script.event[n % len(script.event)].replace("{data}", text).replace("{n}", str(n))
        return "\ufeff" * (script.marked and n == 0) + event

    async def send(self) -> bool:
        script, response = self.script, self.response
        served, began_s = response.served, time.perf_counter()
        ends = "" if script.until_closed else "Transfer-Encoding: chunked\r\n"
        closes = "Connection: close\r\n" if script.until_closed else ""
        kind = self.failure.content_type if self.failure else script.content_type
        self.connection.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{ends}{closes}\r\n")
        for early in script.early:
            await self.add(self.frame(json.loads(early)), 0, now=not script.at_once)
        if self.failure is None or self.failure.after_tokens:
            due_s = began_s + script.first_s
            for number, (begin, end) in enumerate(response.chunks()):
                if self.failure and begin >= self.failure.after_tokens:
                    break
                await asyncio.sleep(due_s - time.perf_counter())
                due_s += 0.0 if script.at_once else script.step_s
                self.server.spoil(response, self.prompt, begin, end)
                if served.first_visible_s is None and end > response.reasoning:
                    served.first_visible_s = time.perf_counter()
                if (script.text == "loses" and number == 5) or (
                    script.text == "cut" and begin >= 10
                ):
                    continue
                await self.add(self.frame(self.chunk(begin, end)), end - begin)
        for text in self.failure.events if self.failure else self.last_events():
            await self.add(text, 0)
        await self.flush()
        if script.until_closed or (self.failure and not self.failure.events):
            return False
        self.connection.write("0\r\n\r\n")
        return True

    def chunk(self, begin: int, end: int) -> Json:
        begin = 0 if self.script.text == "cumulative" else begin
        response, options = self.response, self.response.served.body.get("stream_options") or {}
        script, finish = self.script, None
        asked = script.usage == "continuous" and options.get("continuous_usage_stats")
        more: Json = {"usage": None} if script.null_usage else {}
        if asked or script.usage == "running":
            more = {"usage": response.usage(end)}
        if script.finish_with_token and end == response.count:
            finish = script.finish
        if script.extras:
            more |= {
                "system_fingerprint": None,
                "service_tier": "default",
                "prompt_token_ids": None,
            }
        return response.envelope(response.delta(begin, end) | {"finish_reason": finish}, **more)

    def last_events(self) -> Iterator[str]:
        script, response = self.script, self.response
        options = response.served.body.get("stream_options") or {}
        usage = {"usage": response.usage(response.count)}
        empty: Json = {"delta": {}} if response.chat else {"text": ""}
        if script.finish is not None and not script.finish_with_token:
            unasked = usage if script.usage == "finish" else {}
            yield self.frame(response.envelope(empty | {"finish_reason": script.finish}, **unasked))
        if script.usage in ("asked", "continuous", "running") and options.get("include_usage"):
            choice = None if script.one_choice else empty | {"finish_reason": script.finish}
            yield self.frame(response.envelope(choice, **usage))
        if script.done:
            yield script.done

    async def add(self, event: str, tokens: int, now: bool = False) -> None:
        """An event; written once there are as many as the script writes at once."""
        self.events.append((event, tokens))
        if now or (len(self.events) >= self.script.per_write and not self.script.at_once):
            await self.flush()

    async def flush(self) -> None:
        text, numbers = "".join(event for event, _ in self.events), [n for _, n in self.events if n]
        self.events = []
        if not text:
            return
        write = self.connection.write if self.script.until_closed else self.connection.write_chunk
        if self.script.in_halves and len(text) > 1:
            write(text[: len(text) // 2])
            await self.connection.writer.drain()
            await asyncio.sleep(0.001)
            text = text[len(text) // 2 :]
        now_s = time.perf_counter()
        self.response.served.sent += [(now_s, n) for n in numbers]
        write(text)
        await self.connection.writer.drain()


async def main(script: Path, record: Path) -> None:
    with record.open("a") as lines:
        server = Server(Script.from_json(script.read_text()), lines)
        listening = await asyncio.start_server(server.connect, "127.0.0.1", 0, limit=2**20)
        print(listening.sockets[0].getsockname()[1], flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()
        await asyncio.sleep(END_S)
        listening.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))

// A gateway in Node: one event loop that pipes the upstream's stream to the client as it arrives.
//
// SERVEOFF_UPSTREAM (base URLs, comma-separated), SERVEOFF_API_KEY, SERVEOFF_MAX_IN_FLIGHT, SERVEOFF_CONNECT_TIMEOUT_S and
// SERVEOFF_READ_TIMEOUT_S have the same meaning as in the Python servers.

import { createHash, timingSafeEqual } from "node:crypto";
import http from "node:http";

import { MAX_IN_FLIGHT } from "./bounds.mjs";
import { CHAT_COMPLETIONS, COMPLETIONS, ContractError, MAX_BODY_BYTES, parse } from "./contract.mjs";
import { busy, count, exposition } from "./metrics.mjs";
import { failure, read, refusal, send } from "./upstream.mjs";

const [host, port] = process.argv.slice(2);
const KEY = process.env.SERVEOFF_API_KEY;
const JSON_TYPE = { "Content-Type": "application/json" };
const SSE_TYPE = { "Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no" };
const upstreams = new Map(); // model: URLs of the servers that have it

async function forward(path, wanted, response) {
  const urls = upstreams.get(wanted.model);
  if (!urls) {
    const known = [...upstreams.keys()].join(", ");
    throw new ContractError(404, `model: '${wanted.model}' does not exist; available models: ${known}`, "model", "model_not_found");
  }
  urls.push(urls.shift()); // they take turns
  const url = urls[0] + path;
  const gone = new AbortController();
  response.on("close", () => response.writableFinished || gone.abort()); // the client disconnected: stop the upstream's work
  const upstream = await send("POST", url, JSON.stringify(wanted), gone.signal);
  if (wanted.stream && upstream.statusCode === 200) {
    response.writeHead(200, SSE_TYPE);
    upstream.on("error", (error) => response.destroyed || response.end(`\n\ndata: ${failure(url, error).body()}\n\n`));
    upstream.pipe(response);
    return;
  }
  const body = await read(upstream).catch((error) => { throw failure(url, error); });
  if (upstream.statusCode !== 200) throw refusal(upstream, body);
  response.writeHead(200, JSON_TYPE).end(body);
}

const digest = (text) => createHash("sha256").update(text).digest();
const isAllowed = (given = "") => !KEY || timingSafeEqual(digest(Buffer.from(given, "latin1")), digest(`Bearer ${KEY}`));

const ROUTES = {
  "/health": ["GET", async (request, response) => response.writeHead(200, JSON_TYPE).end('{"status":"ok"}')],
  "/v1/models": ["GET", async (request, response) => {
    const data = [...upstreams.keys()].map((id) => ({ id, object: "model", created: 0, owned_by: "serveoff" }));
    response.writeHead(200, JSON_TYPE).end(JSON.stringify({ object: "list", data }));
  }],
  [COMPLETIONS]: ["POST", (request, response, body) => forward(COMPLETIONS, parse(COMPLETIONS, body), response)],
  [CHAT_COMPLETIONS]: ["POST", (request, response, body) => forward(CHAT_COMPLETIONS, parse(CHAT_COMPLETIONS, body), response)],
};

async function handle(path, request, response) {
  const body = await read(request, MAX_BODY_BYTES);
  if (path !== "/health" && !isAllowed(request.headers.authorization))
    throw new ContractError(401, "missing or wrong API key: send it as 'Authorization: Bearer KEY'", null, "invalid_api_key");
  if (body === null) throw new ContractError(413, `the body is longer than ${MAX_BODY_BYTES} bytes`, null, "body_too_large");
  if (path !== "/health" && busy() > MAX_IN_FLIGHT)
    throw new ContractError(429, `${MAX_IN_FLIGHT} requests are already in flight: try again later`, null,
      "too_many_requests", { "Retry-After": "1" });
  if (!Object.hasOwn(ROUTES, path)) throw new ContractError(404, "Not Found");
  const [method, respond] = ROUTES[path];
  if (request.method !== method) throw new ContractError(405, "Method Not Allowed");
  await respond(request, response, body);
}

const server = http.createServer((request, response) => {
  const path = request.url.split("?")[0];
  if (path === "/metrics") {
    response.writeHead(200, { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" }).end(exposition());
    return;
  }
  count(path, response);
  handle(path, request, response).catch((error) => {
    if (response.destroyed) return; // the client disconnected
    if (!(error instanceof ContractError)) console.error(error);
    const shown = error instanceof ContractError ? error : new ContractError(500, "the gateway failed");
    response.writeHead(shown.status, { ...JSON_TYPE, ...shown.headers }).end(shown.body());
  });
  response.on("close", () => server.listening || server.closeIdleConnections());
});

for (const signal of ["SIGTERM", "SIGINT"])
  process.on(signal, () => {
    server.close(); // responses in progress have 10 s; then the process ends by itself
    setTimeout(() => server.closeAllConnections(), 10_000).unref();
  });

if (!process.env.SERVEOFF_UPSTREAM) {
  console.error("SERVEOFF_UPSTREAM is not set: start this server with `python -m servers NAME`");
  process.exit(1);
}
for (const url of process.env.SERVEOFF_UPSTREAM.split(",")) {
  const listed = JSON.parse(await read(await send("GET", `${url}/v1/models`)));
  for (const { id } of listed.data) upstreams.set(id, [...(upstreams.get(id) ?? []), url]);
}
server.listen(Number(port), host);

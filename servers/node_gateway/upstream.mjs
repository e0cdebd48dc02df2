// Sends requests to the servers behind the gateway with one agent, and turns failures into the contract's errors.

import http from "node:http";

import { CONNECT_TIMEOUT_S, READ_TIMEOUT_S } from "./bounds.mjs";
import { ContractError } from "./contract.mjs";

const KEY = process.env.SERVEOFF_API_KEY;
const HEADERS = { "Content-Type": "application/json", ...(KEY && { Authorization: `Bearer ${KEY}` }) };
// As many connections as requests. Uvicorn closes an idle one after 5 s; reusing it just then would fail, so the agent drops it after 4 s.
const agent = new http.Agent({ keepAlive: true, timeout: 4000 });

/** Returns an upstream's response once its head has arrived. Throws ContractError. */
export function send(method, url, body, signal) {
  return new Promise((resolve, reject) => {
    let response;
    const request = http.request(url, { agent, method, headers: HEADERS, signal, timeout: 1e3 * CONNECT_TIMEOUT_S });
    request.on("finish", () => request.setTimeout(1e3 * READ_TIMEOUT_S)); // sent, so connected
    request.on("timeout", () => (response ?? request).destroy(
      new ContractError(504, "the server behind this gateway did not respond in time", null, "upstream_timeout")));
    request.on("error", (error) => reject(failure(url, error)));
    request.on("response", (head) => resolve((response = head)));
    request.end(body);
  });
}

export function failure(url, error) {
  if (error.name !== "AbortError") console.error(`${url}: ${error.message}`); // the details are for the log only
  if (error instanceof ContractError) return error;
  return new ContractError(503, "the server behind this gateway is unavailable: try again later", null, "upstream_gone");
}

/** Returns the whole body; null if it is longer than `limit`. Reads it anyway: a client that still sends would not see the error. */
export async function read(stream, limit = Infinity) {
  const pieces = [];
  let length = 0;
  for await (const piece of stream) if ((length += piece.length) <= limit) pieces.push(piece);
  return length <= limit ? Buffer.concat(pieces) : null;
}

/** Returns an upstream's error in OpenAI's envelope, which not every upstream uses, with the upstream's Retry-After. */
export function refusal({ statusCode, headers }, body) {
  let error;
  try {
    error = JSON.parse(body).error;
  } catch {} // the message below covers it
  const code = typeof error?.code === "string" ? error.code : null;
  const message = error?.message ?? `the server behind this gateway responded with status ${statusCode}`;
  const retryAfter = /^\d+$/.test(headers["retry-after"] ?? "") ? { "Retry-After": headers["retry-after"] } : {};
  return new ContractError(statusCode, message, error?.param, code, retryAfter);
}

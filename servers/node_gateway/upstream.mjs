// Talks with the servers behind the gateway: one agent, and what goes wrong is said in the contract's words.

import http from "node:http";

import { CONNECT_TIMEOUT_S, READ_TIMEOUT_S } from "./bounds.mjs";
import { ContractError } from "./contract.mjs";

const KEY = process.env.SERVEOFF_API_KEY;
const HEADERS = { "Content-Type": "application/json", ...(KEY && { Authorization: `Bearer ${KEY}` }) };
// As many connections as there are requests. Uvicorn closes an idle one after 5 s, and reusing it just then would fail: so 4 s.
const agent = new http.Agent({ keepAlive: true, timeout: 4000 });

/** An upstream's answer, once its head is there. Throws ContractError. */
export function ask(method, url, body, signal) {
  return new Promise((resolve, reject) => {
    let answer;
    const request = http.request(url, { agent, method, headers: HEADERS, signal, timeout: 1e3 * CONNECT_TIMEOUT_S });
    request.on("finish", () => request.setTimeout(1e3 * READ_TIMEOUT_S)); // sent, so connected
    request.on("timeout", () => (answer ?? request).destroy(
      new ContractError(504, "the server behind this gateway did not answer in time", null, "upstream_timeout")));
    request.on("error", (error) => reject(failure(url, error)));
    request.on("response", (head) => resolve((answer = head)));
    request.end(body);
  });
}

export function failure(url, error) {
  if (error.name !== "AbortError") console.error(`${url}: ${error.message}`); // a client need not know what stands behind
  if (error instanceof ContractError) return error;
  return new ContractError(503, "the server behind this gateway is gone: try again later", null, "upstream_gone");
}

/** The whole body; null if it is longer than `limit`, but read nevertheless: else a client that still sends would never see why. */
export async function read(stream, limit = Infinity) {
  const pieces = [];
  let length = 0;
  for await (const piece of stream) if ((length += piece.length) <= limit) pieces.push(piece);
  return length <= limit ? Buffer.concat(pieces) : null;
}

/** An upstream's error in OpenAI's envelope, which not every upstream has, and with what it said of coming back. */
export function refusal({ statusCode, headers }, body) {
  let error;
  try {
    error = JSON.parse(body).error;
  } catch {} // said below
  const code = typeof error?.code === "string" ? error.code : null;
  const message = error?.message ?? `the server behind this gateway answered with status ${statusCode}`;
  const said = /^\d+$/.test(headers["retry-after"] ?? "") ? { "Retry-After": headers["retry-after"] } : {};
  return new ContractError(statusCode, message, error?.param, code, said);
}

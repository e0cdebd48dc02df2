// Requests and errors of servers/contract/api.py for a server that is not Python: the wire format is the same.

import { readFileSync } from "node:fs";

export const COMPLETIONS = "/v1/completions";
export const CHAT_COMPLETIONS = "/v1/chat/completions";
export const MAX_BODY_BYTES = 4 * 1024 * 1024;

export class ContractError extends Error {
  constructor(status, message, param = null, code = null, headers = {}) {
    super(message);
    Object.assign(this, { status, param, code, headers });
  }

  body() {
    const types = { 401: "authentication_error", 429: "rate_limit_error" };
    const type = types[this.status] ?? (this.status >= 500 ? "server_error" : "invalid_request_error");
    return JSON.stringify({ error: { message: this.message, type, param: this.param, code: this.code } });
  }
}

// The accepted values of each field besides null; any other would change the response. servers/contract/fields.py reads the same file.
const UNSUPPORTED = JSON.parse(readFileSync(new URL("../contract/unsupported_fields.json", import.meta.url)));
const ROLES = { developer: "system", tool: "user", function: "user" };

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string" && value.isWellFormed(); // no lone surrogates
const isBoolean = (value) => typeof value === "boolean";
const isCount = (value) => Number.isInteger(value) && value >= 1;
const isContent = (value) =>
  isText(value) || (Array.isArray(value) && value.every((part) => part?.type === "text" && isText(part.text ?? "")));
const isMessage = (value) =>
  [...Object.keys(ROLES), "system", "user", "assistant"].includes(value?.role) &&
  isContent(value.role === "assistant" ? (value.content ?? "") : value.content);
const joined = (content) => (Array.isArray(content) ? content.map((part) => part.text ?? "").join("") : (content ?? ""));
const unwrapped = (prompt) => (Array.isArray(prompt) && prompt.length === 1 ? prompt[0] : prompt);

const COMMON = {
  model: [isText, "must be a string"],
  max_tokens: [isCount, "must be an integer above 0"],
  temperature: [(value) => typeof value === "number" && value >= 0 && value <= 2, "must be a number from 0 to 2"],
  top_p: [(value) => typeof value === "number" && value > 0 && value <= 1, "must be a number above 0 and up to 1"],
  seed: [(value) => Number.isInteger(value) && Math.abs(value) <= 2 ** 63, "must be a 64-bit integer"],
  stop: [(value) => isText(value) || (Array.isArray(value) && value.length <= 4 && value.every(isText)), "must be up to 4 strings"],
  stream: [isBoolean, "must be true or false"],
  stream_options: [
    (value) => isObject(value) && isBoolean(value.include_usage ?? false) && isBoolean(value.continuous_usage_stats ?? false),
    "must be an object with include_usage",
  ],
  ignore_eos: [isBoolean, "must be true or false"],
};
const OWN = {
  [COMPLETIONS]: {
    prompt: [(value) => isText(unwrapped(value)) && unwrapped(value) !== "", "must be one non-empty text: send one request per prompt"],
  },
  [CHAT_COMPLETIONS]: {
    messages: [(value) => Array.isArray(value) && value.length > 0 && value.every(isMessage), "must be messages with role and content"],
    max_completion_tokens: COMMON.max_tokens,
  },
};
const REQUIRED = ["model", "prompt", "messages"];

/** Returns the fields of the contract, without nulls, which mean the default. Throws ContractError. */
export function parse(path, bytes) {
  let body;
  try {
    body = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new ContractError(400, `the body is not a JSON object: ${error.message}`, null, "invalid_json");
  }
  if (!isObject(body)) throw new ContractError(400, "the body is not a JSON object", null, "invalid_json");
  for (const [field, value] of Object.entries(body)) {
    if (value === null || !Object.hasOwn(UNSUPPORTED, field)) continue;
    if (field === "min_tokens" && body.ignore_eos === true) continue; // load tools send both; ignore_eos is enough
    const accepted = UNSUPPORTED[field].map((each) => JSON.stringify(each));
    if (accepted.includes(JSON.stringify(value, (_, each) => each ?? undefined))) continue;
    const remedy = accepted.length ? `leave it out or send ${accepted.join(" or ")}` : "leave it out";
    throw new ContractError(400, `${field}: this server does not support it; ${remedy}`, field, "unsupported_value");
  }
  const wanted = {};
  for (const [field, [isValid, must]] of Object.entries({ ...COMMON, ...OWN[path] })) {
    const value = body[field] ?? null;
    if (value === null ? REQUIRED.includes(field) : !isValid(value)) throw new ContractError(400, `${field}: ${must}`, field, "invalid");
    if (value !== null) wanted[field] = value;
  }
  if (wanted.prompt) wanted.prompt = unwrapped(wanted.prompt);
  if (wanted.messages)
    wanted.messages = wanted.messages.map(({ role, content }) => ({ role: ROLES[role] ?? role, content: joined(content) }));
  if (!wanted.stream) delete wanted.stream_options; // vLLM refuses them
  return wanted;
}

// Limits that the environment may set, as in servers/runtime/limits.py.

function number(name, otherwise) {
  const text = process.env[name];
  const found = text === undefined ? otherwise : Number.parseFloat(text);
  if (found > 0 && found < Infinity) return found;
  console.error(`error: ${name} is '${text}': set it to a number above 0, or unset it`);
  process.exit(2);
}

export const CONNECT_TIMEOUT_S = number("SERVEOFF_CONNECT_TIMEOUT_S", 5);
export const READ_TIMEOUT_S = number("SERVEOFF_READ_TIMEOUT_S", 600);
export const MAX_IN_FLIGHT = number("SERVEOFF_MAX_IN_FLIGHT", 512);

// Numbers that the environment may set, as in servers/runtime/limits.py.

function number(name, otherwise) {
  const said = process.env[name];
  const found = said === undefined ? otherwise : Number.parseFloat(said);
  if (found > 0 && found < Infinity) return found;
  console.error(`error: ${name} is '${said}': set it to a number above 0, or not at all`);
  process.exit(2);
}

export const CONNECT_TIMEOUT_S = number("SERVEOFF_CONNECT_TIMEOUT_S", 5);
export const READ_TIMEOUT_S = number("SERVEOFF_READ_TIMEOUT_S", 600);
export const MAX_IN_FLIGHT = number("SERVEOFF_MAX_IN_FLIGHT", 512);

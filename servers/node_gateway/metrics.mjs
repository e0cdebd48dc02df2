// The series of servers/contract/metrics.py under the same names.

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];
const PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/models", "/health"];
const requests = new Map(); // labels: count
const seconds = new Map(); // path: { buckets, sum, count }
let inFlight = 0;

/** Counts a request from now to the last byte of its response, or until the client disconnects: then as 499, nginx's code. */
export function count(rawPath, response) {
  const path = PATHS.includes(rawPath) ? rawPath : "other"; // a client must not be able to create time series
  const began = performance.now();
  inFlight += 1;
  response.on("close", () => {
    const labels = `path="${path}",status="${response.headersSent ? response.statusCode : 499}"`;
    requests.set(labels, (requests.get(labels) ?? 0) + 1);
    const took = (performance.now() - began) / 1e3;
    if (!seconds.has(path)) seconds.set(path, { buckets: SECONDS.map(() => 0), sum: 0, count: 0 });
    const histogram = seconds.get(path);
    SECONDS.forEach((bound, index) => (histogram.buckets[index] += took <= bound));
    histogram.sum += took;
    histogram.count += 1;
    inFlight -= 1; // last: when none is in flight, all have been counted
  });
}

/** Returns how many requests are in flight. */
export const busy = () => inFlight;

export function exposition() {
  const lines = ["# HELP serveoff_requests_total responses by status", "# TYPE serveoff_requests_total counter"];
  for (const [labels, value] of requests) lines.push(`serveoff_requests_total{${labels}} ${value}`);
  lines.push("# HELP serveoff_requests_in_flight requests between their arrival and the last byte of the response",
    "# TYPE serveoff_requests_in_flight gauge", `serveoff_requests_in_flight ${inFlight}`,
    "# HELP serveoff_request_seconds from arrival to the last byte of the response", "# TYPE serveoff_request_seconds histogram");
  for (const [path, { buckets, sum, count }] of seconds) {
    const bucket = (bound, value) => `serveoff_request_seconds_bucket{le="${bound}",path="${path}"} ${value}`;
    SECONDS.forEach((bound, index) => lines.push(bucket(Number.isInteger(bound) ? `${bound}.0` : bound, buckets[index])));
    lines.push(bucket("+Inf", count), `serveoff_request_seconds_count{path="${path}"} ${count}`,
      `serveoff_request_seconds_sum{path="${path}"} ${sum}`);
  }
  return lines.join("\n") + "\n";
}

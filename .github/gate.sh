#!/usr/bin/env bash
# Runs the gate for action.yml. Its Markdown becomes the step's summary, its verdict the step's result.
set -euo pipefail
place=$(dirname "$(dirname "$(readlink -f "$0")")")

arguments=(--out "$OUT")
[ -z "$BASE" ] || arguments+=(--base "$BASE")
[ -z "$BASE_SERVER" ] || arguments+=(--base-server "$BASE_SERVER")
[ -z "$HEAD_SERVER" ] || arguments+=(--head-server "$HEAD_SERVER")
if [ -n "$ARGUMENTS" ]; then
    mapfile -t further < <(xargs printf '%s\n' <<<"$ARGUMENTS") # xargs parses a shell's quotes without running anything
    arguments+=("${further[@]}")
fi

nox=nox
if ! command -v nox >/dev/null; then
    python3 -m venv "${RUNNER_TEMP:-/tmp}/serveoff-nox"
    "${RUNNER_TEMP:-/tmp}/serveoff-nox/bin/pip" install --quiet nox
    nox="${RUNNER_TEMP:-/tmp}/serveoff-nox/bin/nox"
fi

code=0
"$nox" -f "$place/noxfile.py" -s gate -- "${arguments[@]}" || code=$?

if [ -f "$OUT/gate.md" ]; then
    cat "$OUT/gate.md" >>"${GITHUB_STEP_SUMMARY:-/dev/null}"
    verdict=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["verdict"])' "$OUT/gate.json")
    echo "verdict=$verdict" >>"${GITHUB_OUTPUT:-/dev/null}"
fi
if [ "$code" = 3 ]; then
    echo "::warning title=Serveoff gate::inconclusive: the measurements do not show yet whether head is slower than base"
    [ "$INCONCLUSIVE" = fail ] || code=0
fi
exit "$code"

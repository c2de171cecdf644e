#!/usr/bin/env bash
# Compares the streams of a LiveKit room with a plain loop of `write` over the same streams, and writes
# perf/results/livekit.md. Always measures in process. If LIVEKIT_URL names a server, also measures there, with viewers in a
# separate process; the key and secret are LIVEKIT_API_KEY and LIVEKIT_API_SECRET, by default those of `livekit-server --dev`.
# That part needs the native library, which the official SDK downloads. Stops after at most five minutes once it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
features=byte-stream
if [[ -n ${LIVEKIT_URL:-} ]]; then
  features=livekit,livekit-token
else
  echo "no server is measured: set LIVEKIT_URL to one, for example that of livekit-server --dev" >&2
fi
cargo bench --quiet -p lanecast-benches --features "$features" --bench livekit --no-run
exec timeout 300 cargo bench --quiet -p lanecast-benches --features "$features" --bench livekit -- --out "$PWD/perf/results"

#!/usr/bin/env bash
# Compares the streams of a LiveKit room with a plain loop of `write` over the same streams, and writes
# perf/results/livekit.md: in process in any case; if LIVEKIT_URL names a server (with LIVEKIT_API_KEY and
# LIVEKIT_API_SECRET, else those of `livekit-server --dev`), also there, with viewers in a process of their own. That part
# needs the native library, which the official SDK downloads. Five minutes at most once it is built; stops by itself.
set -euo pipefail
cd "$(dirname "$0")/.."
features=byte-stream
if [[ -n ${LIVEKIT_URL:-} ]]; then
  features=livekit,livekit-token
else
  echo "on a server: left out, LIVEKIT_URL names none (livekit-server --dev is one)" >&2
fi
cargo bench --quiet --features "$features" --bench livekit --no-run
exec timeout 300 cargo bench --quiet --features "$features" --bench livekit -- --out "$PWD/perf/results"

#!/usr/bin/env bash
# Measures how cost grows: time, processor time and memory over participants, message rate, payload and shards, each with the
# straight line that fits best, and the cost of a write to a socket on this machine. Prints the figures of perf/growth.md.
# Takes a minute or two once it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo bench --quiet -p lanecast-benches --bench comparison --bench memory --no-run
cargo bench --quiet -p lanecast-benches --bench comparison -- --growth
cargo bench --quiet -p lanecast-benches --bench memory -- --growth

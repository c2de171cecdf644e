#!/usr/bin/env bash
# How cost grows, in figures: time, processor time and memory over participants, message rate, payload and shards, each
# with the straight line that fits it best, and what a write to a socket costs here. Prints what perf/growth.md reads; a
# minute or two once it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo bench --quiet --bench comparison --bench memory --no-run
cargo bench --quiet --bench comparison -- --growth
cargo bench --quiet --bench memory -- --growth

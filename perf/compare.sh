#!/usr/bin/env bash
# Compares the crate with the baseline (benches/src/baseline/), interleaved in one process, and prints a line per case:
#   case=fanout/n=16000/burst=1/payload=64 baseline=… direct-queues=… lanecast=… ratio=… spread=…
# Times are in ns per delivered message. The ratio is baseline / lanecast, or for a case called own=A:B the time of A over that
# of B. The spread is the middle half of the rounds' ratios, as a fraction of their median. direct-queues is the crate without
# its log: a broadcast is a direct send to each participant's own lock-free queue. Writes perf/results/.
#
#   perf/compare.sh           all cases; ten minutes
#   perf/compare.sh --quick   fewer cases and shorter rounds; two minutes once it is built; writes nothing
#   perf/compare.sh --only TEXT   the cases whose name contains TEXT; writes nothing
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=("$@")
if [[ $# -eq 0 ]]; then
  arguments=(--out "$PWD/perf/results")
fi
cargo bench --quiet -p lanecast-benches --bench comparison --bench memory --no-run
if [[ $# -eq 0 ]]; then
  mkdir -p perf/results
  cargo bench --quiet -p lanecast-benches --bench memory | tee perf/results/memory.txt
else
  cargo bench --quiet -p lanecast-benches --bench memory
fi
exec cargo bench --quiet -p lanecast-benches --bench comparison -- --compare "${arguments[@]}"

#!/usr/bin/env bash
# Draws where the time of a case of the comparison goes, as `perf` samples it on whatever core it runs:
#   perf/flamegraph.sh fanout/n=16000/burst=1/payload=64 lanecast [OUT.svg]
# The case as perf/compare.sh prints it, then one of its columns (baseline, lanecast, …). Beside the picture, in
# target/flamegraph/, stay the stacks it is drawn of.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ $# -lt 2 || $# -gt 3 ]]; then
  echo "usage: perf/flamegraph.sh CASE COLUMN [OUT.svg]" >&2
  exit 2
fi
case=$1 column=$2
if ! command -v perf >/dev/null; then
  echo "perf is missing: install linux-perf (Debian), linux-tools-generic (Ubuntu) or perf (Fedora, Arch)" >&2
  echo "without it: cargo bench --bench comparison -- --profile-time 10 ${case%%/*}/$column/${case#*/}" >&2
  exit 1
fi

# Whole stacks need frame pointers, inlined functions line tables; what is built so is kept apart from other builds.
folder=${CARGO_TARGET_DIR:-$PWD/target}/flamegraph
stacks=$folder/$(tr '/=' '_-' <<<"$case")_$column
svg=${3:-$stacks.svg}
cargo install --quiet --locked inferno --version 0.12.8 --root "$folder" --target-dir "$folder/inferno"
build() {
  RUSTFLAGS="-C force-frame-pointers=yes" CARGO_PROFILE_BENCH_DEBUG=line-tables-only CARGO_TARGET_DIR=$folder \
    cargo bench --quiet --bench comparison --no-run "$@"
}
build
binary=$(build --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')

# Says its process id once everybody is there; or on stderr what it doesn't know, and ends.
exec 3< <(exec "$binary" --carry "$case" "$column")
read -r pid <&3 || exit 1
trap 'kill "$pid" 2>/dev/null' EXIT
perf record --quiet --event cpu-clock --freq 1999 --call-graph fp --pid "$pid" --output "$stacks.data" -- sleep 10
perf script --input "$stacks.data" 2>/dev/null | "$folder/bin/inferno-collapse-perf" --quiet >"$stacks.folded"
# What is narrower than a third of a percent can't be read.
"$folder/bin/inferno-flamegraph" --minwidth 0.33 --title "$case: $column" --countname samples <"$stacks.folded" >"$svg"
echo "$svg"

#!/usr/bin/env bash
# Draws a flamegraph of one case of the comparison, sampled with `perf` on all cores:
#   perf/flamegraph.sh fanout/n=16000/burst=1/payload=64 [COLUMN [OUT.svg]]
# CASE is named as perf/compare.sh prints it. COLUMN is one of its columns (lanecast by default; baseline, …). The picture is
# written to target/flamegraph/ unless OUT.svg is given. The collapsed stacks stay there, and their shares are printed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ $# -lt 1 || $# -gt 3 ]]; then
  echo "usage: perf/flamegraph.sh CASE [COLUMN [OUT.svg]]" >&2
  exit 2
fi
case=$1 column=${2:-lanecast}
if ! command -v perf >/dev/null; then
  echo "perf is missing: install linux-perf (Debian), linux-tools-generic (Ubuntu) or perf (Fedora, Arch);" \
    "without it: cargo bench -p lanecast-benches --bench comparison --" \
    "--profile-time 10 ${case%%/*}/$column/${case#*/}" >&2
  exit 1
fi

target=${CARGO_TARGET_DIR:-$PWD/target}
cargo install --quiet --locked inferno --version 0.12.8 --root "$target/tools" --target-dir "$target/tools/build"
# With line tables perf also names inlined functions, which are most of a hot path.
build() {
  CARGO_PROFILE_BENCH_DEBUG=line-tables-only cargo bench --quiet -p lanecast-benches --bench comparison --no-run "$@"
}
build
binary=$(build --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')

# The bench prints its process id once all participants have joined. If it doesn't know the case or column, it says so on stderr
# and exits.
exec 3< <(exec "$binary" --carry "$case" "$column")
read -r pid <&3 || exit 1
trap 'kill "$pid" 2>/dev/null || true' EXIT
mkdir -p "$target/flamegraph"
stacks=$target/flamegraph/$(tr '/=' '_-' <<<"$case")_$column
perf record --quiet --event cpu-clock --freq 499 --call-graph dwarf,16384 --pid "$pid" --output "$stacks.data" -- \
  sleep 10
# The type arguments of inlined functions are removed: they fill pages. Where perf asks binutils for inlined functions, the
# first line of an address has the name of the function that they are all inlined into, which comes again as the last.
perf script --input "$stacks.data" 2>/dev/null |
  sed -E '/\(inlined\)$/{:again;s/<[^<>]*>//;t again}' |
  awk '{ inlined = $NF == "(inlined)" }
    NR > 1 && !(inlined && !before && $1 == address) { print held }
    { held = $0; before = inlined; address = $1 }
    END { print held }' |
  "$target/tools/bin/inferno-collapse-perf" --quiet >"$stacks.folded"
rm "$stacks.data"

svg=${3:-$stacks.svg}
# Frames narrower than a third of a percent can't be read.
"$target/tools/bin/inferno-flamegraph" --minwidth 0.33 --title "$case: $column" --countname ns <"$stacks.folded" >"$svg"
echo "functions by the time spent in themselves, in percent:"
awk '{ time = $NF; sub(/ [0-9]+$/, ""); leaf = $0; sub(/.*;/, "", leaf); spent[leaf] += time; all += time }
  END { for (leaf in spent) printf "%5.1f %s\n", 100 * spent[leaf] / all, leaf }' "$stacks.folded" |
  sort -rn | awk '$1 >= 1'
echo "$svg"

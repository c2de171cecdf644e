#!/usr/bin/env bash
# Compares lanecast's WebSocket room with other servers, on loopback, and writes perf/results/peers.md.
# Arguments are those of `peers run`; --quick ends within minutes. Bounded in time; stops by itself.
set -euo pipefail
cd "$(dirname "$0")"

# Open files: one per client in either process, and some.
want=12000
if ! ulimit -n "$want" 2>/dev/null; then
    have=$(ulimit -n)
    echo "run.sh: ulimit -n stays at $have; 9,000 clients need more than 9,100" >&2
fi

# Where bbr is the default it stops by itself for 35-45 ms on loopback. A network namespace of our own has settings of its
# own, so that nothing of the host's changes, and nothing but its own loopback is reached.
setup='
ip link set lo up
if [ "$(cat /proc/sys/net/ipv4/tcp_congestion_control)" = bbr ]; then
    mount -t proc proc /proc
    echo cubic > /proc/sys/net/ipv4/tcp_congestion_control 2>/dev/null ||
        echo reno > /proc/sys/net/ipv4/tcp_congestion_control
fi
exec "$@"
'
inside=()
for way in "unshare --net --mount" "unshare --net --mount --map-root-user"; do
    if $way sh -c "$setup" sh true 2>/dev/null; then
        inside=($way sh -c "$setup" sh)
        break
    fi
done
if [ ${#inside[@]} -eq 0 ]; then
    echo "run.sh: no network namespace can be made; measuring with this host's settings" >&2
fi

# uWebSockets comes with bun, in the version that package.json names. Its install script only puts the program in its place.
wanted=$(sed -n 's/.*"bun": "\(.*\)".*/\1/p' package.json)
bun() { node_modules/bun/bin/bun.exe --version 2>/dev/null || true; }
if [ "$(bun)" != "$wanted" ]; then
    rm -rf node_modules
    told=$(npm install --no-package-lock --no-audit --no-fund --ignore-scripts 2>&1 && node node_modules/bun/install.js 2>&1) || true
fi
if [ "$(bun)" != "$wanted" ]; then
    echo "run.sh: skipped: uwebsockets, because bun $wanted can't be installed: $(tail -n 1 <<<"$told")" >&2
    rm -rf node_modules
fi

cargo build --release --quiet
binary=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/peers
mkdir -p ../results
exec "${inside[@]}" "$binary" run --out "$PWD/../results/peers.md" "$@"

#!/usr/bin/env bash
# Compares how old messages are when they arrive over a slow link: this crate's lossy topics, its reliable ones, and the foxglove
# crate's server, each with a stream of ten times what the link carries. Prints the table of perf/slow-links.md.
# Takes a minute for each link and server; the number of seconds may be given.
set -euo pipefail
cd "$(dirname "$0")/peers"
seconds=${1:-60}
cargo build --release --quiet
binary=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/peers
echo "| link | server | p50, s | p99, s | at most, s | payload, kbit/s | arrived | reconnects |"
echo "|---|---|---|---|---|---|---|---|"
# The link is that of tests/slow_links.rs. Reno: bbr resends a third of what it sends where the queue drops.
for kbit in 256 1000 10000; do
    unshare --net sh -c "
        ip link set lo mtu 1500 && ip link set lo up &&
        tc qdisc replace dev lo root tbf rate ${kbit}kbit burst 3000 latency 400ms &&
        echo reno > /proc/sys/net/ipv4/tcp_congestion_control &&
        exec $binary slow $kbit $seconds lanecast-lossy lanecast foxglove" &
done
wait

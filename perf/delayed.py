#!/usr/bin/env python3
"""Simulates a link with a delay and a rate in user space, for kernels without netem.

    unshare --net perf/delayed.py --rate 100 --delay 50 CMD...

Runs CMD in a network in which 10.77.0.2 is this host behind the link: packets sent to that address come back from it, as if
both ends were two hosts. The rate is in Mbit/s in each direction, the delay in ms for the round trip. The link queues --queue bytes
(1 MB) and drops what exceeds that.
"""
import argparse, collections, fcntl, heapq, os, select, struct, subprocess, sys, time

arguments = argparse.ArgumentParser()
arguments.add_argument("--rate", type=float, default=100)
arguments.add_argument("--delay", type=float, default=50)
arguments.add_argument("--queue", type=float, default=1_000_000)
arguments.add_argument("command", nargs=argparse.REMAINDER)
options = arguments.parse_args()

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
for words in ("link set lo up", "addr add 10.77.0.1/30 dev tun0", "link set tun0 mtu 1500 up"):
    subprocess.run(["ip", *words.split()], check=True)

child = subprocess.Popen(options.command)
one_way, per_byte, longest = options.delay / 2000, 8 / (options.rate * 1e6), options.queue * 8 / (options.rate * 1e6)
# The ports tell the direction: the higher port of a connection is the client's.
free = [0.0, 0.0]
waiting = []
number = 0
while child.poll() is None:
    now = time.monotonic()
    while waiting and waiting[0][0] <= now:
        os.write(tun, heapq.heappop(waiting)[2])
    wait = min(waiting[0][0] - now, 0.05) if waiting else 0.05
    if not select.select([tun], [], [], max(wait, 0))[0]:
        continue
    for _ in range(64):
        try:
            packet = os.read(tun, 2048)
        except BlockingIOError:
            break
        if packet[0] >> 4 != 4 or packet[9] != 6:
            continue
        now = time.monotonic()
        header = (packet[0] & 15) * 4
        source, target = struct.unpack_from("!HH", packet, header)
        way = source < target
        begins = max(free[way], now)
        if begins - now > longest:
            continue
        free[way] = begins + len(packet) * per_byte
        number += 1
        # Swapping source and target leaves the checksums unchanged.
        turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        heapq.heappush(waiting, (free[way] + one_way, number, turned))
sys.exit(child.returncode)

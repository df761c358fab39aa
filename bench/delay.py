"""A link with a long round trip to a network namespace of its own, without netem (which not every
kernel has): two TAP devices and a relay that holds back every packet.

The kernel hands over packets of up to 64 KiB (segmentation offload), so that the relay keeps up
with what SSH can do. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

HERE, THERE = "10.213.77.1", "10.213.77.2"
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 2, 0x1000, 0x4000
_OFFLOADS = 1 | 2 | 4  # checksums, TSO4, TSO6
_CLONE_NEWNET = 0x40000000
_PACKET = 70_000


def _tap(name: str) -> int:
    """A TAP device in the namespace that this process is in."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(device, _TUNSETVNETHDRSZ, struct.pack("i", 10))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _OFFLOADS)
    return device


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _up(name: str, address: str) -> None:
    _ip("addr", "add", f"{address}/30", "dev", name)
    _ip("link", "set", name, "txqueuelen", "20000", "up")


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _relay(pid: int, one_way_s: float, ready: Connection) -> None:
    name = f"cosma{os.getpid() % 10**9}"
    here = _tap(name)
    _up(name, HERE)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    away = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    _enter(away)
    there = _tap("eth0")
    _up("eth0", THERE)
    _ip("link", "set", "lo", "up")
    _enter(home)
    ready.send(True)
    _hold_back(here, there, one_way_s)


def _hold_back(here: int, there: int, one_way_s: float) -> None:
    """For ever."""
    waiting: dict[int, collections.deque[tuple[float, bytes]]] = {
        here: collections.deque(),
        there: collections.deque(),
    }
    other = {here: there, there: here}
    poll = select.epoll()
    for device in other:
        poll.register(device, select.EPOLLIN)
    while True:
        now, due = time.monotonic(), None
        for device, packets in waiting.items():
            while packets and packets[0][0] <= now:
                with contextlib.suppress(
                    OSError
                ):  # a queue is full: a packet is lost, as it can be
                    os.write(device, packets[0][1])
                packets.popleft()
            if packets:
                due = packets[0][0] if due is None else min(due, packets[0][0])
        for device, _ in poll.poll(None if due is None else max(0.0, due - now)):
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    packet = os.read(device, _PACKET)
                    waiting[other[device]].append((time.monotonic() + one_way_s, packet))


@contextlib.contextmanager
def delayed(pid: int, round_trip_s: float) -> Iterator[None]:
    """The network namespace of process `pid` is at THERE, `round_trip_s` away. Raises RuntimeError
    where that cannot be made."""
    mine, its = multiprocessing.Pipe()
    relay = multiprocessing.Process(target=_relay, args=(pid, round_trip_s / 2, its), daemon=True)
    relay.start()
    its.close()
    try:
        mine.recv()
    except EOFError:
        relay.join()
        raise RuntimeError("no delayed link: it needs root and /dev/net/tun") from None
    try:
        yield
    finally:
        relay.kill()
        relay.join()

"""The network interface that gloo uses: that of the node's Ray address."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress

import ray

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # linux/sockios.h


def bind_gloo() -> None:
    """Binds gloo to the interface of the node's Ray address, unless the user names one.

    Gloo takes the address of the host's own name, which on Ubuntu is 127.0.1.1: no other host can connect to it.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault(GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """The network interface with this IPv4 address; None if there is none, or the system does not say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None

"""Sockets that the service listens on."""

import contextlib
import errno
import socket
from typing import Any, Final

from replay_service.errors import ReplayError

_FOREIGN: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class AddressInUse(ReplayError):
    slug, title = "address-in-use", "The address cannot be used"

    @classmethod
    def of(cls, host: str, port: int, error: OSError) -> "AddressInUse":
        """The error for an address that the system does not let us listen on."""
        advice = (
            "; stop the program that listens there, or choose another port" if error.errno == errno.EADDRINUSE else ""
        )
        return cls(f"{host}:{port} cannot be listened on: {error.strerror or error}{advice}")


def listeners(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host, of one port, bound but not listening yet; 0 takes any free port.

    Addresses that this machine does not have, such as `::1` without IPv6, are left out where it has others.

    Raises:
        AddressInUse: when one of them cannot be had, or none is this machine's.
    """
    sockets: list[socket.socket] = []
    foreign: OSError | None = None
    with contextlib.ExitStack() as opened:
        try:
            for each in dict.fromkeys(_addresses(host, port)):
                its_port = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(opened.enter_context(_bound(each, its_port, is_only_ipv6=True)))
                except OSError as error:
                    if error.errno not in _FOREIGN:
                        raise
                    foreign = error
            if foreign is not None and not sockets:
                raise foreign
        except OSError as error:
            raise AddressInUse.of(host, port, error) from error
        opened.pop_all()
    return sockets


def listener(host: str, port: int, is_shared: bool = True) -> socket.socket:
    """A socket for the first address of a host, bound but not listening yet; `is_shared` lets others be bound to it."""
    return _bound(_addresses(host, port)[0], port, is_shared)


_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def _addresses(host: str, port: int) -> list[_Address]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, address) for family, _, _, _, address in found]


def _bound(address: _Address, port: int, is_shared: bool = False, is_only_ipv6: bool = False) -> socket.socket:
    family, (host, _, *scope) = address
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and is_only_ipv6:
            # Otherwise the socket for all IPv6 addresses would take those of IPv4 too, which have one of their own.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port, *scope))
    except OSError:
        bound.close()
        raise
    return bound

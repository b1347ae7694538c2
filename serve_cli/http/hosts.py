"""The names that this server goes by."""

import re
import socket
from ipaddress import IPv6Address, ip_address

from serve_cli.http.settings import Settings

LOCAL = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":\d*\Z", re.ASCII)


class Hosts:
    """What a Host header may say: names of this machine, and on other interfaces than loopback any address.

    A site can point a name of its own to this machine, and then its pages may read what comes back; an
    address it cannot. Source: "DNS rebinding", https://en.wikipedia.org/wiki/DNS_rebinding
    """

    def __init__(self, settings: Settings) -> None:
        self._names = {*LOCAL, *(name.lower() for name in settings.allowed_hosts)}
        self._addresses = settings.host not in ("localhost", "127.0.0.1", "::1")
        if self._addresses:
            self._names |= {settings.host.lower(), socket.gethostname().lower()}

    def __contains__(self, header: bytes) -> bool:
        name = name_in(header)
        return name in self._names or "*" in self._names or (self._addresses and is_address(name))


def name_in(header: bytes) -> str:
    """The name in a Host header, without a port."""
    return PORT.sub("", header.decode("latin-1")).lower()


def is_address(name: str) -> bool:
    """Whether `name` is an IP address, an IPv6 one in brackets."""
    try:
        return isinstance(ip_address(name.strip("[]")), IPv6Address) == name.startswith("[")
    except ValueError:
        return False

"""gRPC channels to a target. Balancing is gRPC's own `round_robin`."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from guerdon.addresses import is_loopback
from guerdon.client.config import TLS
from guerdon.client.errors import Unavailable

logger = logging.getLogger(__name__)

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


def speaks_http(target: str | Sequence[str]) -> bool:
    """Whether a target is a URL, or a list that begins with one."""
    first = target if isinstance(target, str) else next(iter(target), "")
    return isinstance(first, str) and first.startswith(("http://", "https://"))


class Target:
    """The addresses of the servers.

    Args:
        target: `host:port`; a gRPC target such as `dns:///rewards:50051` (all its addresses are
            used) or `ipv4:10.0.0.1:50051,10.0.0.2:50051`; or a list of `host:port`.

    Raises:
        ValueError: it is no such thing.
    """

    def __init__(self, target: str | Sequence[str]) -> None:
        self.endpoints = [target] if isinstance(target, str) else list(target)
        if not self.endpoints or not all(isinstance(e, str) and e for e in self.endpoints):
            raise ValueError("target must be host:port, or a list of them")
        for endpoint in self.endpoints:
            if endpoint.startswith(("http://", "https://", "grpc://")):
                raise ValueError("target must be host:port, without a scheme")
            if len(self.endpoints) > 1:
                split(endpoint)

    @property
    def several(self) -> bool:
        """Whether it is known to be more than one server."""
        only = self.endpoints[0]
        return len(self.endpoints) > 1 or (only.startswith(("ipv4:", "ipv6:")) and "," in only)

    @property
    def loopback(self) -> bool:
        """Whether tokens stay on this machine."""
        return all(host == "unix" or is_loopback(host) for host in self.hosts)

    @property
    def hosts(self) -> list[str]:
        """Names or addresses, without ports; `unix` for a socket of this machine."""
        found = []
        for endpoint in self.endpoints:
            if endpoint.startswith("unix"):
                found.append("unix")
                continue
            bare = endpoint.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
            places = bare.rpartition("/")[2].split(",")  # dns://resolver/host:port
            found += [re.sub(r":\d+$", "", place).strip("[]") for place in places]
        return found

    def __str__(self) -> str:
        return ", ".join(self.endpoints)

    async def resolve(self) -> str:
        """The target as gRPC takes it.

        gRPC's static resolvers take addresses, not names, so the names of a list are looked
        up once, here; those of a single target are looked up by gRPC, again and again.

        Raises:
            Unavailable: no name of the list has an address.
        """
        if len(self.endpoints) == 1:
            only = self.endpoints[0]
            return only if only.startswith(_SCHEMES) else f"dns:///{only}"
        found = await asyncio.gather(*map(_addresses, self.endpoints), return_exceptions=True)
        addresses: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]] = []
        for endpoint, result in zip(self.endpoints, found, strict=True):
            if isinstance(result, OSError):
                logger.warning("%s cannot be looked up and is left out: %s", endpoint, result)
            elif isinstance(result, BaseException):
                raise result
            else:
                addresses += result
        if not addresses:
            raise Unavailable(f"none of {', '.join(self.endpoints)} can be looked up")
        return _static(addresses)


def split(endpoint: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ValueError: it is not host:port.
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdecimal() or endpoint.startswith(_SCHEMES):
        raise ValueError(f"target {endpoint!r} must be host:port, as every entry of a list")
    return host.strip("[]"), int(port)


async def _addresses(
    endpoint: str,
) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """The addresses of one endpoint: of one family, or a host would count twice."""
    host, port = split(endpoint)
    try:
        return [(ipaddress.ip_address(host), port)]
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    parsed = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    chosen = [a for a in parsed if a.version == 4] or parsed
    return [(address, port) for address in dict.fromkeys(chosen)]


def _static(addresses: Sequence[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]) -> str:
    if all(address.version == 4 for address, _ in addresses):
        return "ipv4:" + ",".join(f"{address}:{port}" for address, port in addresses)
    # One scheme holds one family: IPv4 addresses go in as IPv4-mapped IPv6 ones (RFC 4291).
    mapped = [f"::ffff:{a}" if a.version == 4 else str(a) for a, _ in addresses]
    pairs = zip(mapped, addresses, strict=True)
    return "ipv6:" + ",".join(f"[{host}]:{port}" for host, (_, port) in pairs)


def proxy_hint(target: Target) -> str:
    """What the environment says of a proxy, for an error; empty where there is none.

    gRPC goes through `grpc_proxy`, `https_proxy` or `http_proxy`, whichever is set first, and not
    for the hosts of `no_grpc_proxy` or else `no_proxy`.
    """
    if target.loopback:
        return ""
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return ""
    excepted = next((os.environ[n] for n in ("no_grpc_proxy", "no_proxy") if n in os.environ), "")
    endings = tuple(end.strip().lower() for end in excepted.split(",") if end.strip())
    if all(host.lower().endswith(endings) for host in target.hosts):
        return ""
    where = os.environ[name].rpartition("@")[2]  # a user and password may stand before it
    return f"{name} is set to {where}; no_proxy={target.hosts[0]} goes past it"


class _Fork:
    """Whether gRPC's threads are there: a fork does not take them along."""

    started = False
    lost = False


def _after_fork_in_child() -> None:
    _Fork.lost = _Fork.started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def forked() -> bool:
    """Whether this process was forked from one in which a client had been used."""
    return _Fork.lost


def check_fork() -> None:
    """Say that a call would wait for ever, deadline or not, instead of waiting.

    Raises:
        RuntimeError: the process was forked from one in which a client had been used.
    """
    if _Fork.lost:
        raise RuntimeError(
            "this process was forked after guerdon.client had been used, which gRPC does not "
            "survive: start processes with the method 'spawn' or 'forkserver', or fork first"
        )


def open_channel(
    address: str, *, several: bool, tls: TLS | None, proxy: bool, max_reply_bytes: int
) -> grpc.aio.Channel:
    """A channel; must be called on the event loop that uses it.

    Args:
        address: as gRPC takes it.
        several: whether it is known to be more than one server.
        tls: encrypt.
        proxy: whether a proxy that the environment names is used.
        max_reply_bytes: the largest message that may come.
    """
    _Fork.started = True
    options = _options(several=several)
    options.append(("grpc.enable_http_proxy", int(proxy)))
    options.append(("grpc.max_receive_message_length", max_reply_bytes))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
        options.append(("grpc.default_authority", tls.server_name))
    authorities, key, certificate = read_files(tls)
    credentials = grpc.ssl_channel_credentials(authorities, key, certificate)
    return grpc.aio.secure_channel(address, credentials, options=options)


_PING_MS = 10_000
"""Between two pings while a call waits, and the longest that a ping's answer may take."""

_LEFT_OUT = {
    "interval": "5s",
    "baseEjectionTime": "15s",
    "maxEjectionTime": "60s",
    "maxEjectionPercent": 50,
    "failurePercentageEjection": {
        "threshold": 95,
        "enforcementPercentage": 100,
        "minimumHosts": 2,
        "requestVolume": 5,
    },
    "childPolicy": [{"round_robin": {}}],
}
"""A server of several on which all but a few calls fail for an interval is left out for a while,
as gRFC A50 says: it may answer pings and nothing else. One server alone never is."""


def _options(*, several: bool) -> list[tuple[str, Any]]:
    balancing = {"outlier_detection_experimental": _LEFT_OUT}
    config: dict[str, Any] = {"loadBalancingConfig": [balancing]}
    if several:
        # A server that is there but drains or loads is passed over too.
        config["healthCheckConfig"] = {"serviceName": ""}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_send_message_length", -1),
        # Our retries come quickly; gRPC's own default would not even reconnect for a second.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A peer that vanished or stands still is noticed while calls wait for it, whatever
        # its kernel acknowledges. The servers allow a ping every five seconds.
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PING_MS),
        ("grpc.http2.ping_timeout_ms", _PING_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def read_files(tls: TLS) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The authorities, the key and the certificate, each None where there is none.

    Raises:
        OSError: a file cannot be read.
    """
    authorities, key, certificate = (
        None if path is None else Path(path).read_bytes()
        for path in (tls.ca, tls.key, tls.certificate)
    )
    return authorities, key, certificate

"""The metrics that every service has, and their Prometheus text form."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from guerdon.serving.lifecycle import Lifecycle

SECONDS_BUCKETS: Sequence[float] = (
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180,
    300, 600,
)  # fmt: skip
"""Buckets for calls that draw completions: a twentieth of a second to ten minutes."""

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of the process, the interpreter and the garbage collector."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Declared:
    """Declares the metrics of a registry, all with one prefix before their names."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self._registry = registry
        self._prefix = prefix

    def counter(self, name: str, what: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows."""
        return Counter(f"{self._prefix}_{name}", what, labels, registry=self._registry)

    def gauge(self, name: str, what: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down."""
        return Gauge(f"{self._prefix}_{name}", what, labels, registry=self._registry)

    def histogram(
        self, name: str, what: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        """How many numbers fell into each bucket."""
        name = f"{self._prefix}_{name}"
        return Histogram(name, what, labels, buckets=buckets, registry=self._registry)


class ServiceMetrics:
    """Whether a service takes work, and what it will run out of.

    Args:
        certificate: the TLS certificate that it shows, if any.
    """

    def __init__(
        self, registry: CollectorRegistry, lifecycle: Lifecycle, certificate: Path | None
    ) -> None:
        declared = Declared(registry, "guerdon")
        counter, gauge = declared.counter, declared.gauge
        self.ready = gauge("ready", "1 while the server takes work: models loaded, not draining.")
        self.ready.set_function(lambda: float(lifecycle.ready))
        self.memory_limit = gauge(
            "memory_limit_bytes", "Memory of the container, else of the machine."
        )
        self.memory_limit.set_function(memory_limit)
        self.resident_memory = gauge(
            "resident_memory_bytes", "Memory of the server's process and of those that it started."
        )
        self.resident_memory.set_function(resident_memory)
        self.reloads = counter(
            "reloads",
            "Tokens and certificates that were read again, or failed to be.",
            ["what", "outcome"],
        )
        """`what` is tokens or tls, `outcome` is reloaded or failed."""
        self.certificate_expiry = gauge(
            "certificate_expiry_timestamp_seconds",
            "When the TLS certificate ends, in Unix time; +Inf without one.",
        )
        self.certificate_expiry.set_function(lambda: certificate_end(certificate))


def memory_limit() -> float:
    """Bytes that the process may use: the container's limit, else all memory of the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return float(machine)
    return float(machine if limit == "max" else min(int(limit), machine))


def resident_memory() -> float:
    """Bytes that this process and its descendants hold; what they share of files counts once.

    NaN where the system does not tell (it is Linux that does).
    """
    try:
        own, _ = _resident_pages(os.getpid())
        pages = own + sum(map(_own_pages, _descendants(os.getpid())))
    except OSError:
        return float("nan")
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _own_pages(pid: int) -> int:
    try:
        resident, shared = _resident_pages(pid)
    except OSError:  # it has ended meanwhile
        return 0
    return resident - shared


def _resident_pages(pid: int) -> tuple[int, int]:
    """A process's resident pages, and how many of them are of files or shared memory."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(resident), int(shared)


def _descendants(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, thread.read_text(encoding="ascii").split()):
                yield child
                yield from _descendants(child)


def certificate_end(certificate: Path | None) -> float:
    """When the first certificate of a PEM file ends, in Unix time; +Inf without a file.

    NaN where the file can't be read any more: no alert compares with that, and whoever reads the
    certificates anew says why.
    """
    if certificate is None:
        return float("inf")
    try:
        first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (OSError, ValueError):
        return float("nan")
    return first.not_valid_after_utc.timestamp()


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The metrics as Prometheus text, and its content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST

"""The process's Prometheus registry and its text form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of the process, the interpreter and the garbage collector."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The metrics as Prometheus text, and its content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST

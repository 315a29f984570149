"""The server that every service is: it listens, loads, serves, leaves, drains and stops."""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib.metadata
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import grpc
from fastapi import FastAPI
from prometheus_client import Counter

from guerdon.serving.access.callers import read_callers
from guerdon.serving.access.door import Door
from guerdon.serving.access.identity import Role
from guerdon.serving.config import ServerSettings
from guerdon.serving.credentials import warn_if_open
from guerdon.serving.errors import EngineDied
from guerdon.serving.http.app import new_app, new_operations_app
from guerdon.serving.http.errors import ErrorBody, native_error
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.metrics import ServiceMetrics, new_registry
from guerdon.serving.process.listening import Listener, Ports
from guerdon.serving.process.reloading import new_reloads

P = TypeVar("P", bound=Ports)


class Server(ABC, Generic[P]):
    """One service in this process. Make and run it on one event loop.

    A service's constructor makes its parts, and calls `_open` with the door and the names of
    what it serves.

    Raises:
        SettingsError: the settings cannot be served, or a file of them cannot be read.
    """

    title: ClassVar[str]
    """The service's name in the description of the HTTP side."""
    role: ClassVar[Role]
    """The role that callers of the service's main work need."""

    def __init__(self, config: ServerSettings) -> None:
        self._settings = config
        self.lifecycle = Lifecycle()
        self._callers = read_callers(config)
        self._prometheus = new_registry()
        self._common = ServiceMetrics(self._prometheus, self.lifecycle, config.tls_certificate)
        self._died = ""
        """Why the engine can compute no more; empty while it can."""

    def _new_door(self, refused: Counter) -> Door:
        return Door(self._callers, max_calls=self._settings.max_calls, refused=refused)

    def _open(
        self,
        door: Door,
        names: Sequence[str],
        roles: Mapping[str, Role | None],
        error_body: ErrorBody = native_error,
    ) -> FastAPI:
        """Make what listens; the HTTP side, to which the service adds its routes.

        Args:
            names: full names of all gRPC services.
            roles: what each path that takes calls needs; None for what any known caller may do.
            error_body: the JSON of errors that no route tells.
        """
        settings = self._settings
        self._listener = Listener(settings, names, door)
        self._app = new_app(
            self.title,
            importlib.metadata.version("guerdon"),
            self.lifecycle,
            None if settings.metrics_port >= 0 else self._prometheus,
            door=door,
            roles=roles,
            max_body=settings.max_body_bytes,
            error_body=error_body,
        )
        self._operations = new_operations_app(self.lifecycle, self._prometheus, door)
        self._reloads = new_reloads(settings, self._callers, self._listener, self._common.reloads)
        return self._app

    @abstractmethod
    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """The handlers of the gRPC services on the main port."""

    @abstractmethod
    async def listen(self) -> P:
        """Bind and serve all ports, those of `_listen` among them.

        Raises:
            OSError: a port cannot be bound.
        """

    @abstractmethod
    async def load(self) -> None:
        """Make ready for work; cancelled when the server is to leave before.

        Raises:
            ServiceError: what the settings name was refused; the text says why.
        """

    async def wait_dead(self) -> str:
        """Return when the engine can compute no more, with the reason; by default never."""
        await asyncio.Event().wait()
        raise AssertionError

    async def stop(self) -> None:
        """Close the ports; a service frees here what it holds, loaded or not."""
        await self._listener.stop()

    async def run(self, on_ready: Callable[[P], None], *, signals: bool = True) -> None:
        """Listen, load, serve until a signal, drain.

        Args:
            on_ready: called once, when work is accepted.
            signals: whether SIGTERM and SIGINT end it; else only `lifecycle.start_leaving` and
                `lifecycle.start_draining` do.

        Raises:
            OSError: a port cannot be bound.
            ServiceError: what is to be served was refused; the text says why.
            EngineDied: the engine died while serving.
        """
        if signals:
            self.lifecycle.handle_signals()
        self._reloads.start(signals=signals)
        await self._listener.set_serving(False)
        try:
            ports = await self.listen()
            loading = asyncio.create_task(self.load())
            leaving = asyncio.create_task(self.lifecycle.wait_leaving())
            await asyncio.wait({loading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                # A full collection walks all that is alive, and what torch and transformers
                # import makes that a pause of a quarter of a second for every call.
                gc.collect()
                gc.freeze()
                atexit.register(gc.unfreeze)  # or libraries tell of leaks at the end
                self.lifecycle.start_serving()
                await self._listener.set_serving(self.lifecycle.ready)
                on_ready(ports)
                await self._serve()
            loading.cancel()
        finally:
            self.lifecycle.start_draining()
            self._reloads.stop()
            await self.stop()
            logging.getLogger(type(self).__module__).info("stopped")
        if self._died:
            raise EngineDied(self._died)

    async def _listen(self) -> Ports:
        """Bind and serve gRPC, HTTP and metrics."""
        settings = self._settings
        token = self._callers.guards(self.role)
        warn_if_open(settings.host, tls=settings.tls is not None, token=token)
        return Ports(
            host=settings.host,
            port=await self._listener.start_grpc(
                tuple(self.handlers()), settings.host, settings.port
            ),
            http_port=await self._listener.start_http(self._app, token=token),
            metrics_port=await self._listener.start_metrics(self._operations),
        )

    async def _serve(self) -> None:
        """Wait for a signal, then leave and drain; all of it is cut short when the engine dies."""
        dying = asyncio.create_task(self.wait_dead())

        async def unless_dead(work: Coroutine[Any, Any, object]) -> None:
            task = asyncio.create_task(work)
            await asyncio.wait({task, dying}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()

        await unless_dead(self.lifecycle.wait_leaving())
        await self._listener.set_serving(False)
        await unless_dead(self.lifecycle.leave(self._settings.lame_duck))
        self.lifecycle.start_draining()
        await unless_dead(self.lifecycle.wait_idle(self._settings.drain_grace))
        if dying.done():
            self._died = dying.result()
        dying.cancel()

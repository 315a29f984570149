"""`ModelAdminService`: load, unload, name and swap models while the server runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from guerdon.reward.counting import ScoringCalls
from guerdon.reward.models.allowed_sources import AllowedSources
from guerdon.reward.models.registry import Registry
from guerdon.reward.models.revision import Revision
from guerdon.reward.types import PriorityClass
from guerdon.reward.wire import convert
from guerdon.serving.access import audit
from guerdon.serving.access.identity import Role
from guerdon.serving.wire.handlers import Context, M, call_deadline, decode
from guerdon.v1 import admin_pb2, reward_pb2

SERVICE = admin_pb2.DESCRIPTOR.services_by_name["ModelAdminService"]
ROLES: Mapping[str, Role | None] = {method.name: Role.ADMIN for method in SERVICE.methods}
"""What a caller of each method needs."""


class ModelAdminService:
    """Implements every RPC of `guerdon.v1.ModelAdminService`."""

    def __init__(self, registry: Registry, sources: AllowedSources, calls: ScoringCalls) -> None:
        self._registry = registry
        self._sources = sources
        self._calls = calls

    async def LoadModel(self, data: bytes, context: Context) -> admin_pb2.LoadModelResponse:
        """Load a checkpoint; other models keep serving meanwhile."""
        with self._accept(admin_pb2.LoadModelRequest, data, context) as request:
            path = self._sources.check(request.path) if request.path else ""
            revision = await self._registry.load(request.name, path, promote=request.promote)
            return admin_pb2.LoadModelResponse(model=self._info(revision))

    async def UnloadModel(self, data: bytes, context: Context) -> admin_pb2.UnloadModelResponse:
        """Unload revisions; the reply comes when their work has finished."""
        with self._accept(admin_pb2.UnloadModelRequest, data, context) as request:
            revisions = await self._registry.unload(request.name, request.revision)
            return admin_pb2.UnloadModelResponse(revisions=revisions)

    async def SetAlias(self, data: bytes, context: Context) -> admin_pb2.SetAliasResponse:
        """Point an alias at a name."""
        with self._accept(admin_pb2.SetAliasRequest, data, context) as request:
            self._registry.set_alias(request.alias, request.name)
            return admin_pb2.SetAliasResponse()

    async def DeleteAlias(self, data: bytes, context: Context) -> admin_pb2.DeleteAliasResponse:
        """Remove an alias."""
        with self._accept(admin_pb2.DeleteAliasRequest, data, context) as request:
            self._registry.delete_alias(request.alias)
            return admin_pb2.DeleteAliasResponse()

    async def PromoteModel(self, data: bytes, context: Context) -> admin_pb2.PromoteModelResponse:
        """Swap the revision that a name serves."""
        with self._accept(admin_pb2.PromoteModelRequest, data, context) as request:
            revision, previous = self._registry.promote(request.name, request.revision)
            if request.unload_previous and previous != revision.info.revision:
                self._registry.retire_later(request.name, previous)
            return admin_pb2.PromoteModelResponse(
                model=self._info(revision), previous_revision=previous
            )

    @contextmanager
    def _accept(self, kind: type[M], data: bytes, context: Context) -> Iterator[M]:
        """The request of a call that is counted, however it ends."""
        method = kind.DESCRIPTOR.name.removesuffix("Request")
        with self._calls.track(method, call_deadline(context)) as call:
            self._calls.lifecycle.check_accepting()
            request = decode(kind, data)
            asked = getattr(request, "name", "")  # DeleteAliasRequest has none
            call.asks(asked, PriorityClass.ONLINE)
            audit.note(**{field.name: str(value) for field, value in request.ListFields()})
            yield request

    def _info(self, revision: Revision) -> reward_pb2.ModelInfo:
        return convert.model_info(
            revision.info,
            current=revision.current,
            aliases=self._registry.aliases(revision.info.name),
        )

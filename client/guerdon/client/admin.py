"""The asynchronous client of model administration.

Loading, unloading and promoting are not repeated when they fail: the client cannot know
whether the server did them. Setting and deleting an alias comes to the same when it is done
twice, but deleting twice ends in NOT_FOUND, so of these only setting is tried again.
"""

# ruff: noqa: ASYNC109 - the timeout is the RPC's deadline, which travels to the server
from __future__ import annotations

from guerdon.client import _wire
from guerdon.client._connection import UNSET, Unset
from guerdon.client.aio import AsyncClient
from guerdon.client.types import ModelInfo, Promotion
from guerdon.v1 import admin_pb2, admin_pb2_grpc


class AsyncAdminClient(AsyncClient):
    """Loads, names and swaps models on a running server.

    The arguments are those of `AsyncClient`; `token` is the admin token. Give it one server: behind
    a balancer, nobody knows which of them changed. Loading may take minutes: pass `timeout`.
    """

    async def load_model(
        self, name: str, path: str, *, promote: bool = False, timeout: float | Unset | None = UNSET
    ) -> ModelInfo:
        """Load a checkpoint as a revision of a model.

        Args:
            name: to serve it under.
            path: a folder on the server, or a model's name.
            promote: serve it at once; the first revision of a name always is.

        Raises:
            FailedPrecondition: the checkpoint was refused; the message says why.
            NotFound: there is no such path.
        """
        request = admin_pb2.LoadModelRequest(name=name, path=path, promote=promote)
        deadline = self._connection.deadline(timeout)
        reply = await self._connection.call_once((await self._stub()).LoadModel, request, deadline)
        return _wire.model_info(reply.model)

    async def unload_model(
        self, name: str, revision: str = "", *, timeout: float | Unset | None = UNSET
    ) -> list[str]:
        """Unload a revision, or all of them, when the accepted work is done.

        Returns:
            The revisions that were unloaded.
        """
        request = admin_pb2.UnloadModelRequest(name=name, revision=revision)
        deadline = self._connection.deadline(timeout)
        stub = await self._stub()
        reply = await self._connection.call_once(stub.UnloadModel, request, deadline)
        return list(reply.revisions)

    async def set_alias(
        self, alias: str, name: str, *, timeout: float | Unset | None = UNSET
    ) -> None:
        """Point an alias at a model's name."""
        request = admin_pb2.SetAliasRequest(alias=alias, name=name)
        deadline = self._connection.deadline(timeout)
        await self._connection.call((await self._stub()).SetAlias, request, deadline)

    async def delete_alias(self, alias: str, *, timeout: float | Unset | None = UNSET) -> None:
        """Remove an alias."""
        request = admin_pb2.DeleteAliasRequest(alias=alias)
        deadline = self._connection.deadline(timeout)
        await self._connection.call_once((await self._stub()).DeleteAlias, request, deadline)

    async def promote_model(
        self,
        name: str,
        revision: str,
        *,
        unload_previous: bool = False,
        timeout: float | Unset | None = UNSET,
    ) -> Promotion:
        """Make a loaded revision the one that its name serves.

        Args:
            name: the model's name.
            revision: the revision, or at least its first 8 characters.
            unload_previous: unload the former revision when its work has finished.
        """
        request = admin_pb2.PromoteModelRequest(
            name=name, revision=revision, unload_previous=unload_previous
        )
        deadline = self._connection.deadline(timeout)
        stub = await self._stub()
        reply = await self._connection.call_once(stub.PromoteModel, request, deadline)
        return Promotion(_wire.model_info(reply.model), reply.previous_revision)

    async def _stub(self) -> admin_pb2_grpc.ModelAdminServiceAsyncStub:
        return admin_pb2_grpc.ModelAdminServiceStub(await self._connection.channel())

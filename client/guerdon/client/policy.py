"""The asynchronous client of the policy sampler."""

# ruff: noqa: ASYNC109 - the timeout is the RPC's deadline, which travels to the server
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

import grpc

from guerdon.client import _policy_wire as wire
from guerdon.client._connection import UNSET, Unset, being_cancelled
from guerdon.client._retry import Backoff, Deadline
from guerdon.client._update_steps import CHUNK_BYTES, Source, UpdateSteps
from guerdon.client.aio import AsyncClient
from guerdon.client.config import MAX_REPLY_BYTES, check_number
from guerdon.client.errors import GuerdonError, Internal, ServerStatus
from guerdon.client.policy_types import (
    Canary,
    Completion,
    CompletionProgress,
    GenerateItem,
    PolicyInfo,
    TensorSpec,
    WeightUpdate,
)
from guerdon.v1 import policy_pb2, policy_pb2_grpc


class AsyncPolicyClient(AsyncClient):
    """Draws completions from a policy sampler, and gives it new weights.

        async with AsyncPolicyClient("localhost:50052") as policy:
            async for completion in policy.generate([GenerateItem("What is rain?", n=4)],
                                                    max_tokens=64, return_text=True):
                print(completion.text)

    The arguments are those of `AsyncClient`. Every method raises `GuerdonError`.
    """

    async def generate(
        self,
        items: Sequence[GenerateItem],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop_token_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        min_version: int = 0,
        return_text: bool = False,
        skip_special_tokens: bool = False,
        add_special_tokens: bool = False,
        continues_text: bool = False,
        on_progress: Callable[[CompletionProgress], None] | None = None,
        timeout: float | Unset | None = UNSET,
    ) -> AsyncGenerator[Completion, None]:
        """Completions as they finish, in any order; all of them, or an error.

        When the sampler breaks off, what has not come is asked for again. An item with a seed is
        asked for whole, and what had come is left out; one without goes on with as many draws as
        are missing, numbered on. Short completions come first, so the latter favours them a
        little: where that matters, as in training, set seeds, or draw the whole anew yourself
        (`Retry(attempts=1)`).

        Args:
            items: prompts, each with its number of completions.
            max_tokens: most tokens of a completion.
            temperature: 0 takes the likeliest token each time.
            top_p: keep the likeliest tokens of this mass; less than 1 biases importance ratios.
            top_k: keep so many likeliest tokens; 0 keeps all.
            stop_token_ids: end a completion, beside the model's own end tokens.
            stop: texts that end a completion, and are no part of its text.
            ignore_eos: do not end at the model's own end tokens.
            min_version: raise `FailedPrecondition` if the weights are older.
            return_text: fill in `Completion.text`.
            skip_special_tokens: leave special tokens out of texts.
            add_special_tokens: begin prompts of `FormattedText` with the tokens with which the
                policy's tokenizer begins a text, such as BOS.
            continues_text: each `Completion.text` is what follows the prompt's text, with the
                space that it begins with.
            on_progress: called while completions are waited for, with the tokens drawn so far of
                each that has not come: 0 of all at first, then of those that have grown. What is
                drawn anew after a break begins at 0 again. An update of the weights that is
                refused then raises `Aborted` where what it had drawn is drawn anew otherwise.
            timeout: seconds for all.
        """
        options = wire.options(
            max_tokens, temperature, top_p, top_k, stop_token_ids, stop, ignore_eos=ignore_eos
        )
        check_number("min_version", min_version, 0, 2**63 - 1, whole=True)
        template = policy_pb2.GenerateRequest(
            options=options,
            min_version=min_version,
            return_text=return_text,
            skip_special_tokens=skip_special_tokens,
            add_special_tokens=add_special_tokens,
            continues_text=continues_text,
            report_progress=on_progress is not None,
        )
        pending = wire.Pending(items)
        connection = self._connection
        deadline = connection.deadline(timeout)
        backoff = Backoff(connection.retry, connection.clock, deadline)
        begun, last = connection.clock.now(), None
        while not pending.complete:
            request = pending.request(template)
            remaining = deadline.remaining()
            if remaining is not None and remaining <= 0:
                raise deadline.expired(last) from last
            try:
                async with contextlib.aclosing(self._stream(request, remaining)) as stream:
                    async for reply in stream:
                        if on_progress is not None and reply.progress:
                            for each in pending.progress(reply, max_tokens):
                                on_progress(each)
                            continue
                        completion = pending.take(reply)
                        if completion is not None:
                            backoff.reset()
                            begun, last = connection.clock.now(), None
                            yield completion
                pending.check_complete()
            except GuerdonError as error:
                if pending.complete and not isinstance(error, Internal):
                    return  # it broke off with nothing left to send
                delay = backoff.next(error)
                if delay is None:
                    raise
                connection.note_waiting(error, begun, deadline)
                last = error
                await connection.clock.sleep(delay)

    async def _stream(
        self, request: policy_pb2.GenerateRequest, remaining: float | None
    ) -> AsyncGenerator[policy_pb2.GenerateResponse, None]:
        stub = await self._stub()
        call = stub.Generate(request, timeout=remaining, metadata=self._connection.metadata)
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as exc:
            raise self._connection.error(exc) from exc
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise self._connection.ended() from None
        finally:
            call.cancel()

    async def update_weights(
        self,
        version: int,
        source: Source,
        *,
        specs: Sequence[TensorSpec] = (),
        canaries: Sequence[Canary] = (),
        mean_tolerance: float = 0.0,
        reset: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        timeout: float | Unset | None = UNSET,
    ) -> WeightUpdate:
        """Replace the weights: all or nothing.

        It is never repeated by itself: when the answer is lost, `get_policy` tells by version
        and checksum whether the update was taken.

        Args:
            version: of the new weights; greater than the one that serves, unless `reset`.
            source: the bytes of each tensor of `specs`, in their order (anything with the buffer
                protocol, little-endian and contiguous); or where they are. Tensors are taken one
                at a time, all in one thread of their own; one is held in memory.
            specs: every tensor of the checkpoint; may be empty for a shared path.
            canaries: must get the given log-probabilities, or the update is refused.
            mean_tolerance: largest mean difference; 0 is the sampler's default.
            reset: begin a new history: any version is taken, and generation in flight is aborted.
            chunk_bytes: of a message.
            timeout: seconds for all.

        Raises:
            FailedPrecondition: it is refused, and the weights from before serve.
            Aborted: another update is under way.
            Exception: whatever taking the tensors raised; the weights from before serve.
        """
        check_number("chunk_bytes", chunk_bytes, 1, MAX_REPLY_BYTES, whole=True)
        check_number("mean_tolerance", mean_tolerance, 0, 1e9)
        deadline = self._connection.deadline(timeout)
        begin = wire.begin(version, source, specs, reset=reset)
        commit = policy_pb2.CommitUpdate(
            canaries=[wire.canary(c) for c in canaries], mean_tolerance=mean_tolerance
        )
        steps = UpdateSteps(begin, source, specs, commit, chunk_bytes)
        stub = await self._stub()
        call = stub.UpdateWeights(
            steps.requests(), timeout=deadline.remaining(), metadata=self._connection.metadata
        )
        status = ServerStatus(call)
        try:
            return wire.update(await call)
        except grpc.aio.AioRpcError as exc:
            if steps.fault is not None:
                raise steps.fault from exc
            raise self._connection.error(status.error(exc)) from exc
        except asyncio.CancelledError:
            if steps.fault is not None:
                raise steps.fault from None
            if being_cancelled():
                raise
            raise self._connection.ended() from None
        finally:
            call.cancel()

    async def get_policy(self, *, timeout: float | Unset | None = UNSET) -> PolicyInfo:
        """The policy, its version and its load."""
        request, deadline = policy_pb2.GetPolicyRequest(), self._connection.deadline(timeout)
        stub = await self._stub(deadline)
        reply = await self._connection.call(stub.GetPolicy, request, deadline)
        return wire.policy_info(reply)

    async def _stub(
        self, deadline: Deadline | None = None
    ) -> policy_pb2_grpc.PolicyServiceAsyncStub:
        return policy_pb2_grpc.PolicyServiceStub(await self._connection.channel(deadline))

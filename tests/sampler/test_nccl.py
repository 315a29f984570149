"""Updates by NCCL, as far as they go without a GPU.

Both ends run over vLLM's own weight-transfer engines and rendezvous, in two processes, with the
real client and service between them; a communicator for CPUs takes NCCL's place. On two GPUs the
last test runs the whole.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.support import sampler_service
from tests.support.formula_engine import MODEL, FormulaEngine
from tests.support.sampler import running_sampler
from tests.support.sampler_service import Harness, start_sampler

from guerdon.client import GuerdonError
from guerdon.client.errors import FailedPrecondition
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Canary, TensorSpec
from guerdon.sampler import types
from guerdon.sampler.config import SamplerConfig
from guerdon.sampler.engine.nccl import NcclReceiver, NcclStaging, check_nccl
from guerdon.sampler.engine.staging import StagedFile, StagingArea
from guerdon.sampler.loading import load_policy
from guerdon.sampler.types import NcclSource, PublishOrder, PublishResult
from guerdon.serving.errors import UpdateRefused
from guerdon.settings import SettingsError
from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.services.nccl import update_by_nccl
from guerdon.trainer.common.services.weights import Weights

ROOT = Path(__file__).parents[2]
SPECS = [TensorSpec(spec.name, spec.dtype, spec.shape) for spec in MODEL]
SOURCE = NcclSource("127.0.0.1", 1, world_size=2, rank_offset=1)


class ReceivingEngine(FormulaEngine):
    """Receives as the engine on vLLM does, and keeps the tensors."""

    def __init__(self, **variables: str) -> None:
        super().__init__()
        self.area = StagingArea()
        given = [f"{name}={value}" for name, value in {"PYTHONPATH": ROOT, **variables}.items()]
        command = ("env", *given, sys.executable, "-m", "tests.support.nccl_cpu")
        self.receiver = NcclReceiver(command, seconds=60.0)
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def process(self) -> int | None:
        return None if self.receiver._process is None else self.receiver._process.pid

    async def stage_nccl(
        self, source: NcclSource, specs: Sequence[types.TensorSpec]
    ) -> NcclStaging:
        assert list(specs) == list(MODEL)
        return await self.receiver.stage(self.area.new(specs), source, specs)

    async def publish(self, staged: object, order: PublishOrder) -> PublishResult:
        assert isinstance(staged, StagedFile)
        self.tensors = load_file(staged.path)
        self.version, self.sha256 = order.version, staged.sha256
        return PublishResult(
            canary_tokens=0,
            canary_mean_difference=0.0,
            canary_max_difference=0.0,
            load_seconds=0.0,
            canary_seconds=0.0,
            pause_seconds=0.0,
        )

    async def shutdown(self) -> None:
        await super().shutdown()
        await self.receiver.close()
        self.area.close()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's end in this process."""
    pytest.importorskip("vllm")
    from tests.support.nccl_cpu import put_in_place

    from guerdon.trainer.common.services import nccl

    put_in_place(monkeypatch.setattr)
    monkeypatch.setattr(nccl, "_device", lambda _weights: "cpu")


@pytest.fixture
async def served(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Harness]:
    monkeypatch.setattr(sampler_service, "FormulaEngine", ReceivingEngine)
    async with start_sampler(nccl=True) as harness:
        yield harness


@pytest.fixture
async def client(served: Harness) -> AsyncIterator[AsyncPolicyClient]:
    async with AsyncPolicyClient(f"127.0.0.1:{served.ports.port}", timeout=100.0) as client:
        yield client


def tensors(version: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(version)
    wide = torch.randn(2, 4, generator=generator).T  # not contiguous
    return [wide, torch.randn(3, generator=generator).to(torch.bfloat16)]


def weights(version: int) -> Weights:
    return Weights(version, SPECS, lambda: tensors(version), ())


async def update(served: Harness, client: AsyncPolicyClient, given: Weights, **how: Any) -> Any:
    return await update_by_nccl(client, given, f"127.0.0.1:{served.ports.port}", **how)


def engine_of(served: Harness) -> ReceivingEngine:
    assert isinstance(served.engine, ReceivingEngine)
    return served.engine


def check_arrived(engine: ReceivingEngine, version: int) -> None:
    assert engine.version == version
    for spec, sent in zip(MODEL, tensors(version), strict=True):
        found = engine.tensors[spec.name]
        assert found.dtype == sent.dtype
        assert torch.equal(found, sent)


async def no_sender_left() -> None:
    async with asyncio.timeout(20):
        while any(thread.name == "nccl" for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_the_trainers_tensors_arrive_whole_by_vllms_own_engines(
    served: Harness, client: AsyncPolicyClient
) -> None:
    engine = engine_of(served)
    assert (await client.get_policy()).nccl
    answer = await update(served, client, weights(1))
    assert answer.version == 1
    check_arrived(engine, 1)
    process = engine.process
    # The next one makes a group anew, in the process that has vLLM loaded.
    await update(served, client, weights(2))
    check_arrived(engine, 2)
    assert engine.process == process
    await update(served, client, weights(1), reset=True)
    check_arrived(engine, 1)
    await no_sender_left()


@pytest.mark.slow
async def test_a_refusal_leaves_no_sender_in_nccl(
    served: Harness, client: AsyncPolicyClient
) -> None:
    with pytest.raises(GuerdonError, match="version"):
        await update(served, client, weights(0))
    await no_sender_left()
    assert engine_of(served).process is None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies", "dtype"])
async def test_a_broadcast_that_breaks_off_changes_nothing(
    served: Harness, client: AsyncPolicyClient, fault: str
) -> None:
    def wrong() -> Iterator[torch.Tensor]:
        first, second = tensors(1)
        yield first
        if fault == "dies":
            raise RuntimeError("the trainer is out of memory")
        yield second.float()

    engine = engine_of(served)
    with pytest.raises(TrainingError, match="the broadcast by NCCL failed"):
        await update(served, client, Weights(1, SPECS, wrong, ()))
    async with asyncio.timeout(20):
        while engine.process is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert engine.version == 0
    assert not list(engine.area._folders[0].glob("*.safetensors"))
    await no_sender_left()
    if fault == "dies":
        await update(served, client, weights(1))
        check_arrived(engine, 1)


@pytest.mark.slow
async def test_a_trainer_that_leaves_frees_the_receiver(
    served: Harness, client: AsyncPolicyClient
) -> None:
    hold = threading.Event()

    def held() -> Iterator[torch.Tensor]:
        first, second = tensors(1)
        yield first
        hold.wait(60)
        yield second

    engine = engine_of(served)
    leaving = asyncio.create_task(update(served, client, Weights(1, SPECS, held, ())))
    async with asyncio.timeout(60):
        while not list(engine.area._folders[0].glob("*.safetensors")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(20):
        while engine.process is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    hold.set()
    assert engine.version == 0
    assert not list(engine.area._folders[0].glob("*.safetensors"))


@pytest.mark.slow
async def test_a_sampler_without_the_library_says_so(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sampler_service, "FormulaEngine", lambda: ReceivingEngine(NCCL_CPU="absent")
    )
    async with (
        start_sampler(nccl=True) as served,
        AsyncPolicyClient(f"127.0.0.1:{served.ports.port}", timeout=100.0) as client,
    ):
        with pytest.raises(FailedPrecondition, match=r"could not join .* no NCCL library"):
            await update(served, client, weights(1))
        assert served.engine.version == 0


async def test_a_receiver_that_does_not_answer_is_given_up() -> None:
    area = StagingArea()
    receiver = NcclReceiver((sys.executable, "-c", "import time; time.sleep(60)"), seconds=0.5)
    staging = await receiver.stage(area.new(MODEL), SOURCE, MODEL)
    with pytest.raises(UpdateRefused, match=r"did not end within 0\.5 s"):
        await staging.finish(b"")
    process = receiver._process
    assert process is not None
    staging.close()
    staging.close()
    await receiver.close()
    assert process.returncode == -9
    area.close()


class SlowToAsk(NcclReceiver):
    """Asks only when the process has ended, as on a busy machine."""

    async def _running(self) -> asyncio.subprocess.Process:
        process = await super()._running()
        assert process.stdin is not None
        while not process.stdin.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return process


@pytest.mark.parametrize("kind", [NcclReceiver, SlowToAsk])
async def test_a_receiver_that_ends_is_started_anew(kind: type[NcclReceiver]) -> None:
    area = StagingArea()
    receiver = kind((sys.executable, "-c", "print('no route to host')"))
    for _ in range(2):
        staging = await receiver.stage(area.new(MODEL), SOURCE, MODEL)
        with pytest.raises(UpdateRefused, match=r"could not join .* no route to host"):
            await staging.finish(b"")
        staging.close()
    await receiver.close()
    area.close()


async def test_a_receiver_that_ended_between_two_updates_is_replaced() -> None:
    """A process that answers once and ends: the second update gets a new one, not a refusal."""
    area, answer = StagingArea(), "import sys; print('joined', flush=True); sys.stdin.readline()"
    receiver = NcclReceiver((sys.executable, "-c", answer))
    for _ in range(2):
        staging = await receiver.stage(area.new([]), SOURCE, [])
        await staging.finish(b"")
        staging.close()
        kept = receiver._process
        assert kept is not None
        assert kept.stdin is not None
        async with asyncio.timeout(60):
            while not kept.stdin.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await receiver.close()
    area.close()


async def test_a_receiver_that_cannot_be_started_is_a_refusal() -> None:
    area = StagingArea()
    receiver = NcclReceiver(("/no/such/program",))
    with pytest.raises(UpdateRefused, match=r"the process that receives by NCCL: .*No such file"):
        await receiver.stage(area.new(MODEL), SOURCE, MODEL)
    assert not [f for folder in area._folders for f in folder.glob("*.safetensors")]
    await receiver.close()
    area.close()


@pytest.mark.parametrize(
    ("gpu", "source", "says"),
    [
        (False, SOURCE, "no CUDA GPU"),
        (True, NcclSource("a", 1, world_size=3, rank_offset=1), "rank 1 of 3"),
        (True, NcclSource("a", 1, world_size=4, rank_offset=2), "rank 2 of 4"),
    ],
)
def test_what_cannot_be_received_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, source: NcclSource, says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(UpdateRefused, match=says):
        check_nccl(source)
    if gpu:
        check_nccl(SOURCE)


def test_the_command_wants_a_gpu_for_it(tied_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="nccl is set, and this machine has no CUDA GPU"):
        load_policy(SamplerConfig(model=str(tied_policy), nccl=True))


def test_the_calls_fit_vllms_own_signatures() -> None:
    """Where the CPU's communicator and our stand-ins could hide that they don't."""
    pytest.importorskip("vllm")
    from tests.support.nccl_cpu import StoreCommunicator
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.weight_transfer import base, nccl_common, nccl_engine

    from guerdon.sampler.engine import nccl_receive
    from guerdon.trainer.common.services.nccl import SilentClient
    from guerdon.trainer.common.services.nccl_source import NamedTensors

    init = nccl_common.NCCLWeightTransferInitInfo(**nccl_receive.init_info(SOURCE))
    assert (init.rank_offset, init.world_size, init.packed) == (1, 2, False)
    told = nccl_engine.NCCLWeightTransferUpdateInfo(**nccl_receive.update_info(MODEL))
    assert told.names == [spec.name for spec in MODEL]
    assert told.shapes == [[4, 2], [3]]
    assert [getattr(torch, name) for name in told.dtype_names] == [torch.float32, torch.bfloat16]
    # The receiver is the one worker, so its rank is 0 + rank_offset.
    engine = nccl_receive.new_engine(nccl_receive.WeightWriter(sys.stdout.buffer), "cpu")
    config = engine.parallel_config
    assert config.data_parallel_index * config.world_size + config.rank + init.rank_offset == 1
    # The two ends agree without being told: one tensor at a time.
    assert nccl_engine.NCCLTrainerInitInfo("a", 1, 2, packed=False, rank=0).is_sender
    assert isinstance(SilentClient(), base.VLLMWeightSyncClient)
    for name in ("__init__", "broadcast", "destroy"):
        real = inspect.signature(getattr(PyNcclCommunicator, name)).parameters
        ours = inspect.signature(getattr(StoreCommunicator, name)).parameters
        assert list(real) == list(ours), name
    for name in ("update_weights", "init_weight_transfer_engine", "finish_weight_update"):
        real = inspect.signature(getattr(base.VLLMWeightSyncClient, name)).parameters
        assert list(real) == list(inspect.signature(getattr(SilentClient, name)).parameters), name
    source = NamedTensors(weights(1), "cpu")
    assert [m.name for m in source.metadata()] == [name for name, _ in source]
    assert all(tensor.is_contiguous() for _, tensor in source)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
async def test_on_two_gpus(tied_policy: Path) -> None:
    """The whole, with NCCL. Nobody has run it yet."""
    pytest.importorskip("vllm")
    from tests.support.engine import Plain, drawn, specs_of

    begun = load_file(tied_policy / "model.safetensors")
    new = drawn(begun, seed=31)
    ids = list(range(10, 40))
    canary = Canary(ids, Plain(tied_policy).logprobs(new, ids).tolist())
    specs = [TensorSpec(s.name, s.dtype, s.shape) for s in specs_of(new)]
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    flags = {"dtype": "float32", "nccl": True, "gpu_memory_utilization": 0.5}
    with running_sampler(tied_policy, environment=environment, **flags) as sampler:
        on_device = [tensor.to("cuda:1") for tensor in new.values()]
        async with AsyncPolicyClient(sampler.address, timeout=120.0) as client:
            for version in (1, 2):
                given = Weights(version, specs, lambda: on_device, [canary])
                answer = await update_by_nccl(client, given, sampler.address, mean_tolerance=0.01)
                assert answer.version == version
                assert np.isfinite(answer.canary_max_difference)

"""The real command in a process of its own, with a real (tiny) checkpoint."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.server import RunningServer, running_server, serve_command
from tests.support.tiny import tiny_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guerdon.v1 import admin_pb2, admin_pb2_grpc, reward_pb2, reward_pb2_grpc

from .messages import score_request

TEXTS = ("The capital of France is", " Paris.", " Rome, I am sorry.")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def formatted(asked: str, *answers: str) -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(
        prompt={"formatted_text": asked},  # type: ignore[arg-type]
        responses=[{"text": answer} for answer in answers],  # type: ignore[misc]
    )


def plain_scores(folder: Path, asked: str, *answers: str) -> list[float]:
    """One at a time, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for answer in answers:
        ids = tokenizer(asked, add_special_tokens=False).input_ids
        ids += tokenizer(answer, add_special_tokens=False).input_ids
        with torch.inference_mode():
            scores.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    return scores


@pytest.mark.slow
def test_scores_of_a_real_checkpoint_and_a_clean_end(checkpoint: Path) -> None:
    with running_server({"m": checkpoint}, forked=False, dtype="float32") as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            reply = stub.Score(score_request(formatted(*TEXTS)), timeout=30)
        found = [score.score for score in reply.items[0].scores]
        assert found == pytest.approx(plain_scores(checkpoint, *TEXTS), abs=1e-4)
        body = {
            "model": "m",
            "items": [{"prompt": {"formatted_text": TEXTS[0]}, "responses": list(TEXTS[1:])}],
        }
        answer = httpx.post(f"{server.url}/v1/score", json=body).json()
        assert [s["score"] for s in answer["items"][0]["scores"]] == pytest.approx(found, abs=1e-5)
        assert server.stop() == 0
        assert "ready: m; gRPC on 127.0.0.1:" in server.log()
        assert "Traceback" not in server.log()


def score_in_threads(address: str, count: int) -> list[Future[reward_pb2.ScoreResponse]]:
    pool = ThreadPoolExecutor(count)
    request = score_request(*[formatted(f"{TEXTS[0]} {k}", *TEXTS[1:] * 4) for k in range(200)])

    def one() -> reward_pb2.ScoreResponse:
        with grpc.insecure_channel(address) as channel:
            return reward_pb2_grpc.RewardServiceStub(channel).Score(request, timeout=60)

    futures = [pool.submit(one) for _ in range(count)]
    pool.shutdown(wait=False)
    return futures


def in_flight(server: RunningServer) -> int:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(r'guerdon_requests_in_flight\{method="Score"\} (\d+)', text)
    return int(found[1]) if found else 0


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted(checkpoint: Path) -> None:
    with running_server(
        {"m": checkpoint}, forked=False, dtype="float32", max_batch_tokens=64
    ) as server:
        accepted = score_in_threads(server.address, 4)
        while in_flight(server) < 4:
            assert not all(call.done() for call in accepted), "too fast to be caught in flight"
        server.process.send_signal(signal.SIGTERM)
        replies = [call.result(timeout=60) for call in accepted]
        assert all(len(reply.items) == 200 for reply in replies)
        assert server.process.wait(30) == 0
        assert re.search(r"SIGTERM: leaving, 4 calls being served", server.log())
        assert "stopped" in server.log()


@pytest.mark.slow
def test_a_second_signal_exits_at_once(checkpoint: Path) -> None:
    with running_server({"m": checkpoint}, forked=False, max_batch_tokens=64, threads=1) as server:
        accepted = score_in_threads(server.address, 4)
        while in_flight(server) < 4:
            assert not all(call.done() for call in accepted), "too fast to be caught in flight"
        server.process.send_signal(signal.SIGTERM)
        while "leaving" not in server.log():
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        # A first signal alone would have had all calls answered.
        assert server.process.wait(60) == 128 + signal.SIGTERM
        outcomes = [call.exception(timeout=30) for call in accepted]
        assert any(isinstance(outcome, grpc.RpcError) for outcome in outcomes)


@pytest.mark.slow
def test_sighup_reads_tokens_again_and_a_lame_duck_still_answers(
    checkpoint: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "token"
    tokens.write_text("first")
    with (
        running_server({"m": checkpoint}, forked=False, token_file=tokens, lame_duck=600) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        rewards = reward_pb2_grpc.RewardServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)

        def score(token: str) -> grpc.StatusCode:
            """The outcome of a call with the token."""
            metadata = (("authorization", f"Bearer {token}"),)
            try:
                rewards.Score(score_request(formatted(*TEXTS)), metadata=metadata, timeout=60)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert score("first") is grpc.StatusCode.OK
        tokens.write_text("second")
        server.process.send_signal(signal.SIGHUP)
        while score("second") is grpc.StatusCode.UNAUTHENTICATED:
            assert server.process.poll() is None, server.log()
        assert score("second") is grpc.StatusCode.OK
        assert score("first") is grpc.StatusCode.UNAUTHENTICATED
        server.process.send_signal(signal.SIGTERM)
        serving = health_pb2.HealthCheckResponse.SERVING
        while health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == serving:
            assert server.process.poll() is None, server.log()
        assert score("second") is grpc.StatusCode.OK, "until load balancers have looked away"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_real_swap_over_tls_with_tokens(checkpoint: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            key,
            "-out",
            certificate,
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ],
        check=True,
        capture_output=True,
    )
    second = tiny_checkpoint(tmp_path / "second", "llama", seed=7)
    tokens = {"GUERDON_TOKEN": "for-scores", "GUERDON_ADMIN_TOKEN": "for-models"}
    with running_server(
        {"m": checkpoint},
        forked=False,
        environment=tokens,
        dtype="float32",
        admin_port=-1,
        tls_certificate=certificate,
        tls_key=key,
        host="0.0.0.0",
        load_from=tmp_path,
    ) as server:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        scores = (("authorization", "Bearer for-scores"),)
        models = (("authorization", "Bearer for-models"),)
        with grpc.secure_channel(f"localhost:{server.port}", trusted) as channel:
            rewards = reward_pb2_grpc.RewardServiceStub(channel)
            admin = admin_pb2_grpc.ModelAdminServiceStub(channel)
            request = score_request(formatted(*TEXTS))
            before = rewards.Score(request, metadata=scores, timeout=30)
            load = admin_pb2.LoadModelRequest(name="m", path=str(second), promote=True)
            with pytest.raises(grpc.RpcError) as caught:
                admin.LoadModel(load, metadata=scores, timeout=60)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            admin.LoadModel(load, metadata=models, timeout=60)
            after = rewards.Score(request, metadata=scores, timeout=30)
        assert before.info.revision != after.info.revision
        found = [score.score for score in after.items[0].scores]
        assert found == pytest.approx(plain_scores(second, *TEXTS), abs=1e-4)
        verified = ssl.create_default_context(cafile=str(certificate))
        ready = httpx.get(f"https://localhost:{server.http_port}/readyz", verify=verified)
        assert ready.status_code == 200
        assert server.stop() == 0
        assert "for-scores" not in server.log()
        assert "for-models" not in server.log()
        warned = [line for line in server.log().splitlines() if "WARNING" in line]
        assert [line.split()[2] for line in warned] == ["guerdon.audit.refused:"]


@pytest.mark.slow
def test_an_open_port_is_warned_of_and_refusals_at_load_name_the_reason(
    checkpoint: Path, tmp_path: Path
) -> None:
    with running_server({"m": checkpoint}, forked=False, host="0.0.0.0") as server:
        said = "0.0.0.0 can be reached from other machines without TLS and a bearer token"
        assert said in server.log()
    headless = tiny_checkpoint(tmp_path / "headless", "llama", causal_lm=True)
    result = subprocess.run(
        serve_command({"m": headless}), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("guerdon serve reward: ")
    assert "head" in last

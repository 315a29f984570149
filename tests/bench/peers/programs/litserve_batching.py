"""LitServe with dynamic batching: calls that wait are padded into one batch.

Annotations are not postponed here: LitServe reads those of `API` as they are.
"""

from typing import Any

import litserve
from tests.bench.peers.calls import Call
from tests.bench.peers.programs.plain import PlainModel
from tests.bench.peers.programs.program import Arguments, arguments

MAX_BATCH = 16
BATCH_SECONDS = 0.005


class API(litserve.LitAPI):  # type: ignore[misc]
    """Batches of up to 16 calls, which wait 5 ms for each other."""

    def __init__(self, args: Arguments) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS, api_path="/score")
        self.args = args

    def setup(self, device: str) -> None:
        """Load the model, in a process of LitServe's."""
        self.model = PlainModel(self.args.folder, self.args.dtype)

    def decode_request(self, request: dict[str, Any]) -> Call:
        """A call from its JSON."""
        return Call(request["prompt"], request["responses"])

    def predict(self, calls: list[Call]) -> list[list[float]]:
        """The scores of one batch."""
        return self.model.calls(calls)

    def encode_response(self, scores: list[float]) -> dict[str, list[float]]:
        """A call's answer."""
        return {"scores": scores}


def main() -> None:
    """Serve for ever."""
    args = arguments()
    # LitServe 0.2.19 fails beside the version of `mcp` that vLLM brings, and nothing here needs it.
    litserve.server._MCP_AVAILABLE = False
    server = litserve.LitServer(API(args), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

"""Plain `transformers`, one sequence at a time: what every score is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.peers.calls import Call
from tests.bench.peers.programs.plain import PlainModel
from tests.bench.peers.programs.program import arguments, work


def main() -> None:
    """Take calls for ever."""
    args = arguments()
    model = PlainModel(args.folder, args.dtype)

    def one_at_a_time(calls: Sequence[Call]) -> list[list[float]]:
        return [[model.padded([s])[0] for s in model.encoder.sequences(call)] for call in calls]

    work(args.port, lambda calls: lambda: one_at_a_time(calls))


if __name__ == "__main__":
    main()

"""The contenders' own processes: `python -m tests.bench.peers.programs.NAME FOLDER …`."""

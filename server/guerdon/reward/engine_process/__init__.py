"""The engine's process: models are loaded and computed there, beside the server's own Python.

    server's process                                          engine's process
    RemoteModel.score ─ items (`messages`) ─▶ socket ─▶ `host` ─▶ RewardModel.score
                      ◀──────────────────── scores ◀─────────┘

One Python thread at a time runs in a process: beside an event loop that is busy, a forward
pass of many small operations takes several times as long. And what ends the engine's process
(the machine's memory, a device, a batch that hangs) leaves the server and its queue alive.
"""

"""The gRPC API of text-embeddings-inference, `tei.v1`, for its unmodified clients.

Requests become those of its HTTP formats, `guerdon.reward.wire.formats.tei`, and replies come
from theirs.
"""

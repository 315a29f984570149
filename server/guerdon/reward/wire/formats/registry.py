"""The formats that the server speaks: the one list of them."""

from __future__ import annotations

from typing import Any, Final

from guerdon.reward.wire.formats.embeddings import Embeddings
from guerdon.reward.wire.formats.format import Format
from guerdon.reward.wire.formats.nemo_gym import SeedSession, Verify
from guerdon.reward.wire.formats.openrlhf import OpenRLHF
from guerdon.reward.wire.formats.rerank import Rerank
from guerdon.reward.wire.formats.sglang import SGLangClassify, SGLangRerank
from guerdon.reward.wire.formats.slime import Slime
from guerdon.reward.wire.formats.tei import Predict, TEIRerank
from guerdon.reward.wire.formats.vllm import Classify, Pooling, ScorePairs
from guerdon.serving.access.identity import Role

FORMATS: Final[tuple[type[Format[Any]], ...]] = (
    OpenRLHF,
    Slime,
    SeedSession,
    Verify,
    Classify,
    SGLangClassify,
    Pooling,
    ScorePairs,
    Embeddings,
    Rerank,
    SGLangRerank,
    TEIRerank,
    Predict,
)
"""All formats. Where several share a path, the first that reads a body has it."""

ROLES: Final[dict[str, Role | None]] = {path: Role.SCORE for kind in FORMATS for path in kind.paths}
"""What a caller of each path needs."""

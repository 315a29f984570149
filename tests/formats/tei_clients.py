"""Asks a server with unmodified clients of text-embeddings-inference, and prints what they got.

python tei_clients.py URL TOKEN GRPC_ADDRESS QUERY DOCUMENT…

Over gRPC the client finds the services by reflection, for which it sends no token.
"""

import json
import os
import sys

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read at the import

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

URL, TOKEN, GRPC_ADDRESS, QUERY, *DOCUMENTS = sys.argv[1:]
TOO_LONG = "x" * 5000


def haystack(**where: object) -> tuple[list[list[object]], str]:
    """What is ranked, and the error of a text that is too long."""
    ranker = HuggingFaceTEIRanker(**where, raw_scores=True)
    documents = [Document(content=text) for text in DOCUMENTS]
    ranked = ranker.run(query=QUERY, documents=documents)["documents"]
    try:
        ranker.run(query=QUERY, documents=[*documents, Document(content=TOO_LONG)])
        error = ""
    except Exception as refused:
        error = str(refused)
    ranker.close()
    return [[document.content, document.score] for document in ranked], error


llama_index = TextEmbeddingInference(base_url=URL, auth_token=f"Bearer {TOKEN}")
nodes = llama_index.postprocess_nodes(
    [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS], query_str=QUERY
)
print(
    json.dumps(
        {
            "haystack": haystack(url=URL, token=Secret.from_token(TOKEN)),
            "haystack over gRPC": haystack(url=GRPC_ADDRESS, use_grpc=True),
            "llama_index": [[node.node.get_content(), node.score] for node in nodes],
        }
    )
)

"""Asks a server with unmodified clients of other systems, and prints as JSON what they got.

python real_clients.py URL TOKEN QUERY DOCUMENT…
"""

import json
import sys

import cohere
import openai
from langchain_cohere import CohereRerank as LangChainRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaIndexRerank

URL, TOKEN, QUERY, *DOCUMENTS = sys.argv[1:]


def by_index(results) -> list[float]:
    found = {result.index: result.relevance_score for result in results}
    return [found[place] for place in range(len(DOCUMENTS))]


asked = {"model": "tiny", "query": QUERY, "documents": DOCUMENTS}
openai_client = openai.OpenAI(base_url=f"{URL}/v1", api_key=TOKEN)
langchain = LangChainRerank(model="tiny", cohere_api_key=TOKEN, base_url=URL, top_n=2)
reranked = langchain.compress_documents([Document(page_content=d) for d in DOCUMENTS], QUERY)
llama_index = LlamaIndexRerank(model="tiny", api_key=TOKEN, base_url=URL, top_n=2)
nodes = llama_index.postprocess_nodes(
    [NodeWithScore(node=TextNode(text=d), score=0.0) for d in DOCUMENTS], query_str=QUERY
)
try:
    cohere.ClientV2(base_url=URL, api_key=TOKEN).rerank(
        model="other", query=QUERY, documents=DOCUMENTS
    )
    error = ""
except cohere.NotFoundError as refused:
    error = str(refused.body)
print(
    json.dumps(
        {
            "cohere v1": by_index(
                cohere.Client(base_url=URL, api_key=TOKEN).rerank(**asked).results
            ),
            "cohere v2": by_index(
                cohere.ClientV2(base_url=URL, api_key=TOKEN).rerank(**asked).results
            ),
            "cohere error": error,
            "langchain": [[d.page_content, d.metadata["relevance_score"]] for d in reranked],
            "llama_index": [[n.node.get_content(), n.score] for n in nodes],
            "openai models": [model.id for model in openai_client.models.list()],
            "openai embeddings": [
                entry.embedding
                for entry in openai_client.embeddings.create(model="tiny", input=DOCUMENTS).data
            ],
        }
    )
)

"""Published reward models whose heads `transformers` does not have.

Their checkpoints need Python code that comes with them (`auto_map` in config.json) or is
published elsewhere. None of it is run: what it computes is written here, one module for each,
with the source cited, and the checkpoint's own tensors are loaded into it.

    base        what a module says of its model
    registry    which module a config.json belongs to
    qwen_math   Qwen2.5-Math-RM and -PRM
    inf_orm     INF-ORM-Llama3.1
    armorm      ArmoRM-Llama3
    qrm         QRM-Llama3.1 and QRM-Llama3
    urm         URM-LLaMa-3.1
    internlm2   InternLM2-reward
    pairrm      PairRM

A new model is one more module and one more name in `registry`.
"""

from guerdon.reward.adapters.base import Adapter
from guerdon.reward.adapters.registry import architectures, find_adapter

__all__ = ["Adapter", "architectures", "find_adapter"]

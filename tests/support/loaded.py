"""What the fork server of `tests.support.forked` loads before it forks.

Nothing of it starts a thread, but for Arrow's allocator, which takes care of forks itself.
"""

import gc

import accelerate  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import guerdon.cli.main
import guerdon.reward.app
import guerdon.reward.cli
import guerdon.reward.engine_process.host
import guerdon.sampler.app
import guerdon.trainer.cli
import guerdon.trainer.common.trl.recipe
import guerdon.trainer.fine_tune.read_task
import guerdon.trainer.reward.objectives.read_task
import guerdon.trainer.rl.run  # noqa: F401

gc.collect()
gc.freeze()  # a collection in a child would go through all of it, and copy its memory

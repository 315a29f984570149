"""What the fork server loads before it forks; nothing of it starts a thread."""

import accelerate  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import guerdon.cli.main
import guerdon.reward.cli
import guerdon.sampler.app
import guerdon.trainer.common.trl.recipe
import guerdon.trainer.rl.run  # noqa: F401

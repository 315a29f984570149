"""The places of a sequence at which process rewards and gated models are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.encoding.sequences import TokenSequence, last_run
from guerdon.reward.types import Response, TokenArray
from guerdon.serving.errors import CheckpointRefused, InvalidRequest


class ReadoutPlaces:
    """Finds the places that a model's head reads. Threads may share it.

    Args:
        checkpoint: as it was inspected.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._marker = checkpoint.manifest.step_marker
        self._marker_id = checkpoint.step_marker_id
        self._gate_ids = np.array(checkpoint.gate_ids, dtype=np.int64)
        self._gate_text = checkpoint.tokenizer.decode(self._gate_ids)

    def check_template(self, ids: TokenArray) -> None:
        """Refuse a chat template that does not write what the gate reads.

        Args:
            ids: of a rendered conversation.
        """
        if len(self._gate_ids) and last_run(ids, self._gate_ids) is None:
            raise CheckpointRefused(
                f"the chat template does not write {self._gate_text!r} before an answer, where the "
                "model reads how to weigh its attributes: restore the published template"
            )

    def find(
        self,
        field: str,
        responses: Sequence[Response],
        sequences: Sequence[TokenSequence],
        *,
        renders: bool,
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """The places of each sequence; empty where the head knows them itself.

        Args:
            field: of the prompt.
            responses: one for each sequence.
            sequences: of one item.
            renders: whether a chat template made them, which may add step markers.

        Raises:
            InvalidRequest: a sequence has no such place, or a step marker that is no token.
        """
        if len(self._gate_ids):
            return tuple(self._gate(field, sequence) for sequence in sequences)
        if self._marker_id is None:
            return ()
        return tuple(
            self._markers(f"responses[{place}]", sequence, response, renders=renders)
            for place, (sequence, response) in enumerate(zip(sequences, responses, strict=True))
        )

    def _gate(self, field: str, sequence: TokenSequence) -> npt.NDArray[np.int64]:
        """The place that the gate reads, [1]: the first token of its pattern's last occurrence."""
        found = last_run(sequence.ids, self._gate_ids)
        if found is None:
            raise InvalidRequest(
                field,
                f"has no end of a user's turn in its tokens ({self._gate_text!r}), where the model "
                "reads how to weigh its attributes: send a conversation",
            )
        return np.array([found])

    def _markers(
        self, field: str, sequence: TokenSequence, response: Response, *, renders: bool
    ) -> npt.NDArray[np.int64]:
        """Places of the response's step markers.

        A template may add markers to a response that has none of its own. Elsewhere one more than
        is written is the prompt's, as when its last token eats the response's first white space.
        """
        end = sequence.prompt_end()
        found = np.flatnonzero(sequence.ids[end:] == self._marker_id) + end
        if isinstance(response, dict):
            raise InvalidRequest(f"{field}.message", "must be a text, in which steps are marked")
        if isinstance(response, str):
            written = response.count(self._marker)
            if written != len(found) and (written or not renders):
                raise InvalidRequest(
                    f"{field}.text",
                    f"has {written} step markers {self._marker!r}, but {len(found)} of them are "
                    "tokens of their own: set them apart",
                )
        if len(found) == 0:
            raise InvalidRequest(
                field, f"has no step marker {self._marker!r}: there is no step to score"
            )
        return found.astype(np.int64, copy=False)

"""Models as folders: names become folders, and `guerdon.json` says what serving needs.

Shared by the trainer (which writes) and the servers (which read), so that neither
imports the other. Importing it loads nothing heavy.
"""

from guerdon.models.hashes import file_hash, template_hash, vocab_hash, weights_hash
from guerdon.models.manifest import MANIFEST_NAME, Manifest, ManifestError
from guerdon.models.permissions import apply_umask, unreadable
from guerdon.models.resolve import EMBEDDED_MODELS, ModelNotFound, resolve_model

__all__ = [
    "EMBEDDED_MODELS",
    "MANIFEST_NAME",
    "Manifest",
    "ManifestError",
    "ModelNotFound",
    "apply_umask",
    "file_hash",
    "resolve_model",
    "template_hash",
    "unreadable",
    "vocab_hash",
    "weights_hash",
]

"""verifiers' evaluation command, several times in one process: it takes longest to load.

python verifiers_evals.py [[ARGUMENT, …], …]
"""

from __future__ import annotations

import json
import sys

from verifiers.v1.cli.eval.main import main

for arguments in json.loads(sys.argv[1]):
    main(arguments)

"""`python -m guerdon.serving` is `guerdon serve`."""

from guerdon.serving.cli import app

app(prog_name="guerdon serve")

"""`capscore models`: the trained networks that ship with capscore."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from capscore import modelfile, zoo
from capscore.cli.app import app, console, say


@app.command("models")
def models_command(
    name: Annotated[str | None, typer.Argument(help="Show the card of this one.", show_default=False)] = None,
) -> None:
    """List the trained networks that ship with capscore; every command takes their names for a model file."""
    if name is not None:
        for line in zoo.card(name).splitlines():
            say(line)
        return
    table = Table("name", "data", "parameters", "error", box=None)
    for known in zoo.list_models(pretrained=True):
        model = modelfile.read(zoo.path(known))
        told = model.provenance
        errors = ", ".join(f"{value:.2f}% ({test})" for test, value in told["measured"]["torch"].items())
        table.add_row(known, told["published"]["data"], f"{model.spec.parameter_count:,}", errors)
    console.print(table)

"""`egobench data`: arguments in, exit code out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at and convert data sets.", no_args_is_help=True, rich_markup_mode=None)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Format = Annotated[str, typer.Option("--format", help="egoworld, egothink, egobench, sharegpt or messages.")]


@app.command("list")
def data_list(as_json: Json = False) -> int:
    """List the formats that are read and written."""
    from egobench.data import command

    return command.list_formats(as_json=as_json)


@app.command("inspect")
def data_inspect(
    path: Annotated[str, typer.Argument(help="File or folder of a data set, or home|workshop of egoworld.")],
    format: Format,
    as_json: Json = False,
) -> int:
    """Count what a data set holds and what it lacks."""
    from egobench.data import command

    return command.inspect(path, format=format, as_json=as_json)


@app.command("convert")
def data_convert(
    path: Annotated[str, typer.Argument(help="File or folder of a data set.")],
    out: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    format: Annotated[str, typer.Option("--format", help="egothink, egobench, sharegpt or messages.")],
    to: Annotated[str, typer.Option(help="egobench, sharegpt or messages.")] = "egobench",
    as_json: Json = False,
) -> int:
    """Write a data set in another format.

    What cannot be read or converted is counted by reason.
    """
    from egobench.data import command

    return command.convert(path, out, format=format, to=to, as_json=as_json)


@app.command("lengths")
def data_lengths(
    workload: Annotated[Path, typer.Argument(help="A workload file of benchmarks/.")], as_json: Json = False
) -> int:
    """Measure how many tokens a workload's samples have.

    Prints the `lengths:` line that predictions read; put it into the workload's file.
    """
    from egobench.data import command

    return command.lengths(workload, as_json=as_json)

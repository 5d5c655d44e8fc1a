"""The command line: arguments in, exit code out. What the commands do lives in their rooms."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from egobench import __version__
from egobench.data.cli import Json
from egobench.data.cli import app as data_app
from egobench.errors import EXIT_OK, EgobenchError, InvalidInput


def _leave(code: object, **_: object) -> None:
    """Turn what a command returned into the exit code."""
    raise typer.Exit(code if isinstance(code, int) else EXIT_OK)


app = typer.Typer(
    name="egobench",
    help="Benchmark the fine-tuning of vision-language models on egocentric question answering.\n\n"
    "The way through: `egobench plan matrix.yaml`, `egobench sweep matrix.yaml`, `egobench report`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    result_callback=_leave,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(data_app, name="data")

Matrix = Annotated[Path, typer.Argument(help="The matrix: a YAML file.")]
SweepName = Annotated[
    str | None, typer.Argument(metavar="[SWEEP]", help="Name or folder of a sweep; default: the newest one.")
]
Runs = Annotated[Path, typer.Option(help="Folder that holds the sweeps.")]
Only = Annotated[
    str | None, typer.Option(help="Only these cells, as in 'strategy=ddp,gpus=1|2' (comma: and; bar: or).")
]
Site = Annotated[str | None, typer.Option(help="A site, or its YAML file, instead of the one that the matrix names.")]
RUNS = Path("runs")
LOCAL = "127.0.0.1"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"egobench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def validate(files: Annotated[list[Path], typer.Argument(help="Matrix, workload or site files.")]) -> int:
    """Check YAML files; report all mistakes at once."""
    from egobench.plan import command

    return command.validate(files)


@app.command()
def schema(which: Annotated[str, typer.Argument(help="matrix, workload or site.")] = "matrix") -> int:
    """Print the JSON schema of a YAML file, for editors."""
    from egobench.spec import command

    return command.schema_command(which)


@app.command()
def plan(
    matrix: Matrix = Path("matrix.yaml"),
    site: Site = None,
    only: Only = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one CSV row per cell.")] = False,
    as_md: Annotated[bool, typer.Option("--md", help="Print a Markdown table.")] = False,
) -> int:
    """Show the cells of a matrix and what was dropped.

    Every cell with its id, every dropped point with its reason, the ledger, and what the cluster would be asked for.
    """
    from egobench.plan import command

    forms: tuple[tuple[command.Format, bool], ...] = (("json", as_json), ("csv", as_csv), ("md", as_md))
    chosen = [form for form, wanted in forms if wanted]
    if len(chosen) > 1:
        raise typer.BadParameter("choose one of --json, --csv and --md")
    return command.plan_command(matrix, chosen[0] if chosen else "summary", only, site=site)


@app.command()
def predict(
    matrix: Matrix = Path("matrix.yaml"),
    cell: Annotated[str | None, typer.Option(help="The cell's id, or a part of it that only one cell has.")] = None,
    only: Only = None,
    site: Site = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .svg or .png file.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Also trace it, where torch is installed.")] = False,
    calibrate: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Instead: fit constants to these results of a GPU.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the fitted constants; default: in that folder.")] = None,
    as_json: Json = False,
) -> int:
    """Explain what is predicted of one cell.

    What takes how much memory and time, whether it fits, the largest micro-batch, and what up to 1,024 GPUs would do.
    """
    from egobench.predict import command, fit

    if calibrate:
        return fit.calibrate_command(calibrate, out=out, as_json=as_json)
    return command.predict_command(
        matrix, cell=cell, only=only, site=site, picture=picture, is_traced=trace, as_json=as_json
    )


@app.command()
def sweep(
    matrix: Matrix = Path("matrix.yaml"),
    runs: Runs = RUNS,
    site: Site = None,
    only: Only = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Run at most this many trials now.")] = None,
    retry: Annotated[str | None, typer.Option(help="Run trials of these outcomes again, as in 'crash,oom'.")] = None,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="Launches of one trial at most, when nodes fail or jobs are preempted.")
    ] = 3,
    budget_gpu_hours: Annotated[
        float | None, typer.Option(min=0, help="Start nothing that could take the sweep beyond so many GPU-hours.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first trial that fails.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is submitted.")] = False,
    canary: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Run such a share of what is predicted not to fit, as in '5%'."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, for Slurm with the sbatch text; run nothing.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run what is missing of a matrix.

    Run it again at any time, after any interruption: it goes on where it was, and runs nothing twice.
    """
    from egobench.launch import command

    return command.sweep_command(
        matrix,
        runs=runs,
        site=site,
        only=only,
        limit=limit,
        retry=retry,
        max_attempts=max_attempts,
        budget_gpu_hours=budget_gpu_hours,
        fail_fast=fail_fast,
        detach=detach,
        canary=canary,
        dry_run=dry_run,
        as_json=as_json,
    )


@app.command()
def status(
    name: SweepName = None,
    runs: Runs = RUNS,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until the sweep is over.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every cell, however many.")] = False,
    as_json: Json = False,
) -> int:
    """Show the ledger and how far a sweep is."""
    from egobench.launch.watch import command

    return command.status_command(name, runs=runs, watch=watch, everything=everything, as_json=as_json)


@app.command()
def show(
    cell: Annotated[str, typer.Argument(help="A cell's id, or a part of it that only one cell has.")],
    name: SweepName = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> int:
    """Show one cell: its axes, trials and measures."""
    from egobench.launch.watch import command

    return command.show_command(cell, sweep=name, runs=runs, as_json=as_json)


@app.command()
def logs(
    cell: Annotated[str | None, typer.Argument(help="A cell's id, or a part of it that only one cell has.")] = None,
    name: SweepName = None,
    runs: Runs = RUNS,
    trial: Annotated[
        int | None, typer.Option(min=0, help="Which repeat; default: the running one, else the first that failed.")
    ] = None,
    allocation: Annotated[
        int | None, typer.Option(min=1, help="The log of this allocation instead, and of its Slurm job.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
) -> int:
    """Print the logs of a trial, all ranks together."""
    from egobench.launch.watch import command

    return command.logs_command(cell, trial=trial, allocation=allocation, following=follow, sweep=name, runs=runs)


@app.command()
def cancel(
    name: SweepName = None,
    runs: Runs = RUNS,
    cell: Annotated[str | None, typer.Option(help="Only this cell.")] = None,
    as_json: Json = False,
) -> int:
    """End what runs; the rest stays pending for `sweep`."""
    from egobench.launch.watch import command

    return command.cancel_command(name, cell=cell, runs=runs, as_json=as_json)


@app.command()
def report(
    name: SweepName = None,
    runs: Runs = RUNS,
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("reports"),
    publish: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write what is fit to commit: FOLDER/SYSTEM/SWEEP."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 4 where a stated target is not reached.")] = False,
    as_json: Json = False,
) -> int:
    """Write the report: HTML, CSV, Markdown, pictures."""
    from egobench.report import command

    return command.report(name, runs=runs, out=out, publish_into=publish, check=check, as_json=as_json)


@app.command()
def serve(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SWEEP]...", help="Names or folders of sweeps; default: all.")
    ] = None,
    runs: Runs = RUNS,
    results: Annotated[Path, typer.Option(help="Folder of committed results.")] = Path("results"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to bind to; another than 127.0.0.1 is open to others.")] = LOCAL,
    keep: Annotated[int, typer.Option(min=1, help="Models kept in memory at most.")] = 2,
) -> int:
    """Ask the models of sweeps in a browser; dashboard.

    Answers of variants side by side, with latency and memory; throughput, memory and accuracy of sweeps; kernel
    tables. Prints its address once it answers; Ctrl-C ends it. Needs the extra `serve`.
    """
    from egobench.serve import command

    return command.serve(names or [], runs=runs, results=results, host=host, port=port, keep=keep)


@app.command()
def verify(
    folders: Annotated[list[Path] | None, typer.Argument(help="Committed results; default: all of results/.")] = None,
    as_json: Json = False,
) -> int:
    """Re-derive committed tables from their records.

    Exits with 4 where a byte differs.
    """
    from egobench.report import command

    return command.verify(folders or [Path("results")], as_json=as_json)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSONL with id, prediction and references on every line.")],
    metric: Annotated[str, typer.Option(help="squad: EM and F1 by the SQuAD v2 rule.")] = "squad",
    as_json: Json = False,
) -> int:
    """Score anybody's predictions."""
    from egobench.evaluate.score import score_file
    from egobench.units import significant

    result = score_file(file, metric)
    if as_json:
        _print_json(result)
    else:
        for name in ("em", "f1"):
            low, high = (significant(100 * result[f"{name}_{end}"]) for end in ("low", "high"))
            print(f"{name.upper()} {significant(100 * result[name])} [{low}, {high}]")
        print(f"{result['num']:,} answers, {result['metric']}, 95 % bootstrap over questions")
    return EXIT_OK


@app.command()
def doctor(
    site: Annotated[str, typer.Option(help="A site's name, as a matrix would write it, or its file.")] = "local",
    runs: Runs = RUNS,
    probe: Annotated[bool, typer.Option(help="Send a short job to the nodes.")] = True,
    nodes: Annotated[int | None, typer.Option(help="Nodes of the probe; default: the site's max_nodes.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds that the probe may wait in the queue.")] = 300,
    as_json: Json = False,
) -> int:
    """Check a site: Slurm, shared folder, GPUs, NCCL.

    Says what to do about each finding, and what was not checked. Exit code 5 if something failed.
    """
    from egobench.launch.doctor import command

    return command.doctor_command(site, runs, probe=probe, nodes=nodes, wait_s=wait, as_json=as_json)


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1))


def _explain(error: EgobenchError) -> None:
    """Say it on stderr; with --json also as the one document on stdout."""
    print(f"egobench: {error}" if not isinstance(error, InvalidInput) else str(error), file=sys.stderr)
    if isinstance(error, InvalidInput) and len(error.mistakes) > 1:
        print(f"egobench: {len(error.mistakes)} mistakes", file=sys.stderr)
    if "--json" in sys.argv:
        mistakes = [vars(mistake) for mistake in error.mistakes] if isinstance(error, InvalidInput) else []
        problem = {"kind": type(error).__name__, "message": str(error), "mistakes": mistakes}
        _print_json({"schema_version": 1, "error": problem})


def main() -> None:
    """Run `egobench` and leave with its exit code."""
    try:
        app()
    except EgobenchError as error:
        _explain(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OK)
    finally:
        gc.freeze()  # or the interpreter's last collection looks at all that a plan made: 2 s for 100,000 points

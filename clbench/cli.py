"""The command line: words become calls, errors become one sentence and an exit code."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clbench import __version__, cli_data, cli_runs, cli_store, cli_tables, interrupts, options
from clbench.cli_cache import cache
from clbench.cli_report import report
from clbench.cli_verify import verify
from clbench.errors import ClbenchError
from clbench.options import (
    Deterministic,
    Device,
    Format,
    Log,
    Published,
    Settings,
    StorePath,
    SuiteName,
    Track,
    existing,
    root,
)

WRONGLY_ASKED = 2
INTERRUPTED = 130


class Door(TyperGroup):
    """Turns what is raised inside into a sentence on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        A ClbenchError, and a path that the system refuses, is one sentence and exit code 2; a closed pipe is left to
        typer, which says nothing.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except ClbenchError as error:
            from clbench.views import warn

            warn(str(error))
            raise typer.Exit(WRONGLY_ASKED) from error
        except OSError as error:
            if error.filename is None:
                raise
            from clbench.views import warn

            warn(f"'{error.filename}' cannot be used: {error.strerror}; choose another place.")
            raise typer.Exit(WRONGLY_ASKED) from error
        except KeyboardInterrupt as interruption:
            typer.echo("clbench: interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from interruption
        return result


app = typer.Typer(
    cls=Door,
    help="Teach pre-trained models one task after another with many methods, and compare what they remember.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
new = typer.Typer(cls=Door, help="Write a skeleton to start from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(new, name="new")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_store.app, name="store")
app.command()(cache)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"clbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def run(
    suite: SuiteName,
    method: options.Methods = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="A seed; again for more. 0 when not given.")] = None,
    set_: Settings = None,
    order_seed: Annotated[int, typer.Option(min=0, help="The order of the tasks; 0 is the natural one.")] = 0,
    backbone: options.Backbone = "",
    weights: options.Weights = "default",
    trust_remote_code: options.TrustRemoteCode = False,
    from_: options.From = None,
    task: options.Tasks = None,
    eval_samples: options.EvalSamples = None,
    device: Device = "auto",
    threads: options.Threads = None,
    executor: options.Executor = "inline",
    workers: options.Workers = None,
    gpus_per_cell: options.GpusPerCell = None,
    timeout: options.Timeout = "",
    data_parallel: options.DataParallel = 1,
    deterministic: Deterministic = False,
    retry_oom: options.RetryOom = 0,
    store: StorePath = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and write nothing.")] = False,
    measure: options.Measure = False,
    budget: options.Budget = "",
    publish: Annotated[bool, typer.Option("--publish", help="Copy the finished records to DIR/records.")] = False,
    log: Log = None,
    track: Track = None,
) -> None:
    """Teach what is missing of a suite, then print its table. Stop it with Ctrl-C; run it again to go on.

    Exit code 0: all cells are done; 1: one failed; 2: wrongly asked; 3: --budget did not suffice; 130: interrupted.
    """
    from clbench import compare, means
    from clbench.budget import Limits

    request = compare.Request(
        suite=suite,
        methods=tuple(method or ()),
        settings=(*(set_ or ()), *([f"recipe.eval_samples={eval_samples}"] if eval_samples else [])),
        seeds=tuple(dict.fromkeys(seed or (0,))),
        order_seed=order_seed,
        device=device,
        backbone=backbone,
        weights=weights,
        remote_code=trust_remote_code,
        folder=str(from_ or ""),
        tasks=tuple(dict.fromkeys(task or ())),
        retry_oom=retry_oom,
    )
    limit = means.seconds(timeout) if timeout else None
    places: dict[str, Any] = {"gpus_per_cell": gpus_per_cell, "timeout_seconds": limit, "processes": data_parallel}
    by = means.Means(executor=executor, workers=workers, threads=threads, **places)
    told: dict[str, Any] = {"deterministic": deterministic, "log": log, "track": track or ()}
    told["limits"] = Limits(measure=measure, seconds=means.seconds(budget) if budget else None)
    code = compare.run(request, root(store), means=by, dry_run=dry_run, publish=publish, **told)
    raise typer.Exit(code)


for comparing in cli_tables.COMMANDS:
    app.command()(comparing)
app.command()(report)
app.command()(cli_runs.compare)
app.command()(cli_runs.rerun)
app.command("import")(cli_runs.import_)
app.command()(verify)


@app.command()
def tree(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="SUITE, METHOD, seedN or the start of a key; several joined by '/'.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw it into this folder: PNG and a page.")] = None,
    store: StorePath = None,
    published: Published = False,
    format: Format = "text",
) -> None:
    """Print the tree of past tasks that a run recorded, how it grew and which tasks were chosen; --out draws it."""
    from clbench import views
    from clbench.errors import UnknownName
    from clbench.report import tree_notes

    if format not in views.LIST_FORMATS:
        raise UnknownName("format of a tree", format, views.LIST_FORMATS)
    record = views.one_run(existing(store), run, published, note=tree_notes.NOTE)
    shown = views.tree(record, format)
    if out is not None:
        from clbench.report import charts, tree_text, trees

        drawn = charts.write(trees.charts(record), out, tree_text.caption(record), "tree.html")
        typer.echo(f"drawn: {', '.join(map(str, drawn))}", err=True)
    typer.echo(shown)


@app.command()
def scores(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="SUITE, METHOD, seedN or the start of a key; several joined by '/'.")
    ],
    store: StorePath = None,
    score: Annotated[
        str, typer.Option(metavar="NAME", help="Another mark of the same answers; the suite's own when not given.")
    ] = "",
    published: Published = False,
    format: Format = "text",
) -> None:
    """Print what a run scored on each task after each, with floors and invalid answers where they were measured."""
    from clbench import views
    from clbench.errors import UnknownName
    from clbench.report import triangle

    if format not in views.LIST_FORMATS:
        raise UnknownName("format of scores", format, views.LIST_FORMATS)
    held = existing(store)
    loaded = held.load(published=published)
    views.problems(loaded)
    record = views.pick(loaded, held, run)
    outcomes = loaded.outcomes(record)
    if score:
        record, outcomes = triangle.marked(record, outcomes, score)
    if format == "json":
        typer.echo(views.to_json(triangle.facts(record, outcomes)))
    else:
        typer.echo(triangle.text(record, outcomes, shutil.get_terminal_size((120, 24)).columns))


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="methods|suites|backbones|runs")],
    format: Format = "text",
    store: StorePath = None,
) -> None:
    """List what there is."""
    from clbench import views

    typer.echo(views.listing(kind, format, existing(store) if kind == "runs" else None))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method, a suite, a backbone or FILE.py:CLASS.")],
    format: Format = "text",
) -> None:
    """Show fields with their defaults, paper and resources of one thing."""
    from clbench import views

    typer.echo(views.show(name, format))


@app.command()
def check(method: Annotated[str, typer.Argument(metavar="METHOD", help="A name or FILE.py:CLASS.")]) -> None:
    """Try a method against every law, one line each; exit code 1 if it breaks one."""
    from clbench import catalog, conformance

    kind = catalog.method_type(method)
    words = {True: "passed", False: "FAILED", None: "declined"}
    broken = 0
    for verdict in conformance.check(kind.cls, kind.fingerprint):
        reason = f" ({verdict.reason})" if verdict.reason else ""
        typer.echo(f"{words[verdict.passed]:<8}  {verdict.law}: {verdict.line}{reason}")
        broken += verdict.passed is False
    raise typer.Exit(int(broken > 0))


@app.command()
def tune(
    suite: SuiteName,
    method: Annotated[str, typer.Option(metavar="NAME|FILE.py:CLASS", help="The method to tune.")],
    trials: Annotated[int, typer.Option(min=1, help="How many settings to try.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the search and of the runs.")] = 0,
    device: Device = "auto",
    store: StorePath = None,
) -> None:
    """Search for good settings on validation data alone, and print the --set words to use."""
    from clbench import compare

    compare.tune(suite, method, trials, seed, device, root(store))


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See 'clbench list backbones'.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to put weights and card.")] = None,
    from_: Annotated[
        str, typer.Option("--from", metavar="NAME|DIR", help="Images to learn from: a data set, or CIFAR-10's folder.")
    ] = "",
    classes: Annotated[str, typer.Option(metavar="N-N,N", help="Only these classes of them, by number.")] = "",
    epochs: Annotated[int, typer.Option(min=0, help="Passes over them.")] = 0,
) -> None:
    """Make the weights of a backbone, again or of images that you bring; takes long."""
    from clbench.backbones.pretrain import Brought, pretrain

    brought = Brought(source=from_, classes=classes, epochs=epochs)
    pretrain(name, out, lambda line: typer.echo(line, err=True), brought)


@new.callback()
def _new() -> None:
    """Write a skeleton to start from."""


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and '_'.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="An existing folder.")] = Path(),
) -> None:
    """Write NAME.py, a complete small method, and test_NAME.py, which tries it."""
    from clbench import skeleton

    typer.echo(skeleton.write_method(name, out))


@app.command()
def doctor(store: StorePath = None) -> None:
    """Look at what clbench needs here: versions, device, store, fonts, weights, hubs."""
    from clbench import doctor

    raise typer.Exit(doctor.report(root(store)))


def main() -> None:
    """Run the command line; the entry point of the program."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a sign shows another, and nothing breaks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with interrupts.heeded():
        try:
            app(prog_name="clbench")
        except KeyboardInterrupt:  # before a command began
            typer.echo("clbench: interrupted.", err=True)
            sys.exit(INTERRUPTED)

"""The command line: commands only. Other packages do the work.

Exit codes: 0 done · 1 a bug in lion-ray · 2 wrong configuration or usage · 3 data that cannot be used ·
4 an endpoint that refuses · 5 a model that cannot be obtained · 6 a machine, engine or storage that failed (the same
command resumes) · 7 a run folder that belongs to another configuration or attempt · 8 the budget is spent ·
130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lion_ray import __version__
from lion_ray.cli.common import AsJson, results_console
from lion_ray.cli.evaluation import eval_app
from lion_ray.cli.export import diff_app, export_run
from lion_ray.cli.journal import journal_app
from lion_ray.cli.judge import judge_app
from lion_ray.core.errors import ConfigError, DataError, LionError, as_raised
from lion_ray.core.terminal import tell

app = typer.Typer(
    name="lion-ray",
    help="Distil a strong closed language model into a small open one you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="List and download models.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(journal_app, name="journal")
app.add_typer(eval_app, name="eval")
app.add_typer(judge_app, name="judge")
app.add_typer(diff_app, name="diff")

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file; see configs/.", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value …", metavar="[KEY=VALUE]...")]
RunFolder = Annotated[str, typer.Argument(help="A run's folder, or its name under ./runs.", metavar="RUN")]


@app.command()
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run a distillation, or resume it with the same command."""
    from lion_ray import api
    from lion_ray.analysis.examples import read_examples
    from lion_ray.cli.examples import print_examples
    from lion_ray.pipeline.results_table import results_table

    found = api.distil(config, overrides=overrides or [])
    console = results_console()
    console.print(results_table(found.iterations))
    print_examples(console, read_examples(found.store))
    console.print(f"checkpoint  {found.checkpoint}", soft_wrap=True)
    data = "pool-*, answers-*, iteration-*/student and verdicts: Parquet"
    console.print(f"data        {found.root} ({data})", soft_wrap=True)
    console.print(f"talk to it  lion-ray chat {found.root}", soft_wrap=True)


@app.command()
def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    driver_cpus: Annotated[float, typer.Option(help="CPUs for the driver; it avoids a head node without CPUs.")] = 1.0,
    driver_resource: Annotated[
        list[str] | None, typer.Option(help="Custom resource for the driver, NAME=AMOUNT; can be repeated.")
    ] = None,
    installed: Annotated[bool, typer.Option(help="Use the lion-ray that the cluster has installed.")] = False,
    wait: Annotated[bool, typer.Option(help="Show the job's log until it ends.")] = True,
) -> None:
    """Run or resume as a job on a Ray cluster: see cluster/README.md."""
    from lion_ray.config.file import load_config
    from lion_ray.pipeline import submit as jobs

    resources = dict(named_amount(text) for text in driver_resource or [])
    how = jobs.Submission(address, driver_cpus=driver_cpus, driver_resources=resources, installed=installed)
    job = jobs.submit(load_config(config, overrides or []), overrides or [], how)
    tell(f"job {job}: submitted to {address}")
    tell(f"  its log     ray job logs --address {address} --follow {job}")
    tell(f"  to stop it  ray job stop --address {address} {job}")
    if wait and not jobs.follow(job, address):
        raise typer.Exit(6)


@app.command()
def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Show a run's progress, from its folder alone."""
    from lion_ray import api
    from lion_ray.pipeline.results_table import results_table

    found = api.open_run(run).status()
    if as_json:
        print(json.dumps(found.to_json()))
        return
    console = results_console()
    console.print(found.sentence(), soft_wrap=True)
    for line in found.stage_lines():
        console.print(f"  {line}", soft_wrap=True)
    if found.results:
        console.print(results_table(found.results))
    if found.spending or found.uncertain:
        console.print(found.spending_table())


@app.command()
def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Read every file of a run and report damaged ones. Exit code 3 if there are any."""
    from lion_ray.core.progress import count
    from lion_ray.models.checkpoints import open_run
    from lion_ray.pipeline.verify import verify as verify_run

    store = open_run(run)
    found = verify_run(store)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        print(
            f"{count(found.files, 'files')} undamaged, {found.proven:,} of them verified by SHA-256 "
            f"({found.bytes / 2**20:,.1f} MiB), in {count(found.stages, 'stages')}"
        )
        if found.journal is not None:
            print(f"journal: {found.journal['records']:,} records in {count(found.journal['segments'], 'segments')}")
        for fault in found.faults:
            tell(fault)
    if found.faults:
        raise DataError(f"{store.root}: {count(len(found.faults), 'damaged places')}")


@app.command()
def report(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Output file; default: report.html in the run's folder.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a report of a run and its gain as one self-contained HTML file."""
    from lion_ray.models.checkpoints import open_run
    from lion_ray.report.command import report as write_report

    tell(write_report(open_run(run), out=out, show=show))


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Estimate a run's cost and time, stage by stage, before anything is spent."""
    from lion_ray import api
    from lion_ray.pipeline.plan import plan_table

    made = api.plan(config, overrides=overrides or [])
    if as_json:
        print(json.dumps(made.to_json()))
        return
    console = results_console()
    console.print(plan_table(made))
    for note in made.notes:
        console.print(f"· {note}", soft_wrap=True)


@app.command()
def chat(
    run: RunFolder,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Send this message, print the answer and exit.")
    ] = None,
    iteration: Annotated[int | None, typer.Option(help="The student after this iteration; default: the last.")] = None,
) -> None:
    """Talk to a run's student."""
    from lion_ray.inference.chat import chat as chat_with
    from lion_ray.models.checkpoints import open_run

    chat_with(open_run(run), message=message, iteration=iteration)


@app.command()
def serve(
    run: RunFolder,
    iteration: Annotated[int | None, typer.Option(help="The student after this iteration; default: the last.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: a free port.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the key that callers must send.", metavar="NAME")
    ] = None,
) -> None:
    """Serve a run's student: an OpenAI-compatible server, until Ctrl-C."""
    from lion_ray.inference.serving import serve as serve_student
    from lion_ray.models.checkpoints import open_run

    serve_student(open_run(run), iteration=iteration, host=host, port=port, key_env=api_key_env)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the bundled models, and which are already downloaded."""
    from lion_ray.models.resolve import list_models

    found = list_models()
    if as_json:
        print(json.dumps([asdict(model) for model in found], default=str))
        return
    table = Table("name", "licence", "download", "path")
    for model in found:
        table.add_row(
            f"bundled:{model.name}", model.licence, f"{model.download_bytes / 2**20:,.0f} MiB", str(model.path or "–")
        )
    results_console().print(table)


@models_app.command("fetch")
def models_fetch(name: Annotated[str, typer.Argument(help="bundled:NAME, or a hub name.")]) -> None:
    """Download a model now, so that a run need not."""
    from lion_ray.models.resolve import resolve_model

    tell(resolve_model(name, base_dir=None, progress=tell))


app.command("export")(export_run)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check what is installed and what is missing."""
    from lion_ray.pipeline.doctor import check

    checks = check()
    if as_json:
        print(json.dumps([asdict(one) for one in checks]))
    else:
        for one in checks:
            mark = {True: "ok ", False: "NO ", None: "?  "}[one.ok]
            tell(f"{mark} {one.name}: {one.found}" + (f" — {one.advice}" if one.advice else ""))
    if any(one.ok is False for one in checks):
        raise typer.Exit(6)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def named_amount(text: str) -> tuple[str, float]:
    """Parse NAME=AMOUNT.

    Raises:
        ConfigError: the text has another form.
    """
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise ConfigError(f"{text}: a resource is NAME=AMOUNT, such as driver_node=0.01") from None


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; print a user's mistakes in one line, without a stack trace. Returns the exit code."""
    try:
        command()
    except LionError as error:
        tell(f"lion-ray: {as_raised(error)}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, SystemExit) as ended:
        # Typer turns a Ctrl-C into an exit with this code, without a message.
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        print("lion-ray: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


def main() -> None:
    sys.exit(guarded(app))

"""`lion-ray export` and `lion-ray diff`: export a run's results. `export` and `delta` do the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lion_ray.cli.common import AsJson
from lion_ray.core.terminal import tell

diff_app = typer.Typer(help="Delta weights: the difference between a tuned model and its base.", no_args_is_help=True)


def export_run(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name under ./runs.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="A new folder for the export.", metavar="FOLDER")],
    iteration: Annotated[int | None, typer.Option(help="Export up to this iteration; default: the last.")] = None,
    what: Annotated[
        str | None,
        typer.Option(help="data, model, adapters, separated by commas; default: everything that the run has."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Then upload it to the Hugging Face hub (HF_TOKEN).", metavar="OWNER/NAME")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Upload to public repositories; default: private.")] = False,
    licence: Annotated[
        str | None, typer.Option(help="The licence of your instructions, if the run's data.licence is not set.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="The source of your instructions, if data.source is not set.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a run's data set (Parquet), model and adapters with their cards, to a folder or the hub."""
    from lion_ray.export.folder import export
    from lion_ray.export.hub import check_target
    from lion_ray.export.hub import push as push_to_hub
    from lion_ray.export.source import Source
    from lion_ray.models.checkpoints import open_run

    if push is not None:
        check_target(push)
    say = _silent if as_json else tell
    source = Source.open(open_run(run), iteration, licence=licence, origin=origin)
    wanted = None if what is None else [part.strip() for part in what.split(",") if part.strip()]
    done = export(source, out, wanted, force=force, push_to=push, say=say)
    say(f"{done.folder}: {'complete' if done.made else 'already complete'}; check it with sha256sum -c SHA256SUMS")
    pushed = [] if push is None else push_to_hub(done, push, public=public, say=say)
    if as_json:
        result = {"folder": str(done.folder), "iteration": source.iteration, "parts": done.parts, "made": done.made}
        print(json.dumps(result | {"pushed": pushed}))


@diff_app.command("make")
def diff_make(
    base: Annotated[str, typer.Argument(help="The model that was tuned: a folder, a hub name, or bundled:NAME.")],
    tuned: Annotated[Path, typer.Argument(help="The tuned model's folder.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the delta.")],
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option(help="The number type of the recovered model; default: the tuned model's."),
    ] = None,
) -> None:
    """Write delta weights: the difference between a tuned model and its base."""
    from lion_ray.models import delta
    from lion_ray.models.resolve import resolve_model

    delta.make(resolve_model(base, base_dir=None, progress=tell), tuned, out, dtype=dtype)


@diff_app.command("recover")
def diff_recover(
    base: Annotated[str, typer.Argument(help="The base model of the delta.")],
    diff: Annotated[Path, typer.Argument(help="The delta's folder.", metavar="DELTA")],
    out: Annotated[Path, typer.Argument(help="A new folder for the tuned model.")],
) -> None:
    """Recover the exact tuned model from its base and a delta."""
    from lion_ray.models import delta
    from lion_ray.models.resolve import resolve_model

    delta.recover(resolve_model(base, base_dir=None, progress=tell), diff, out)


def _silent(_: str) -> None:
    """With --json, only one line is printed, at the end."""

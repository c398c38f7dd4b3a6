"""`lion-ray judge`: measure the referee. `evaluation` does the work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lion_ray.cli.common import AsJson, results_console
from lion_ray.core.errors import ConfigError

judge_app = typer.Typer(help="Measure the referee.", no_args_is_help=True)


@judge_app.callback()
def judge() -> None:
    """Measure the referee."""


@judge_app.command()
def calibrate(
    named: Annotated[
        str | None,
        typer.Argument(help="CONFIG.yaml, or CONFIG.yaml:ENDPOINT; default: the run's referee.", metavar="[JUDGE]"),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help='JSON Lines: {"id", "instruction", "first", "second", "label": 1 | 2 | "tie"}.')
    ] = None,
    run: Annotated[str | None, typer.Option(help="A run's folder or name: use its rows, verdicts and referee.")] = None,
    rows: Annotated[int, typer.Option(help="Number of the run's rows to judge again.", min=0)] = 50,
    samples: Annotated[int, typer.Option(help="Verdicts per pair; measuring noise needs 2.", min=1)] = 2,
    prompt: Annotated[str | None, typer.Option(help="A template instead of the configured one.")] = None,
    tau: Annotated[float | None, typer.Option(help="A threshold instead of the configured one.")] = None,
    alpha: Annotated[
        float,
        typer.Option(help="Maximum probability that noise alone reaches the recommended tau.", min=0.001, max=0.5),
    ] = 0.1,
    budget: Annotated[
        float | None, typer.Option(help="Maximum cost in US dollars of all calibrations of this judge there.", min=0.0)
    ] = None,
    journal: Annotated[
        str | None, typer.Option(help="Journal of the calls; default: the run's, else evaluations/journal.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the result; default: evaluations/judge.json of the run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a judge's reliability: agreement, order flips, ties, noise, cost, and the tau that its noise supports.

    With --run and --samples 1 no calls are made: the run's recorded verdicts are used.
    """
    from dataclasses import replace

    from lion_ray.core.progress import Progress
    from lion_ray.evaluation.calibration import run as calibration
    from lion_ray.evaluation.calibration.cases import read_pairs
    from lion_ray.evaluation.calibration.table import report_tables
    from lion_ray.evaluation.session import done
    from lion_ray.models.checkpoints import open_run

    store = open_run(run) if run is not None else None
    if named is not None:
        chosen = calibration.named_judge(named)
    elif store is not None:
        chosen = calibration.runs_judge(store)
    else:
        raise ConfigError("name a judge (CONFIG.yaml:ENDPOINT), or the run of the referee (--run RUN)")
    if pairs is None and store is None:
        raise ConfigError("nothing to judge: give labelled pairs (--pairs FILE), or a run (--run RUN)")
    own = named is None and prompt in (None, chosen.referee.prompt)
    if prompt is not None:
        # A template on the command line is relative to the working directory.
        base = Path.cwd() if prompt.endswith((".yaml", ".yml")) else chosen.base_dir
        chosen = replace(chosen, referee=chosen.referee.model_copy(update={"prompt": prompt}), base_dir=base)
    chosen = replace(chosen, tau=chosen.tau if tau is None else tau)
    labelled = read_pairs(pairs) if pairs is not None else []
    judged = calibration.rows_to_judge(store, rows) if store is not None and rows else []
    place = calibration.place_of(store, journal)
    progress = Progress(sys.stderr)
    try:
        found = done(
            calibration.calibrate(
                chosen,
                labelled=labelled,
                judged=judged,
                recorded=own,
                samples=samples,
                alpha=alpha,
                place=place,
                budget=budget,
                progress=progress,
            )
        )
    finally:
        progress.close()
    replayed = calibration.replays(store, chosen.tau) if store is not None else ()
    report = calibration.Report(chosen.described(), *found, replayed)
    written = report.to_json()
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif store is not None:
        store.write_json(place.name("judge", "json"), written)
    if as_json:
        print(json.dumps(written))
        return
    console = results_console()
    console.print(report_tables(report))
    where = out or (store.path(place.name("judge", "json")) if store is not None else None)
    if where is not None:
        console.print(f"written to {where}", soft_wrap=True)

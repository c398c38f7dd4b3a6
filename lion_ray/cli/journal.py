"""`lion-ray journal`: inspect and compact a journal of paid calls. `gateway` does the work."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lion_ray.cli.common import AsJson, results_console
from lion_ray.core.errors import ConfigError, DataError, one_line
from lion_ray.core.terminal import tell

if TYPE_CHECKING:
    from lion_ray.gateway.journal.folder import Folder

journal_app = typer.Typer(help="The journal of paid calls.", no_args_is_help=True)

JournalPath = Annotated[str, typer.Argument(help="A run's journal folder, or a URL.", metavar="PATH")]


@journal_app.command()
def stats(path: JournalPath, as_json: AsJson = False) -> None:
    """Show what a journal contains and what it cost."""
    from lion_ray.core.progress import count
    from lion_ray.gateway.journal.inspection import survey
    from lion_ray.gateway.journal.spending import Spent

    found = survey(_folder(path))
    if as_json:
        spending = [asdict(account) | asdict(spent) for account, spent in found.sums.items()]
        held = {"calls": found.calls, "segments": found.segments, "bytes": found.bytes, "damaged": found.damaged}
        held["foreign"] = found.foreign
        print(json.dumps(held | {"spending": spending}))
        return
    console = results_console()
    console.print(
        f"{found.calls:,} calls, {found.bytes / 2**20:,.1f} MiB in {count(found.segments, 'segments')};"
        f" {count(found.damaged, 'damaged or torn lines')}"
        + (f", {count(found.foreign, 'lines')} of another version, kept and not served" if found.foreign else ""),
        soft_wrap=True,
    )
    if not found.sums:
        return
    by_role: dict[tuple[str, str], Spent] = {}
    for account, spent in sorted(found.sums.items(), key=lambda item: (item[0].run, item[0].role)):
        by_role.setdefault((account.run, account.role), Spent()).add(spent)
    table = Table("run", "role")
    for title in ("paid calls", "prompt tokens", "completion tokens", "USD"):
        table.add_column(title, justify="right")
    for (run, role), spent in by_role.items():
        counts = (f"{n:,}" for n in (spent.calls, spent.prompt_tokens, spent.completion_tokens))
        table.add_row(run or "–", role or "–", *counts, f"{spent.usd:,.4f}")
    console.print(table)


@journal_app.command()
def verify(path: JournalPath, as_json: AsJson = False) -> None:
    """Read every line and report damaged ones. Exit code 3 if there are any."""
    from lion_ray.core.progress import count
    from lion_ray.gateway.journal import inspection

    found = inspection.verify(_folder(path))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{found.records:,} records, {found.bytes / 2**20:,.1f} MiB in {count(found.segments, 'segments')}")
        for fault in (*found.damaged, *found.torn, *found.foreign, *found.sidecars):
            tell(f"{fault.file}, byte {fault.offset}: {fault.reason}")
    if found.damaged:
        raise DataError(
            f"{path}: {count(len(found.damaged), 'damaged places')}; their calls will be paid for again if they are"
            f" needed. `lion-ray journal compact` drops the damaged lines"
        )


@journal_app.command()
def compact(path: JournalPath) -> None:
    """Merge segments that no live run is writing; drop damaged lines and duplicates."""
    from lion_ray.core.progress import count
    from lion_ray.gateway.journal import compaction

    done = compaction.compact(_folder(path))
    print(f"before  {count(done.segments_before, 'segments')}, {done.bytes_before / 2**20:,.1f} MiB")
    print(f"after   {count(done.segments_after, 'segments')}, {done.bytes_after / 2**20:,.1f} MiB")
    print(f"dropped {count(done.damaged, 'damaged or torn lines')}, {count(done.copies, 'duplicates')}")
    if done.foreign:
        print(f"kept    {count(done.foreign, 'lines')} of another version or another tool")
    if done.live:
        print(f"skipped {count(done.live, 'segments')} that a live run is writing")


def _folder(path: str) -> Folder:
    from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder

    folder = Folder.at(path)
    try:
        exists = folder.exists()
    except STORAGE_ERRORS as cause:
        raise ConfigError(f"{path}: the journal cannot be read: {one_line(cause)}") from cause
    if not exists:
        raise ConfigError(f"{path}: no journal found (a run's journal is in RUN/journal)")
    return folder

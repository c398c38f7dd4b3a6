"""`lion-ray journal`: a journal of paid calls, looked at and tidied. What the verbs do is in `gateway`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lion_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lion_ray.gateway.folder import Folder

journal_app = typer.Typer(help="The journal of paid calls.", no_args_is_help=True)

JournalPath = Annotated[str, typer.Argument(help="A run's journal folder, or a URL.", metavar="PATH")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")]


@journal_app.command()
def stats(path: JournalPath, as_json: AsJson = False) -> None:
    """What a journal holds, and what was paid for it."""
    from lion_ray.gateway.inspection import survey
    from lion_ray.gateway.spending import Spent

    found = survey(_folder(path))
    if as_json:
        spending = [asdict(account) | asdict(spent) for account, spent in found.sums.items()]
        held = {"calls": found.calls, "segments": found.segments, "bytes": found.bytes, "damaged": found.damaged}
        print(json.dumps(held | {"spending": spending}))
        return
    console = Console(width=None, highlight=False)
    console.print(
        f"{found.calls:,} calls, {found.bytes / 2**20:,.1f} MiB in {_count(found.segments, 'segment')};"
        f" {_count(found.damaged, 'damaged or torn line')}",
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
    """Read every line; say where each damaged one is. Exit code 3 where there is one."""
    from lion_ray.gateway import inspection

    found = inspection.verify(_folder(path))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{found.records:,} records, {found.bytes / 2**20:,.1f} MiB in {_count(found.segments, 'segment')}")
        for fault in (*found.damaged, *found.torn, *found.sidecars):
            print(f"{fault.file}, byte {fault.offset}: {fault.reason}")
    if found.damaged:
        raise DataError(
            f"{path}: {_count(len(found.damaged), 'damaged place')}; the calls that were there are bought again when"
            f" they are asked for. `lion-ray journal compact` drops them"
        )


@journal_app.command()
def compact(path: JournalPath) -> None:
    """Merge what no live run is writing into few segments; drop damaged lines and second copies."""
    from lion_ray.gateway import compaction

    done = compaction.compact(_folder(path))
    print(f"before  {_count(done.segments_before, 'segment')}, {done.bytes_before / 2**20:,.1f} MiB")
    print(f"after   {_count(done.segments_after, 'segment')}, {done.bytes_after / 2**20:,.1f} MiB")
    print(
        f"dropped {_count(done.damaged, 'damaged or torn line')}, {_count(done.copies, 'second copy', 'second copies')}"
    )
    if done.live:
        print(f"left    {_count(done.live, 'segment')} that a live run is writing")


def _folder(path: str) -> Folder:
    from lion_ray.gateway.folder import STORAGE_ERRORS, Folder

    folder = Folder.at(path)
    try:
        there = folder.exists()
    except STORAGE_ERRORS as cause:
        raise ConfigError(f"{path}: no journal can be read there: {cause}") from cause
    if not there:
        raise ConfigError(f"{path}: no journal there (a run keeps its own in RUN/journal)")
    return folder


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"

"""What may have been billed without an answer is shown apart from what was bought: in status, meter and report."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

from rich.console import Console

from lion_ray.gateway.calls import Account
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.stats import Stats, meter_line
from lion_ray.pipeline.status import Status, read_status
from lion_ray.report import render
from lion_ray.report.facts import read_facts
from tests.run_folder import RunFolder


def lose(folder: RunFolder, *lost: tuple[str, str, float]) -> None:
    """A start that lost a call of each of these roles and stages, at so many dollars."""

    async def do() -> None:
        journal = Journal.open(folder.store.journal(None))
        run = read_run(folder)
        await asyncio.gather(*(journal.lose(Account(run, role, stage), "openai", usd) for role, stage, usd in lost))
        await journal.lose(Account("another run", "teacher", "answers-0"), "openai", 100.0)
        await journal.close()

    asyncio.run(do())


def read_run(folder: RunFolder) -> str:
    described = folder.store.read_json("run.json")
    assert described is not None
    return str(described["config"]["run_name"])


def table(status: Status) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(status.spending_table())
    return text.getvalue()


def test_a_run_without_any(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    status = read_status(folder.store)
    assert (status.uncertain, status.problems) == ([], [])
    assert "ncertain" not in status.sentence() + table(status)
    assert not any(words in render(folder.store) for words in ("may have been billed", "$0.00 uncertain"))


def test_status_and_report_show_it_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    before = read_status(folder.store).spending
    lose(folder, ("teacher", "answers-0", 0.25), ("teacher", "answers-0", 0.125))
    lose(folder, ("teacher", "answers-0", 0.0625), ("generator", "pool-1", 0.5))
    status = read_status(folder.store)
    assert status.spending == before, "what was bought is what was"
    assert [(one["iteration"], one["role"], one["calls"], one["usd"]) for one in status.uncertain] == [
        (1, "generator", 1, 0.5),
        (1, "teacher", 3, 0.4375),
    ]
    assert "uncertain: $0.9375 that may have been billed" in status.sentence()
    assert status.to_json()["uncertain"] == status.uncertain
    shown = table(status)
    assert "uncertain US $" in shown
    assert "0.4375" in shown
    assert "0.9375" in shown.splitlines()[-3] + shown.splitlines()[-4]
    page = render(folder.store)
    assert "another $0.94 uncertain" in page
    assert "Uncertain: attempts that timed out or were interrupted" in page


def test_what_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    lose(folder, ("teacher", "answers-0", 0.25))
    (record,) = Path(folder.store.journal(None), "uncertain").glob("*.json")
    record.write_bytes(record.read_bytes()[:-1])
    status = read_status(folder.store)
    assert status.uncertain == []
    assert any(str(record) in line and line.startswith("warning: ") for line in status.stage_lines())
    assert any(str(record) in problem for problem in read_facts(folder.store).problems)


def test_the_meter_says_how_much_of_it() -> None:
    stats = [Stats(uncertain_usd=0.25), Stats(uncertain_usd=0.5)]
    assert meter_line({"openai": stats}, 12.349, 50.0).endswith("$12.35 of $50.00 spent, $0.75 of it uncertain")
    assert meter_line({"openai": [Stats()]}, 12.349, 50.0).endswith("$12.35 of $50.00 spent")

"""Runs and journals of every release open in this one: nothing that was paid for or trained is lost to a new version.

`tests/fixtures/run-N.tar.gz` is what `tests.run_folder` wrote, with its journal, in the release whose run folder has
format N (0: before folders said theirs). A fixture is never made anew; a release that raises `store.FORMAT` adds one.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from lion_ray.analysis.lineage import read_lineage
from lion_ray.core.store import FORMAT, RunStore
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.inspection import survey
from lion_ray.models.checkpoints import described_run
from lion_ray.pipeline.status import read_status
from lion_ray.pipeline.verify import verify
from lion_ray.report.page import render

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FORMATS = range(FORMAT + 1)


@pytest.fixture(params=FORMATS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    with tarfile.open(FIXTURES / f"run-{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = RunStore(str(tmp_path / "small"))
    description = store.description()
    assert description is not None
    assert description.get("format", 0) == request.param
    return store


def test_every_release_has_its_fixture() -> None:
    assert [path.name for path in sorted(FIXTURES.glob("run-*.tar.gz"))] == [f"run-{n}.tar.gz" for n in FORMATS]


def test_a_run_of_an_earlier_release_opens(run: RunStore) -> None:
    assert described_run(run)[0].run_name == "small"
    status = read_status(run)
    assert status.state == "finished"
    assert [result.iteration for result in status.results] == [0, 1, 2]
    assert sum(one["calls"] for one in status.spending) == 28
    assert len(read_lineage(run)) == 6
    assert "<html" in render(run)
    assert verify(run).faults == []


def test_a_run_of_an_earlier_release_goes_on(run: RunStore) -> None:
    assert run.claim() == 2
    stage = run.stage("iteration-1/verdicts")
    manifest = stage.manifest()
    assert manifest is not None
    before = stage.read(manifest["parts"])
    stage.commit(manifest)
    assert stage.read(manifest["parts"]).equals(before)
    assert set(stage.sums()) == {stage.part_name(n).rpartition("/")[2] for n in range(manifest["parts"])}
    assert verify(run).faults == []


def test_a_journal_of_an_earlier_release_is_served_and_compacted(run: RunStore) -> None:
    folder = Folder.at(run.address("journal"))
    before = survey(folder)
    assert (before.calls, before.damaged, before.foreign) == (28, 0, 0)
    compact(folder)
    after = survey(folder)
    assert (after.calls, after.sums) == (before.calls, before.sums)

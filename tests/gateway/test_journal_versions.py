"""Lines of other versions and other tools: never a crash, never served, never lost; and an order without clocks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson
import pytest

from lion_ray.cli.main import app, guarded
from lion_ray.core.errors import ConfigError
from lion_ray.gateway.calls import Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal, writer
from lion_ray.gateway.journal import journal as journal_module
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.inspection import survey, verify
from lion_ray.gateway.journal.record import encode_record
from lion_ray.gateway.journal.segments import SIDECAR
from tests.gateway.support import ACCOUNT, call, completion, filled, key, segments, served
from tests.stub_api import StubAPI

NEWER = f"{2 * 10**18:020d}-{'f' * 12}-00000000.calls"


def line(value: object) -> bytes:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def record(**changes: object) -> dict[str, object]:
    """The fields of a record of call 7, some changed; None leaves one out."""
    fields = json.loads(encode_record(completion(7), ACCOUNT)[9:])
    return {name: value for name, value in (fields | changes).items() if value is not None}


def reordered() -> dict[str, object]:
    fields = record()
    return {"key": fields["key"], "text": fields["text"]} | fields


FOREIGN: dict[str, object] = {
    "a version that is no number": record(v="draft"),
    "renamed fields": {**record(endpoint=None), "provider": "default"},
    "no tokens": record(prompt_tokens=None),
    "tokens as text": record(prompt_tokens="12"),
    "tokens beyond all bounds": record(completion_tokens=2**64 - 1),
    "a price as text": record(cost_usd="0.1"),
    "a role that is none": record(role=["teacher"]),
    "a key that is a number": record(key=7),
    "a key of another hash": record(key="ab" * 20),
    "no text": record(text=None),
    "other order": reordered(),
    "a header of a version that is no number": {"merged": {"parts": []}, "v": "draft"},
    "a header in another shape": {"merged": ["a"]},
    "a header with sums of another shape": {"merged": {"replaces": [], "sums": {"a": [["r", "t", "s", "x", 1, 1, 1]]}}},
    "a header with names that are none": {"merged": {"replaces": [[]], "sums": {}}},
    "another tool's": {"event": "rotated"},
    "a list": [1, 2],
    "no JSON": b"no json at all",
    "no UTF-8": b'{"key":"\xff\xfe"',
    "half a record": b'{"key":"' + key(7).encode() + b'","text":"',
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
async def test_a_foreign_line_is_kept_and_never_served(tmp_path: Path, what: str, first: bool) -> None:
    await filled(tmp_path, range(3))
    [known] = segments(tmp_path)
    foreign, own = line(FOREIGN[what]), encode_record(completion(4), ACCOUNT)
    (tmp_path / NEWER).write_bytes(foreign + own if first else own + foreign)
    for _ in range(2):
        journal = Journal.open(str(tmp_path))
        assert await served(journal, [0, 1, 2, 4, 7]) == [0, 1, 2, 4]
        assert (journal.dropped, journal.foreign) == (0, 1)
        assert journal.spending("run-1")[ACCOUNT].calls == 4
        await journal.close()
        found = verify(Folder.at(str(tmp_path)))
        assert (found.damaged, [fault.file for fault in found.foreign]) == ([], [found.foreign[0].file])
        assert compact(Folder.at(str(tmp_path))).foreign == 1
        # Twice, as the second compaction reads what the first wrote, and its sidecar.
        assert sum(path.read_bytes().count(foreign) for path in segments(tmp_path)) == 1
    assert known.name not in [path.name for path in segments(tmp_path)] or what.startswith("a header")


NEWER_LINES: dict[str, object] = {
    "a record": record(v=2),
    "a record of other fields": {"key": key(7), "v": 3, "paid": 1, "text": "x"},
    "a merged segment": {"merged": {"chapters": 1}, "v": 2},
}


@pytest.mark.parametrize("what", NEWER_LINES)
@pytest.mark.parametrize("sealed", [False, True], ids=["open", "compacted"])
async def test_a_journal_by_which_a_newer_version_buys_is_not_bought_by(
    tmp_path: Path, what: str, sealed: bool
) -> None:
    for number in range(3):
        await filled(tmp_path, [number])
    (tmp_path / NEWER).write_bytes(line(NEWER_LINES[what]) + encode_record(completion(4), ACCOUNT))
    folder = Folder.at(str(tmp_path))
    if sealed:
        # Twice: what one compaction noted in a sidecar, the next one and every reader go by.
        for _ in range(2):
            assert compact(folder).damaged == 0
    assert survey(folder).foreign == 1
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ConfigError, match=r"a newer lion-ray has written to it \(version [23]; this version knows 1\)"
    ) as said:
        Journal.open(str(tmp_path))
    assert "\n" not in str(said.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_sidecar_of_a_newer_version_is_not_gone_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lion_ray.gateway.journal import segments as module

    monkeypatch.setattr(module, "VERSION", 2)
    data = module.encode_sidecar(module.Segment("s.calls"))
    assert module.decode_sidecar("s.calls", data) is not None
    monkeypatch.undo()
    assert module.decode_sidecar("s.calls", data) is None


async def test_a_newer_version_s_merged_segment_is_left_alone(tmp_path: Path) -> None:
    await filled(tmp_path, range(3))
    await filled(tmp_path, range(5, 7))
    data = line({"merged": {"chapters": 1}, "v": 2}) + encode_record(completion(4), ACCOUNT)
    (tmp_path / NEWER).write_bytes(data)
    done = compact(Folder.at(str(tmp_path)))
    assert (done.opaque, done.damaged) == (1, 0)
    assert (tmp_path / NEWER).read_bytes() == data


async def test_foreign_lines_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await filled(tmp_path, range(3))
    (tmp_path / NEWER).write_bytes(line(record(v=2)) + line({"a": 1}))
    assert survey(Folder.at(str(tmp_path))).foreign == 2
    said = {}
    for verb in ("stats", "verify", "compact"):
        assert guarded(partial(app, ["journal", verb, str(tmp_path)], standalone_mode=False)) == 0
        said[verb] = capsys.readouterr().out
    assert "2 lines of another version" in said["stats"]
    assert "foreign line: of version 2" in said["verify"]
    assert "kept    2 lines" in said["compact"]


async def test_a_record_says_its_version_and_one_without_is_the_first(tmp_path: Path) -> None:
    written = encode_record(completion(7), ACCOUNT)
    assert json.loads(written[9:])["v"] == 1
    (tmp_path / NEWER).write_bytes(line(record(v=None)))
    journal = Journal.open(str(tmp_path))
    assert await served(journal, [7]) == [7]
    await journal.close()


def test_a_sidecar_of_another_shape_is_not_used(tmp_path: Path) -> None:
    from lion_ray.gateway.journal import segments as module

    for meta in (b"[]", b'{"replaces": 1, "sums": {}}', b'{"replaces": [], "sums": {"a": [1]}}', b"\xff"):
        fixed = module._FIXED.pack(module._MAGIC, 0, 0, 0, 0, len(meta)) + meta
        assert module.decode_sidecar("x", fixed + module._CRC.pack(zlib.crc32(fixed))) is None


@pytest.mark.parametrize("later", [1, 10**18, 9 * 10**18])
async def test_the_first_purchase_stands_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    """The second writer's clock is years behind, or ahead."""
    for clock, text in ((2 * 10**18, "first"), (later, "second"), (later, "third")):
        monkeypatch.setattr(writer.time, "time_ns", lambda clock=clock: clock)
        journal = Journal.open(str(tmp_path))
        await journal.put(replace(completion(1), text=text), ACCOUNT)
        await journal.close()
    for _ in range(2):
        journal = Journal.open(str(tmp_path))
        found = await journal.get(key(1))
        assert found is not None
        assert found.text == "first"
        assert journal.spending("run-1")[ACCOUNT].calls == 3
        await journal.close()
        compact(Folder.at(str(tmp_path)))


async def test_many_segments_are_merged_beside_the_work(tmp_path: Path) -> None:
    for number in range(6):
        await filled(tmp_path, [number])
    journal = Journal.open(str(tmp_path), most_segments=5)
    await journal.put(completion(6), ACCOUNT)
    await journal.close()
    assert len(segments(tmp_path)) == 2
    again = Journal.open(str(tmp_path))
    assert await served(again, range(7)) == list(range(7))
    assert again.spending("run-1")[ACCOUNT].calls == 7
    await again.close()


async def test_a_compaction_by_somebody_else_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await filled(tmp_path, [number])

    def refuse(folder: Folder) -> None:
        raise journal_module.InfrastructureError(f"the journal {folder.path} is being compacted by another process")

    monkeypatch.setattr(journal_module, "compact", refuse)
    journal = Journal.open(str(tmp_path), most_segments=1)
    await journal.close()
    assert len(segments(tmp_path)) == 3


async def test_segments_whose_sidecars_are_links_or_gone_are_read_all_the_same(tmp_path: Path) -> None:
    await filled(tmp_path, range(3))
    [path] = segments(tmp_path)
    Path(f"{path}{SIDECAR}").unlink()
    Path(f"{path}{SIDECAR}").symlink_to(tmp_path / "nowhere")
    journal = Journal.open(str(tmp_path))
    assert await served(journal, range(3)) == [0, 1, 2]
    await journal.close()


async def test_two_models_of_one_name_never_answer_for_each_other(
    connect: Callable[..., Client], stub: StubAPI
) -> None:
    """Two runs that share a journal and serve different weights, both as "stub-model"; and a third with the first's."""
    keys = []
    for weights in ("0123456789ab", "ba9876543210", "0123456789ab"):
        outcome = await connect(weights=weights).complete(call("Name a river."))
        assert isinstance(outcome, Completion)
        keys.append(outcome.key)
    assert len(stub.requests) == 2
    assert (keys[0] == keys[2], keys[0] == keys[1]) == (True, False)
    assert keys[0] != call("Name a river.").key("stub-model")

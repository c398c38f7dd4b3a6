"""`lion-ray journal`: what it says, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gateway.support import filled, segments
from tests.warm import lion

ROOT = Path(__file__).resolve().parents[2]


def journal(*words: str) -> tuple[int, str, str]:
    done = lion("journal", *words, env={"COLUMNS": "120"})
    assert "Traceback" not in done.err
    return done


async def test_stats_verify_and_compact(tmp_path: Path) -> None:
    for start in (0, 10):
        await filled(tmp_path, range(start, start + 10))
    code, output, _ = journal("stats", str(tmp_path))
    assert code == 0
    assert output.startswith("20 calls")
    assert "in 2 segments; 0 damaged or torn lines" in output
    assert "run-1" in output
    assert "teacher" in output

    first, second = segments(tmp_path)
    whole = second.read_bytes()
    second.write_bytes(whole.replace(b"answer 12", b"answer 99"))
    with first.open("ab") as file:
        file.write(b"torn")
    offset = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    code, output, errors = journal("verify", str(tmp_path))
    assert code == 3
    assert f"{second.name}, byte {offset}: damaged line" in output
    assert "torn tail of 4 bytes" in output
    assert errors.startswith(f"lion-ray: {tmp_path}: 1 damaged place;")
    code, output, _ = journal("verify", tmp_path.as_uri(), "--json")
    found = json.loads(output)
    assert (code, found["records"], len(found["torn"])) == (3, 19, 1)
    assert found["damaged"] == [{"file": second.name, "offset": offset, "reason": "damaged line"}]

    code, output, _ = journal("compact", str(tmp_path))
    assert code == 0
    assert "before  2 segments" in output
    assert "after   1 segment," in output
    assert "dropped 2 damaged or torn lines, 0 duplicates" in output
    assert journal("verify", str(tmp_path))[0] == 0
    code, output, _ = journal("stats", str(tmp_path), "--json")
    found = json.loads(output)
    assert (code, found["calls"], found["segments"], found["damaged"]) == (0, 19, 1, 0)
    # The damaged line was paid for.
    (account,) = found["spending"]
    assert (account["run"], account["role"], account["calls"]) == ("run-1", "teacher", 20)


async def test_a_segment_that_was_cut_short_is_damage(tmp_path: Path) -> None:
    await filled(tmp_path, range(3))
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    segment.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    code, output, _ = journal("verify", str(tmp_path))
    assert code == 3
    assert "bytes before its sidecar says" in output


def test_a_journal_that_is_not_there(tmp_path: Path) -> None:
    for verb in ("stats", "verify", "compact"):
        for path in (str(tmp_path / "absent"), (tmp_path / "absent").as_uri()):
            code, _, errors = journal(verb, path)
            assert (code, errors) == (2, f"lion-ray: {path}: no journal found (a run's journal is in RUN/journal)\n")
    assert not (tmp_path / "absent").exists()
    code, _, errors = journal("stats", "nosuchscheme://bucket/journal")
    assert code == 6
    assert errors.startswith("lion-ray: the journal nosuchscheme://")

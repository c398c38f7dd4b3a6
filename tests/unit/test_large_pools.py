"""What a pool of millions of rows relies on: files read line by line, tables mapped from disk, parts beyond 99,999."""

from __future__ import annotations

import gzip
import random
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from lion_ray.core.errors import DataError, InfrastructureError
from lion_ray.core.records import INSTRUCTION, instruction_id
from lion_ray.core.store import RunStore
from lion_ray.data import mapped as mapping
from lion_ray.data import pools
from lion_ray.data.lines import lines
from lion_ray.data.mapped import Numbers, filtered, mapped
from lion_ray.data.pools import drop_ids, read_pool, split_heldout

MB = 2**20


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def batches(*texts: str) -> list[pa.RecordBatch]:
    return [pa.record_batch({"text": pa.array([text])}) for text in texts]


def test_a_mapped_table_needs_no_file_and_no_heap(scratch: Path) -> None:
    big = "x" * MB
    schema = batches("")[0].schema
    before = pa.total_allocated_bytes()
    found = mapped((batch for number in range(16) for batch in batches(f"{number}{big}")), schema)
    assert list(scratch.iterdir()) == []
    assert found.nbytes > 16 * MB
    assert pa.total_allocated_bytes() - before < MB
    assert [text[:3] for text in found["text"].to_pylist()][:2] == ["0xx", "1xx"]
    odd = filtered(found, pa.chunked_array([[number % 2 == 1 for number in range(16)]]))
    del found
    assert pa.total_allocated_bytes() - before < MB
    assert [text.rstrip("x") for text in odd["text"].to_pylist()] == [str(number) for number in range(1, 16, 2)]
    assert list(scratch.iterdir()) == []


def test_nothing_is_left_where_the_rows_end_in_an_error(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a"}\n' * 3 + "no\n")
    with pytest.raises(DataError, match=r"a\.jsonl:4"):
        read_pool("a.jsonl", base_dir=tmp_path, limit=None, on_bad_row="stop")
    assert list(scratch.iterdir()) == []


def test_a_folder_that_takes_no_rows_is_told(scratch: Path) -> None:
    scratch.rmdir()
    with pytest.raises(InfrastructureError, match=r"scratch: the rows that are read do not fit \(.*\).* set TMPDIR"):
        mapped(batches("a"), batches("a")[0].schema)


def test_a_full_disk_is_told() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    big = batches("x" * MB)
    with pytest.raises(InfrastructureError, match=r"the rows that are read do not fit \(.*No space left.*\)"):
        mapping._write("/dev/full", big, big[0].schema)


def test_numbers_are_a_set() -> None:
    rng = random.Random(0)
    numbers, model = Numbers(), set()
    drawn = [rng.getrandbits(64) for _ in range(4000)] + [0, 1, 1024, 2048, 2**64 - 1]
    for number in rng.choices(drawn, k=12_000):
        assert numbers.add(number) == (number not in model)
        model.add(number)
        assert len(numbers) == len(model)


def test_small_batches_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f'{{"instruction": "row {number % 70}", "reference": "{number}"}}\n' for number in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(rows))

    def read() -> tuple[pa.Table, ...]:
        found = read_pool("a.jsonl", base_dir=tmp_path, limit=None, on_bad_row="stop")
        assert found.duplicates == 30
        left, heldout = split_heldout(found.pool, 20, seed=1)
        return found.pool, left, heldout, drop_ids(left, [instruction_id("row 3"), instruction_id("row 69")])[0]

    expected = read()
    monkeypatch.setattr(mapping, "BATCH_ROWS", 7)
    monkeypatch.setattr(pools, "BATCH_ROWS", 7)
    again = read()
    assert again[0]["id"].num_chunks == 10
    assert again == expected
    assert expected[0]["text"].to_pylist() == [f"row {number}" for number in range(70)]
    monkeypatch.setattr(pools, "BATCH_CHARACTERS", 1)
    assert read() == expected


def test_only_a_row_with_turns_makes_the_column(tmp_path: Path) -> None:
    turns = '[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]'
    (tmp_path / "a.jsonl").write_text(f'{{"instruction": "a"}}\n{{"messages": {turns}}}\n')
    found = read_pool("a.jsonl", base_dir=tmp_path, limit=None, on_bad_row="stop").pool
    assert found.schema == INSTRUCTION
    assert found["messages"].to_pylist()[0] is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_is_not_held_in_memory(tmp_path: Path, name: str) -> None:
    content = b"".join(b"%d %s\n" % (number, b"x" * MB) for number in range(24))
    if name.endswith(".gz"):
        content = gzip.compress(content, 1)
    elif name.endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    (tmp_path / name).write_bytes(content)
    del content
    tracemalloc.start()
    try:
        assert [int(line.split()[0]) for line in lines(name, tmp_path / name)] == list(range(24))
        assert tracemalloc.get_traced_memory()[1] < 8 * MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("blank", [0, 1, 4095, 4096, 5000, 3 * MB])
def test_lines_are_counted_from_the_start(tmp_path: Path, blank: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"\n" * blank + b"one\r\ntwo\n\nthree")
    found = [(number, line) for number, line in enumerate(lines("a.txt", tmp_path / "a.txt"), 1) if line.strip()]
    assert found == [(blank + 1, b"one\r\n"), (blank + 2, b"two\n"), (blank + 4, b"three")]


def test_a_file_that_breaks_off_is_told_where_it_does(tmp_path: Path) -> None:
    rng = random.Random(0)
    content = gzip.compress(
        b"".join(b'{"instruction": "%s"}\n' % rng.randbytes(2**15).hex().encode() for _ in range(200)), 1
    )
    (tmp_path / "a.jsonl.gz").write_bytes(content[: len(content) // 2])
    assert read_pool("a.jsonl.gz", base_dir=tmp_path, limit=10, on_bad_row="stop").pool.num_rows == 10
    with pytest.raises(DataError, match=r"^a\.jsonl\.gz: cannot be read \(.*\); check the file$"):
        read_pool("a.jsonl.gz", base_dir=tmp_path, limit=None, on_bad_row="stop")


def test_a_table_whose_lines_end_in_every_way(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'instruction,input\r\none,"a\nb\rc"\rtwo,\nthree,"d""e"')
    found = read_pool("a.csv", base_dir=tmp_path, limit=None, on_bad_row="stop").pool
    assert found["text"].to_pylist() == ["one\n\na\nb\rc", "two", 'three\n\nd"e']


def test_parts_beyond_five_digits_are_listed_read_and_summed(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    stage = store.stage("answers-0")
    numbers = [99_998, 99_999, 100_000, 100_001]
    for number in numbers:
        stage.write_part(number, pa.table({"number": [number]}))
    assert stage.part_indexes() == set(numbers)
    assert [stage.read_part(number)["number"].to_pylist() for number in numbers] == [[number] for number in numbers]
    stage.commit({"parts": 100_002})
    assert set(stage.sums()) == {stage.part_name(number).rpartition("/")[2] for number in numbers}

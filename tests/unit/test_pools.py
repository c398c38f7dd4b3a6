"""Reading instructions from every kind of source, and the pools' arithmetic."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lion_ray.core.errors import ConfigError, DataError, InfrastructureError
from lion_ray.core.records import INSTRUCTION, ONE_TURN, instruction_id, table
from lion_ray.data.formats import says_no_input
from lion_ray.data.pools import (
    PoolRead,
    bad_rows_jsonl,
    cache_pools,
    drop_ids,
    read_pool,
    split_heldout,
    train_pool,
    where_is,
)
from lion_ray.generation.sampling import clean_candidate, filter_candidate
from lion_ray.similarity.novelty import NoveltyIndex

ROOT = Path(__file__).parents[2]
ALPACA = ROOT.parent / "shared" / "data" / "alpaca" / "alpaca_data.json.gz"

ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a river.", "input": "", "output": "Oder"},
    {"instruction": "  Translate. ", "input": " good day\n"},
    {"instruction": "Fill {0} and {name}\x0b{", "input": None},
    {"instruction": "Name a river.", "input": "<noinput>"},
    {"prompt": "Erzähle von Bäumen"},
]
TEXTS = ["Name a river.", "Translate.\n\ngood day", "Fill {0} and {name}\x0b{", "Erzähle von Bäumen"]


def read(source: str, base_dir: Path, on_bad_row: Any = "stop", limit: int | None = None) -> PoolRead:
    return read_pool(source, base_dir=base_dir, limit=limit, on_bad_row=on_bad_row)


def pool_of(*texts: str, source: str = "seed") -> pa.Table:
    rows = [{"id": instruction_id(text), "text": text, "source": source, "iteration": 0} for text in texts]
    return table(rows, INSTRUCTION)


def texts_of(pool: pa.Table) -> list[str]:
    return pool["text"].to_pylist()


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.JSONL.GZ", "a.parquet"])
def test_every_kind_of_file_gives_the_same_pool(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        pq.write_table(
            pa.Table.from_pylist([{"instruction": None, "prompt": None} | row for row in ROWS]), tmp_path / name
        )
    else:
        text = jsonl(ROWS) if "jsonl" in name.lower() else json.dumps(ROWS, indent=2)
        content = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    result = read(name, tmp_path)
    assert result.pool.schema == ONE_TURN
    assert texts_of(result.pool) == TEXTS
    assert result.pool["id"].to_pylist() == [instruction_id(text) for text in TEXTS]
    assert result.duplicates == 1
    assert result.bad_rows == []
    assert set(result.pool["source"].to_pylist()) == {"seed"}
    assert set(result.pool["iteration"].to_pylist()) == {0}
    assert result.pool["parent"].null_count == len(TEXTS)


def test_a_datasets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_text(jsonl([{"instruction": "Name a tree."}, {"instruction": "Name a bird."}]))
    (folder / "test.jsonl").write_text(jsonl([{"instruction": "Name a fish."}]))
    assert texts_of(read("hf:mine", tmp_path).pool) == ["Name a tree.", "Name a bird."]
    assert texts_of(read("hf:mine:test", tmp_path).pool) == ["Name a fish."]
    with pytest.raises(ConfigError, match="hf:mine:dev: no such dataset or split 'dev'"):
        read("hf:mine:dev", tmp_path)

    (folder / "train.jsonl").write_text('{"instruction": "Name a')
    with pytest.raises(DataError, match="hf:mine: the dataset cannot be read"):
        read("hf:mine", tmp_path)

    saved = datasets.Dataset.from_list([{"question": "Why?"}, {"question": ""}])
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"dev": saved}).save_to_disk(tmp_path / "several")
    for source in ("hf:one", "hf:several:dev"):
        result = read(source, tmp_path, "quarantine")
        assert texts_of(result.pool) == ["Why?"]
        assert [(row.where, row.row_text) for row in result.bad_rows] == [(f"{source}: row 2", '{"question": ""}')]
    with pytest.raises(ConfigError, match="split 'train'"):
        read("hf:several", tmp_path)


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InfrastructureError, match="hf:nobody/nothing: the dataset cannot be fetched") as caught:
        read("hf:nobody/nothing", tmp_path)
    assert "\n" not in str(caught.value)


BAD_LINES = [
    ("{oops", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
    ("[1]", "not a JSON object"),
    ('"text"', "not a JSON object"),
    ('{"output": "x"}', "no 'instruction'"),
    ('{"instruction": null}', "no 'instruction'"),
    ('{"instruction": 7}', "'instruction' is not a string but int"),
    ('{"instruction": " \\u000b\\n"}', "the instruction is empty"),
    ('{"instruction": "half \\ud83d"}', "'instruction' holds a lone surrogate"),
    ('{"instruction": "fine", "input": ["a"]}', "'input' is not a string but list"),
    ('{"instruction": "fine", "input": "\\udc00"}', "'input' holds a lone surrogate"),
    ('{"prompt": "a", "text": "b"}', "no 'instruction', but both 'prompt' and 'text'"),
    ("[" * 100_000, "not JSON"),
    ('{"instruction": "a", "instruction": "b"}', "duplicate key 'instruction'"),
    ('{"instruction": "a", "reference": {"k": 1, "k": 2}}', "duplicate key 'k'"),
    ('{"instruction": "NaN", "input": "nan"}', "the instruction is 'NaN', which means that it is missing"),
    ('{"instruction": "a", "input": "b", "context": "c"}', "both 'input' and 'context'"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_malformed_line_stops_or_is_kept_aside(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "Name a tree."}\n\n' + line + '\n{"instruction": "Name a bird."}'
    )
    with pytest.raises(DataError, match=r"^a\.jsonl:3: " + re.escape(reason)) as caught:
        read("a.jsonl", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("correct the row, or set data.on_bad_row to quarantine")
    result = read("a.jsonl", tmp_path, "quarantine")
    assert texts_of(result.pool) == ["Name a tree.", "Name a bird."]
    (bad,) = result.bad_rows
    assert (bad.where, bad.row_text) == ("a.jsonl:3", line)
    assert bad.reason.startswith(reason)


def test_a_line_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"instruction": "ok"}\r\n{"instruction": "\xe9"}\r\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8"):
        read("a.jsonl", tmp_path)
    result = read("a.jsonl", tmp_path, "quarantine")
    assert texts_of(result.pool) == ["ok"]
    assert result.bad_rows[0].row_text == '{"instruction": "\ufffd"}'


def test_lines_end_with_a_line_feed_alone(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour\x1cfive"
    content = f'\ufeff{{"instruction": "{text}"}}\n{{"instruction": 1}}\n'
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    result = read("a.jsonl", tmp_path, "quarantine")
    assert texts_of(result.pool) == [text]
    assert result.bad_rows[0].where == "a.jsonl:2"
    again = bad_rows_jsonl(result.bad_rows)
    assert [json.loads(line) for line in again.split("\n")[:-1]] == [
        {"where": "a.jsonl:2", "reason": "'instruction' is not a string but int", "row": '{"instruction": 1}'}
    ]


def test_a_bad_element_of_a_list_has_its_line(tmp_path: Path) -> None:
    content = '[\n  {"instruction": "a\\nb"},\n  {\n    "instruction": "c"\n  }, 5,\n  {"input": "x"}\n]\n'
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"^a\.json:5: not a JSON object; "):
        read("a.json", tmp_path)
    result = read("a.json", tmp_path, "quarantine")
    assert texts_of(result.pool) == ["a\nb", "c"]
    assert [(bad.where, bad.row_text) for bad in result.bad_rows] == [("a.json:5", "5"), ("a.json:6", '{"input": "x"}')]


LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.json", '{"instruction": "x"}', DataError, r"^a\.json:1: not a list of objects"),
        ("a.json", '[\n{"instruction": "x"}\n{"instruction": "y"}]', DataError, r"^a\.json:3: not JSON \(',' or"),
        ("a.json", '[\n{"instruction": "x"},\n', DataError, r"^a\.json:3: not JSON"),
        ("a.json", '[\n{"instruction": "x"},\n]', DataError, r"^a\.json:3: not JSON"),
        ("a.json", '[{"instruction": "x"}', DataError, r"^a\.json:1: not JSON"),
        ("a.json", '[{"instruction": "x"}]\n[]', DataError, r"^a\.json:2: not JSON \(something follows"),
        ("a.json", '[{"instruction": "x"}, {"instruction": \n "y]', DataError, r"^a\.json:2: not JSON"),
        ("a.json", "[" * 100_000, DataError, r"^a\.json:1: not JSON"),
        ("a.json", b'[\n"\xff"]', DataError, r"^a\.json:2: not UTF-8"),
        ("a.json", "[]", DataError, r"^a\.json: no usable instruction"),
        ("a.json", "", DataError, r"^a\.json: is empty"),
        ("a.json", "\ufeff", DataError, r"^a\.json: is empty"),
        ("a.jsonl", " \n\n", DataError, r"^a\.jsonl: is empty"),
        ("a.jsonl.gz", "plain", DataError, r"^a\.jsonl\.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"instruction": "x"}', mtime=0)[:-9], DataError, r"^a\.jsonl\.gz: cannot be"),
        ("a.parquet", "plain", DataError, r"^a\.parquet: cannot be read as Parquet"),
        ("a.jsonl", '{"instruction": "x"}\n'.encode("utf-16"), DataError, r"^a\.jsonl: is UTF-16 .*save it as UTF-8"),
        ("a.jsonl", '{"instruction": "x"}\n'.encode("utf-16-le"), DataError, r"^a\.jsonl: is UTF-16"),
        ("a.json", '[{"instruction": "x"}]'.encode("utf-16-be"), DataError, r"^a\.json: is UTF-16"),
        ("a.json", '[{"instruction": "x"}]'.encode("utf-32"), DataError, r"^a\.json: is UTF-32"),
        ("a.jsonl", "\n<!DOCTYPE html>\n<html>Sign in</html>", DataError, r"^a\.jsonl: is an HTML page"),
        ("a.parquet", "<html><body>404</body></html>", DataError, r"^a\.parquet: is an HTML page"),
        ("a.json", "<?xml version='1.0'?><Error>AccessDenied</Error>", DataError, r"^a\.json: is XML"),
        ("a.jsonl", LFS_POINTER, DataError, r"^a\.jsonl: is a git-lfs pointer.*git lfs pull"),
        ("a.parquet", LFS_POINTER, DataError, r"^a\.parquet: is a git-lfs pointer"),
        ("a.jsonl.gz", gzip.compress(LFS_POINTER.encode(), mtime=0), DataError, r"^a\.jsonl\.gz: is a git-lfs pointer"),
        ("a.jsonl", gzip.compress(b'{"instruction": "x"}', mtime=0), DataError, r"^a\.jsonl: is gzip; .*\.gz"),
        ("a.jsonl", b"PAR1\x00\x00", DataError, r"^a\.jsonl: is Parquet"),
        ("a.jsonl", b"PK\x03\x04 rest", DataError, r"^a\.jsonl: is a ZIP archive"),
        ("a.jsonl", '{\n  "instruction": "x"\n}\n', DataError, r"^a\.jsonl: an object spans several lines"),
        ("a.jsonl", '[\n {"instruction": "x"},\n', DataError, r"^a\.jsonl:3: not JSON"),
        ("a.xml", "instruction\nx", ConfigError, r"^a\.xml: unknown file type"),
        ("a.parquet.gz", "", ConfigError, r"^a\.parquet\.gz: unknown file type"),
        ("a", "", ConfigError, r"^a: unknown file type"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, error: type[DataError], message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message) as caught:
        read(name, tmp_path, "quarantine")
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '[\n {"instruction": "Name a river."},\n {"instruction": "Name a lake."}\n]\n',
        '[{"instruction": "Name a river."}, {"instruction": "Name a lake."}]',
        '[{"instruction": "Name a river."},\n{"instruction": "Name a lake."}]',
        '\ufeff[{\n"instruction": "Name a river."\n}, {"instruction": "Name a lake."}]',
    ],
)
def test_a_list_named_jsonl_is_read_as_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    result = read("a.jsonl", tmp_path, "quarantine")
    assert (texts_of(result.pool), result.bad_rows) == (["Name a river.", "Name a lake."], [])


def test_a_doubled_key_in_a_list_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"instruction": "x", "input": "1", "input": "2"},\n{"instruction": "y"}]')
    result = read("a.json", tmp_path, "quarantine")
    assert texts_of(result.pool) == ["y"]
    assert [(row.where, row.reason) for row in result.bad_rows] == [("a.json:1", "duplicate key 'input'")]


@pytest.mark.parametrize("key", ["context", "inputs", "passage"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_the_text_that_an_instruction_is_about_is_read_under_other_names(tmp_path: Path, key: str, name: str) -> None:
    rows = [{"instruction": "Sum it up.", key: f"Text {number}.", "response": "-"} for number in range(3)]
    rows.append({"instruction": "Name a river.", key: "", "response": "-"})
    if name == "a.jsonl":
        (tmp_path / name).write_text(jsonl(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    result = read(name, tmp_path)
    assert result.duplicates == 0
    assert texts_of(result.pool) == [*(f"Sum it up.\n\nText {n}." for n in range(3)), "Name a river."]


def test_a_dataset_of_several_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "two"
    for name in ("main", "extra"):
        (home / name).mkdir(parents=True)
        (home / name / "train.jsonl").write_text(jsonl([{"instruction": f"Name a {name} river."}]))
    (home / "extra" / "test.jsonl").write_text(jsonl([{"instruction": "Name an extra lake."}]))
    (home / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: main/train.jsonl\n- config_name: extra\n  data_files:\n"
        "  - split: train\n    path: extra/train.jsonl\n  - split: test\n    path: extra/test.jsonl\n---\n"
    )
    assert texts_of(read("hf:two:extra", tmp_path).pool) == ["Name a extra river."]
    assert texts_of(read("hf:two:main:train", tmp_path).pool) == ["Name a main river."]
    assert texts_of(read("hf:two:extra:test", tmp_path).pool) == ["Name an extra lake."]
    for source in ("hf:two", "hf:two:test"):
        with pytest.raises(ConfigError, match=rf"{source}: has several configurations \(main, extra\); name one"):
            read(source, tmp_path)
    with pytest.raises(ConfigError, match="not hf:NAME"):
        read("hf:two:extra:test:more", tmp_path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^none\.jsonl: no such file"):
        read("none.jsonl", tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=r"write hf:folder\.json"):
        read("folder.json", tmp_path)


def test_only_bad_rows_are_no_pool(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"all 2 rows are malformed, the first: not a JSON object"):
        read("a.jsonl", tmp_path, "quarantine")


def test_parquet_whose_columns_have_no_names_is_told(tmp_path: Path) -> None:
    """Found by fuzzing: a column's name that is no UTF-8."""
    pq.write_table(pa.table({"instruction": ["a"], "wxyzwxyz": ["b"]}), tmp_path / "a.parquet", store_schema=False)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"wxyzwxyz", b"wxyz\xf4xyz"))
    with pytest.raises(DataError, match=r"^a\.parquet: cannot be read as Parquet"):
        read("a.parquet", tmp_path)


def test_parquet_rows_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"instruction": ["a", None, "b"], "output": [1, 2, 3]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet: row 2: no 'instruction'; "):
        read("a.parquet", tmp_path)
    result = read("a.parquet", tmp_path, "quarantine")
    assert texts_of(result.pool) == ["a", "b"]
    assert result.bad_rows[0].row_text == '{"instruction": null}'
    pq.write_table(pa.table({"instruction": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match="row 1: 'instruction' is not a string but int"):
        read("numbers.parquet", tmp_path)
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"no column 'instruction' \(it has title\)"):
        read("other.parquet", tmp_path)


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl([{"text": "a"}, {"text": "a"}, {"text": "b"}, {"text": "c"}, 5]))
    result = read("a.jsonl", tmp_path, limit=2)
    assert texts_of(result.pool) == ["a", "b"]
    assert result.duplicates == 1


def test_an_instruction_wins_over_its_alternatives(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl([{"text": "Below is …", "prompt": "p", "instruction": "the one"}]))
    assert texts_of(read("a.jsonl", tmp_path).pool) == ["the one"]


NONE = [
    "No input", "noinput", "NoInput", "<no input>", "< noinput >", "<noinput", '"<noinput>"', "`<noinput>`.",
    "[No Input]", "(no input)", "\\<noinput\\>", "{\\noinput}", ":\n<noinput>", "<noinputs>", "No input required.",
    "no input needed", "No input necessary", "No input is required", "No additional input provided.",
    "Input not required", "N/A", "n/a", "<N/A>", "n.a.", "NA", "None", "none.", "<none>", "Not applicable",
    "-", "--", " — ", "nan", "NaN", "NULL", "null", "<null>", "<empty>", "(empty)", "<NA>", "NaT", "nil",
    "undefined", "\\N",
]  # fmt: skip
REAL = [
    "None of the above is true because the sample is small", "None of the students", "No pain, no gain", "No lemon",
    "No input device was found on port 3", "The boy <noinput> the ball", "<noinput> 8", "Na", "North America", "+", ">",
    "-5", "- milk\n- eggs", "0", "[]", ".", "..-. --- -..-", "★★★★★", "🐥", "Noir", "无", "I have no input",
    "nan bread", "null and void", "Nancy", "empty", "\\n", "NULL != 0",
    "no\n\nyes", "." * 200_000 + "x", "nonexistent",
]  # fmt: skip


@pytest.mark.parametrize("text", NONE)
def test_ways_to_say_that_there_is_no_input(text: str) -> None:
    assert says_no_input(text)


@pytest.mark.parametrize("text", REAL)
def test_real_inputs_are_kept(text: str) -> None:
    assert not says_no_input(text)


def test_the_published_pool() -> None:
    if not ALPACA.exists():
        pytest.skip(f"needs the shared data: {ALPACA} is absent")
    result = read(str(ALPACA), ROOT)
    assert result.pool.num_rows + result.duplicates == 52_002
    assert result.duplicates == 0
    left = [text for text in texts_of(result.pool) if re.search(r"\n\n\W*no\W?input\W*$", text, re.IGNORECASE)]
    # The poem's own input ends so: a title, an empty line, "Noinput".
    assert len(left) <= 2


def test_new_pools_replace_the_train_pool_and_join_the_cache_pool() -> None:
    # The paper's sizes: 52k, then 6k from each of three iterations.
    rows = {0: 52_000, 1: 6_000, 2: 6_000, 3: 6_000}
    assert [rows[train_pool(iteration)] for iteration in (1, 2, 3, 4)] == [52_000, 6_000, 6_000, 6_000]
    assert [sum(rows[pool] for pool in cache_pools(iteration)) for iteration in (1, 2, 3)] == [52_000, 58_000, 64_000]


def test_heldout_rows_do_not_depend_on_the_files_order() -> None:
    texts = [f"text {number}" for number in range(50)]
    pool, heldout = split_heldout(pool_of(*texts), 10, seed=3)
    assert heldout.num_rows == 10
    chosen = set(texts_of(heldout))
    assert texts_of(pool) == [text for text in texts if text not in chosen]
    _, other_order = split_heldout(pool_of(*reversed(texts)), 10, seed=3)
    assert other_order == heldout
    _, fewer = split_heldout(pool_of(*texts), 4, seed=3)
    assert texts_of(fewer) == texts_of(heldout)[:4]
    _, other_seed = split_heldout(pool_of(*texts), 10, seed=4)
    assert set(texts_of(other_seed)) != chosen


@pytest.mark.parametrize("count", [-1, 2, 3])
def test_something_must_be_left_of_the_pool(count: int) -> None:
    with pytest.raises(ConfigError, match=r"pool of 2; give a number from 0 to 1"):
        split_heldout(pool_of("a", "b"), count, seed=0)


def test_no_heldout_rows() -> None:
    pool, heldout = split_heldout(pool_of("a", "b"), 0, seed=0)
    assert texts_of(pool) == ["a", "b"]
    assert heldout.num_rows == 0
    assert heldout.schema == ONE_TURN


def test_drop_ids() -> None:
    kept, dropped = drop_ids(pool_of("a", "b", "c"), [instruction_id("b"), instruction_id("z")])
    assert (texts_of(kept), dropped) == (["a", "c"], 1)
    assert drop_ids(pool_of("a"), [])[1] == 0


def test_the_demos_data() -> None:
    folder = ROOT / "configs" / "data"
    pool, heldout = read("support-pool.jsonl", folder), read("support-heldout.jsonl", folder)
    assert pool.duplicates == heldout.duplicates == 0
    known = {
        "category": {"billing", "cancellation", "delivery", "how-to", "outage"},
        "urgency": {"low", "normal", "high"},
        "product": {"internet", "tv", "mobile", "thermostat", "none"},
    }
    for rows in (pool.pool, heldout.pool):
        records = [json.loads(text) for text in rows["reference"].to_pylist()]
        for name, values in known.items():
            counts = Counter(record[name] for record in records)
            assert set(counts) == values
            assert max(counts.values()) <= 0.4 * len(records), "no answer that fits nearly always"
        assert all(set(record) == set(known) for record in records)
    index = NoveltyIndex()
    for text in texts_of(pool.pool) + texts_of(heldout.pool):
        assert all(score < 0.6 for _, score in index.nearest(text, k=1)), text
        index.add(text)


def test_the_general_demos_data() -> None:
    folder = ROOT / "configs" / "data"
    pool, heldout = read("demo-pool.jsonl", folder), read("demo-heldout.jsonl", folder)
    assert (pool.pool.num_rows, heldout.pool.num_rows) == (64, 24)
    assert pool.duplicates == heldout.duplicates == 0
    index = NoveltyIndex()
    for text in texts_of(pool.pool) + texts_of(heldout.pool):
        assert clean_candidate(text) == text
        assert filter_candidate(text, "stop", min_words=4) is None
        assert all(score < 0.5 for _, score in index.nearest(text, k=1)), text
        index.add(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('"Paris"', "Paris"),
        ('" Paris "', " Paris "),
        ("42", "42"),
        ('{"b": 1, "a": "é"}', '{"a":"é","b":1}'),
        ("[1, null]", "[1,null]"),
        ("false", "false"),
        ("null", None),
        ('" "', None),
    ],
)
def test_a_reference_is_a_text_or_canonical_json(tmp_path: Path, given: str, expected: str | None) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"instruction": "x", "reference": {given}}}\n{{"instruction": "y"}}\n')
    pool = read_pool("p.jsonl", base_dir=tmp_path, limit=None, on_bad_row="stop").pool
    assert pool["reference"].to_pylist() == [expected, None]
    assert pool["id"].to_pylist() == [instruction_id("x"), instruction_id("y")]


@pytest.mark.parametrize(
    ("given", "said"),
    [('"\\ud800"', "half a character"), ('["\\ud800"]', "half a character"), ("NaN", "not a JSON value")],
)
def test_a_reference_that_is_none(tmp_path: Path, given: str, said: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"instruction": "x", "reference": {given}}}\n')
    with pytest.raises(DataError, match=said) as caught:
        read_pool("p.jsonl", base_dir=tmp_path, limit=None, on_bad_row="stop")
    assert str(caught.value).startswith("p.jsonl:1: 'reference'")


def test_references_in_parquet(tmp_path: Path) -> None:
    rows = {"instruction": ["x", "y"], "reference": [{"a": 1}, None], "other": [1, 2]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    pool = read_pool("p.parquet", base_dir=tmp_path, limit=None, on_bad_row="stop").pool
    assert pool["reference"].to_pylist() == ['{"a":1}', None]


def test_where_a_row_is(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"instruction": "x"}\n\nno\n{"instruction": "y"}\n')
    assert where_is("p.jsonl", tmp_path, instruction_id("y")) == "p.jsonl:4"
    assert where_is("p.jsonl", tmp_path, "absent") == "p.jsonl"

"""What is read from each source, row by row, and what is said of what cannot be read: places and words in full."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lion_ray.core.errors import ConfigError, DataError, InfrastructureError, LionError
from lion_ray.data.sources import SourceRow, rows_of

GIVE_ROWS = "give rows with an 'instruction'"
CORRECT = "correct the file"
RENAME = "rename the one that holds it"


def put(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def read(folder: Path, name: str, content: str | bytes | None = None) -> list[Any]:
    """The rows; the last element is the error that ends them, if any, as (type, message)."""
    found: list[Any] = []
    if content is not None:
        put(folder, name, content)
    try:
        for row in rows_of(name, folder):
            found.append(row)
    except LionError as error:
        found.append((type(error), str(error)))
    return found


def data(message: str) -> tuple[type, str]:
    return DataError, message


Row = SourceRow


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        (
            "a.jsonl",
            b'\xef\xbb\xbf{"a": 1}\r\n\n {"b": "x\x0by"} \n{"c": "\xff"}\n{"a": 1, "a": 2}\n{"a": {"b": 1, "b": '
            b'2}}\n{"a": 1}}\n5',
            [
                Row("a.jsonl:1", {"a": 1}, '{"a": 1}'),
                Row("a.jsonl:3", {"b": "x\x0by"}, '{"b": "x\x0by"}'),
                Row("a.jsonl:4", None, '{"c": "\ufffd"}', "not UTF-8"),
                Row("a.jsonl:5", None, '{"a": 1, "a": 2}', "duplicate key 'a'"),
                Row("a.jsonl:6", None, '{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
                Row("a.jsonl:7", None, '{"a": 1}}', "not JSON (Extra data at column 9)"),
                Row("a.jsonl:8", 5, "5"),
            ],
        ),
        (
            "a.jsonl",
            '{"a": 1}\n' + '{"a": ' + "1" * 5000 + "}",
            [
                Row("a.jsonl:1", {"a": 1}, '{"a": 1}'),
                Row(
                    "a.jsonl:2",
                    None,
                    '{"a": ' + "1" * 5000 + "}",
                    "not JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; "
                    "use sys.set_int_max_str_digits() to increase the limit)",
                ),
            ],
        ),
        # A row that is a list is malformed, and no reason to read the file as one list.
        ("a.jsonl", "[1]\n[2]\n", [Row("a.jsonl:1", [1], "[1]"), Row("a.jsonl:2", [2], "[2]")]),
        ("a.jsonl", "[1,\n2]\n", [Row("a.jsonl:1", 1, "1"), Row("a.jsonl:2", 2, "2")]),
        ("a.jsonl", "\n [1, 2]\n\n", [Row("a.jsonl:2", 1, "1"), Row("a.jsonl:2", 2, "2")]),
        (
            "a.jsonl",
            '{\n"a": 1}',
            [
                data(
                    "a.jsonl: an object spans several lines; write each row on one line, or all rows as a list in a "
                    ".json"
                )
            ],
        ),
        ("a.json", "[]", []),
        ("a.json", " \t\r\n[ ]\n ", []),
        (
            "a.json",
            '[ {"a": "1\\n"} ,\n\n {"b":\n 2,"b": 3},4\n, "x"]\n',
            [
                Row("a.json:1", {"a": "1\n"}, '{"a": "1\\n"}'),
                Row("a.json:3", None, '{"b":\n 2,"b": 3}', "duplicate key 'b'"),
                Row("a.json:4", 4, "4"),
                Row("a.json:5", "x", '"x"'),
            ],
        ),
        (
            "a.json",
            '\n{"a": 1}',
            [data("a.json:2: not a list of objects (a file with one object per line is named .jsonl); correct the "
             "file")],
        ),
        ("a.json", b'[\n"\xff",\n\n"x"]', [data("a.json:2: not UTF-8; save the file as UTF-8")]),
        ("a.json", "[1,\n2\n", [Row("a.json:1", 1, "1"), Row("a.json:2", 2, "2"), data(f"a.json:3: not JSON (',' or "
         f"']' expected); {CORRECT}")]),
        ("a.json", "[1,\nx]", [Row("a.json:1", 1, "1"), data(f"a.json:2: not JSON (Expecting value); {CORRECT}")]),
        ("a.json", "[1,\n]", [Row("a.json:1", 1, "1"), data(f"a.json:2: not JSON (Expecting value); {CORRECT}")]),
        ("a.json", "[1]\n\n]", [Row("a.json:1", 1, "1"), data(f"a.json:3: not JSON (something follows the list); "
         f"{CORRECT}")]),
        ("a.json", "[]\n[]\n\n", [data(f"a.json:2: not JSON (something follows the list); {CORRECT}")]),
        (
            "a.json",
            "[1,\n" + "1" * 5000 + "]",
            [
                Row("a.json:1", 1, "1"),
                data(
                    "a.json:2: not JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 "
                    f"digits; use sys.set_int_max_str_digits() to increase the limit); {CORRECT}"
                ),
            ],
        ),
        ("a.json", "  ", [data(f"a.json: is empty; {GIVE_ROWS}")]),
        ("a.json.gz", b"x", [data("a.json.gz: cannot be read (Not a gzipped file (b'x')); check the file")]),
        ("a.JSON.GZ", gzip.compress(b"[7]", mtime=0), [Row("a.JSON.GZ:1", 7, "7")]),
        ("a.json.ZST", pa.compress(b"[7]", "zstd", asbytes=True), [Row("a.json.ZST:1", 7, "7")]),
        ("a.json", b"PAR1", [data("a.json: is Parquet; give it a name that ends in .parquet")]),
        (
            "a.txt",
            b"one\n \n two \r\nth\xffree \n",
            [
                Row("a.txt:1", {"instruction": "one"}, "one"),
                Row("a.txt:3", {"instruction": " two \r"}, "two"),
                Row("a.txt:4", None, "th\ufffdree", "not UTF-8"),
            ],
        ),
        (
            "a.csv",
            ' instruction ,note,input\r\n"x, ""y""\r\nz", n ,\r\n,,\r\n \n , ,q\nshort\n1,2,3,4\n',
            [
                Row("a.csv:3", {"instruction": 'x, "y"\r\nz'}, ignored=("note",)),
                Row("a.csv:5", {}, ignored=("note",)),
                Row("a.csv:6", {"input": "q"}, ignored=("note",)),
                Row("a.csv:7", {"instruction": "short"}, ignored=("note",)),
                Row("a.csv:8", None, "1,2,3,4", "4 cells for 3 columns"),
            ],
        ),
        (
            "a.tsv",
            "instruction\tinput\nx, y\tz\na\tb\tc\n",
            [
                Row("a.tsv:2", {"instruction": "x, y", "input": "z"}),
                Row("a.tsv:3", None, "a\tb\tc", "3 cells for 2 columns"),
            ],
        ),
        ("a.csv", "note,a,note\nx,y,z\n", [data("a.csv:1: duplicate column 'note'; rename one of the two")]),
        ("a.csv", "task,note\nx,y\n", [data(f"a.csv: no column 'instruction' (it has task, note); {RENAME}")]),
        ("a.csv", b"instruction\n\xff\n", [data("a.csv: not UTF-8; save the file as UTF-8")]),
        (
            "a.csv",
            'instruction\nx\n"y" z\n',
            [
                Row("a.csv:2", {"instruction": "x"}),
                data("a.csv:3: not a valid table (',' expected after '\"'); correct it"),
            ],
        ),
        ("a.csv", "instruction\n" + "x" * 200_000 + "\n", [Row("a.csv:2", {"instruction": "x" * 200_000})]),
        ("a.parquet", "<html>", [data("a.parquet: is an HTML page (a sign-in or an error page, saved instead of the "
         "data?); download the file itself")]),
    ],
)  # fmt: skip
def test_every_row_of_a_file(tmp_path: Path, name: str, content: str | bytes, rows: list[Any]) -> None:
    assert read(tmp_path, name, content) == rows


@pytest.mark.parametrize(
    ("name", "content", "where", "began"),
    [
        ("a.ndjson", '{"a": ' * 100_000, "a.ndjson:1", "not JSON ("),
        ("a.json", "[\n" + '{"a": ' * 100_000, "", "a.json:2: not JSON ("),
        ("a.parquet", "abc", "", "a.parquet: cannot be read as Parquet ("),
    ],
)
def test_what_a_library_says_of_a_row_is_told(tmp_path: Path, name: str, content: str, where: str, began: str) -> None:
    (found,) = read(tmp_path, name, content)
    if where:
        assert (found.where, found.value, found.text) == (where, None, content.strip())
        assert found.problem.startswith(began)
        assert found.problem.endswith(")")
        assert len(found.problem) > len(began) + 10
    else:
        assert found[0] is DataError
        assert found[1].startswith(began)
        assert len(found[1]) > len(began) + 20


UNKNOWN = (
    "unknown file type; give .json, .jsonl, .csv, .tsv or .txt (each also with .gz or .zst), "
    ".parquet, or hf:NAME[:SPLIT]"
)


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    assert read(tmp_path, "folder.json") == [
        (ConfigError, "folder.json: is a folder; name a file in it, or write hf:folder.json for a `datasets` folder")
    ]
    assert read(tmp_path, "none.json") == [(ConfigError, f"none.json: no such file in {tmp_path}; check the path")]
    for name in ("a.xml", "a", "a.gz", "a.parquet.gz", "a.parquet.zst", "a.jsonl.bz2"):
        assert read(tmp_path, name, "x") == [(ConfigError, f"{name}: {UNKNOWN}")]


def test_every_row_of_a_parquet_file(tmp_path: Path) -> None:
    """Also of one that is longer than what is read at once."""
    texts = [f"x{number}" for number in range(5000)]
    table = pa.table({"note": texts, "input": texts[::-1], "instruction": texts, "x": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet") == [
        Row(
            f"a.parquet: row {number + 1}",
            {"instruction": f"x{number}", "input": f"x{4999 - number}"},
            ignored=("note", "x"),
        )
        for number in range(5000)
    ]
    odd = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa"))
    pq.write_table(pa.table({"instruction": odd, "note": ["", ""]}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet") == [
        Row("a.parquet: row 1", None, "", "not UTF-8"),
        Row("a.parquet: row 2", {"instruction": "a"}, ignored=("note",)),
    ]
    pq.write_table(pa.table({"note": ["x"], "task": ["x"]}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet") == [data(f"a.parquet: no column 'instruction' (it has note, task); {RENAME}")]


def test_a_row_as_text() -> None:
    assert Row("a", {"ä": 1}).as_text() == '{"ä": 1}'
    assert Row("a", {"ä": Path("x")}).as_text() == '{"ä": "x"}'
    assert Row("a", {"ä": 1}, "as it stands").as_text() == "as it stands"
    assert Row("a", {"ä": 1}, "").as_text() == ""


@pytest.mark.parametrize("source", ["hf:a:b:c:d", "hf:a:b:", "hf:a:", "hf:a::b"])
def test_a_datasets_name_that_is_none(tmp_path: Path, source: str) -> None:
    assert read(tmp_path, source) == [(ConfigError, f"{source}: not hf:NAME[:CONFIGURATION][:SPLIT]; correct it")]


def test_every_row_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"note": "n", "instruction": "x", "input": None}, {"note": "m", "instruction": "y", "input": "z"}]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one")
    saved.save_to_disk(tmp_path / "with:colons")
    datasets.DatasetDict({"train": saved, "dev": saved.select([1])}).save_to_disk(tmp_path / "several")
    first, second = {"instruction": "x", "input": None}, {"instruction": "y", "input": "z"}
    for source in ("hf:one", "hf:one:any", "hf:several", "hf:with:colons"):
        assert read(tmp_path, source) == [
            Row(f"{source}: row 1", first, ignored=("note",)),
            Row(f"{source}: row 2", second, ignored=("note",)),
        ]
    assert read(tmp_path, "hf:several:dev") == [Row("hf:several:dev: row 1", second, ignored=("note",))]
    assert read(tmp_path, "hf:several:no") == [
        (ConfigError, "hf:several:no: no such dataset or split 'no' ('no'); check the name")
    ]
    datasets.Dataset.from_list([{"note": "n", "task": "t"}]).save_to_disk(tmp_path / "other")
    assert read(tmp_path, "hf:other") == [data(f"hf:other: no column 'instruction' (it has note, task); {RENAME}")]
    # A folder of files, read by `datasets`.
    put(tmp_path, "files/train.jsonl", '{"instruction": "x"}\n')
    put(tmp_path, "files/test.jsonl", '{"instruction": "y"}\n')
    assert read(tmp_path, "hf:files") == [Row("hf:files: row 1", {"instruction": "x"})]
    assert read(tmp_path, "hf:files:test") == [Row("hf:files:test: row 1", {"instruction": "y"})]
    assert read(tmp_path, "hf:files:default:test") == [Row("hf:files:default:test: row 1", {"instruction": "y"})]
    ((error, message),) = read(tmp_path, "hf:files:no")
    assert error is ConfigError
    assert message.startswith("hf:files:no: no such dataset or split 'no' (Unknown split \"no\".")
    assert message.endswith("); check the name")
    put(tmp_path, "files/train.jsonl", '{"instruction": "x"')
    ((error, message),) = read(tmp_path, "hf:files")
    assert error is DataError
    assert message.startswith("hf:files: the dataset cannot be read (An error occurred while generating the dataset")
    assert message.endswith("); check its files")


def test_every_configuration_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def home(name: str, *configurations: str) -> None:
        listed = []
        for one in configurations:
            for split in ("train", "test"):
                put(tmp_path, f"{name}/{one}/{split}.jsonl", f'{{"instruction": "{one} {split}"}}\n')
            listed.append(
                f"- config_name: {one}\n  data_files:\n  - split: train\n    path: {one}/train.jsonl\n"
                f"  - split: test\n    path: {one}/test.jsonl\n"
            )
        put(tmp_path, f"{name}/README.md", "---\nconfigs:\n" + "".join(listed) + "---\n")

    def one(source: str) -> Any:
        (row,) = read(tmp_path, source)
        return row.value["instruction"] if isinstance(row, SourceRow) else row

    home("only", "main")
    home("both", "default", "more")
    home("many", *(f"c{number:02}" for number in range(21)))
    home("some", *(f"c{number:02}" for number in range(20)))
    assert one("hf:only") == "main train"
    assert one("hf:only:test") == "main test"
    assert one("hf:only:main") == "main train"
    assert one("hf:only:main:test") == "main test"
    assert one("hf:both") == "default train"
    assert one("hf:both:test") == "default test"
    assert one("hf:both:more") == "more train"
    assert one("hf:both:more:test") == "more test"
    assert one("hf:many:c20") == "c20 train"
    shown = ", ".join(f"c{number:02}" for number in range(20))
    assert one("hf:some") == (
        ConfigError,
        f"hf:some: has several configurations ({shown}); name one, as hf:NAME:c00 or hf:NAME:c00:train",
    )
    assert one("hf:many:test") == (
        ConfigError,
        f"hf:many:test: has several configurations ({shown}, …); name one, as hf:NAME:c00 or hf:NAME:c00:test",
    )


def test_a_hub_that_is_out_of_reach_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    ((error, message),) = read(tmp_path, "hf:nobody/nothing")
    assert error is InfrastructureError
    assert message.startswith("hf:nobody/nothing: the dataset cannot be fetched (")
    assert message.endswith("); try again")

"""What pools, held-out rows and evaluation questions are read as, and what is said of those that are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.config import DataConfig
from lion_ray.core.errors import ConfigError, DataError, LionError
from lion_ray.core.records import instruction_id
from lion_ray.data.contamination import QUOTES, SIMILAR, EvaluationSet, read_questions
from lion_ray.data.importing import Contaminated, ImportedData, heldout_rows, import_data, import_lines
from lion_ray.data.pools import BadRow, bad_rows_jsonl, drop_ids, read_pool, split_heldout, where_is

GIVE_ROWS = "give rows with an 'instruction'"
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why?"}


def put(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_everything_that_is_read_of_a_pool(tmp_path: Path) -> None:
    source = put(
        tmp_path,
        "a.jsonl",
        lines(
            {"question": "Why?", "note": "ä"},
            {"question": "Why?", "reference": "late", "note": 1},
            {"messages": [SYSTEM, USER], "reference": "So."},
            {"text": 3},
            {"instruction": "How?", "reference": "Thus."},
            {"instruction": "What?"},
        )
        + '{"x": "ä"\n',
    )
    found = read_pool(source, base_dir=tmp_path, limit=None, on_bad_row="quarantine")
    rows = found.pool.to_pylist()
    assert [(row["text"], row["source"], row["iteration"], row["reference"], row["messages"]) for row in rows] == [
        ("Why?", "seed", 0, None, None),
        ("Why?", "seed", 0, "So.", [SYSTEM, USER]),
        ("How?", "seed", 0, "Thus.", None),
        ("What?", "seed", 0, None, None),
    ]
    assert rows[0]["id"] == instruction_id("Why?") != rows[1]["id"]
    assert found.duplicates == 1
    assert found.renamed == {"question as instruction": 2}
    assert found.ignored == {"note": 2}
    assert found.bad_rows == [
        BadRow("a.jsonl:4", "'text' is not a string but int", '{"text": 3}'),
        BadRow("a.jsonl:7", "not JSON (Expecting ',' delimiter at column 10)", '{"x": "ä"'),
    ]
    assert bad_rows_jsonl(found.bad_rows[1:]) == (
        '{"where": "a.jsonl:7", "reason": "not JSON (Expecting \',\' delimiter at column 10)", '
        '"row": "{\\"x\\": \\"ä\\""}\n'
    )
    kept = bad_rows_jsonl(found.bad_rows).splitlines()
    assert [json.loads(line)["where"] for line in kept] == ["a.jsonl:4", "a.jsonl:7"]
    some = read_pool(source, base_dir=tmp_path, limit=2, on_bad_row="stop")
    assert (some.pool.num_rows, some.duplicates, some.bad_rows) == (2, 1, [])
    with pytest.raises(DataError) as caught:
        read_pool(source, base_dir=tmp_path, limit=3, on_bad_row="stop")
    assert str(caught.value) == (
        "a.jsonl:4: 'text' is not a string but int; correct the row, or set data.on_bad_row to quarantine"
    )
    assert where_is(source, tmp_path, rows[2]["id"]) == "a.jsonl:5"
    assert where_is(source, tmp_path, rows[1]["id"]) == "a.jsonl:3"
    assert where_is(source, tmp_path, "another") == "a.jsonl"


def test_a_pool_without_a_row_says_why(tmp_path: Path) -> None:
    for content, why in (
        ("[]", "it is empty"),
        ('[{"text": 3}, 5]', "all 2 rows are malformed, the first: 'text' is not a string but int"),
    ):
        put(tmp_path, "a.json", content)
        with pytest.raises(DataError) as caught:
            read_pool("a.json", base_dir=tmp_path, limit=None, on_bad_row="quarantine")
        assert str(caught.value) == f"a.json: no usable instruction ({why}); {GIVE_ROWS}"


def test_which_rows_are_held_out() -> None:
    pool = pa.table({"id": [f"id{number}" for number in range(8)], "n": list(range(8))})
    left, heldout = split_heldout(pool, 3, 5)
    # The same rows in every version: a run that goes on would otherwise train on what it judges with.
    assert heldout["n"].to_pylist() == HELD_OUT
    assert left["n"].to_pylist() == [n for n in range(8) if n not in HELD_OUT]
    assert split_heldout(pool, 2, 5)[1]["n"].to_pylist() == HELD_OUT[:2]
    assert split_heldout(pool, 7, 5)[0].num_rows == 1
    assert split_heldout(pool.slice(0, 0), 0, 5)[1].num_rows == 0
    for count, rows, most in ((8, 8, 7), (-1, 8, 7), (1, 1, 0), (1, 0, 0)):
        with pytest.raises(ConfigError) as caught:
            split_heldout(pool.slice(0, rows), count, 5)
        assert str(caught.value) == (
            f"data.heldout: cannot hold out {count} instructions of a pool of {rows}; give a number from 0 to {most}, "
            "or a file"
        )
    kept, dropped = drop_ids(pool, ["id1", "id7", "none"])
    assert (kept["n"].to_pylist(), dropped) == ([0, 2, 3, 4, 5, 6], 2)


HELD_OUT = [3, 2, 6]

QUESTION = "How many rivers of more than one thousand kilometres flow through the plains of northern Europe today?"


def test_everything_that_is_imported(tmp_path: Path) -> None:
    put(tmp_path, "pool.jsonl", lines(
        {"question": "Why?", "note": 1}, {"question": "Why?"}, {"instruction": "How?"}, {"text": 3},
        {"instruction": QUESTION}, {"instruction": "Was ändert sich?"}, {"instruction": "Kept?", "note": 1},
    ))  # fmt: skip
    put(tmp_path, "heldout.jsonl", lines({"text": "How?", "id": 3, "note": 1}, {"question": "Apart?"}, {"text": ""}))
    put(tmp_path, "suite.jsonl", lines({"question": QUESTION}, {"turns": ["Was ändert sich?"]}))
    config = DataConfig(
        pool="pool.jsonl", heldout="heldout.jsonl", on_bad_row="quarantine", decontaminate=("suite.jsonl",)
    )
    found = import_data(config, tmp_path, 0)
    assert found.pool["text"].to_pylist() == ["Why?", "Kept?"]
    assert found.heldout["text"].to_pylist() == ["How?", "Apart?"]
    assert heldout_rows(config, tmp_path, 0).equals(found.heldout)
    assert found.questions == [QUESTION, "Was ändert sich?"]
    assert (found.duplicates, found.in_heldout) == (1, 1)
    assert found.bad_rows == [
        BadRow("pool.jsonl:4", "'text' is not a string but int", '{"text": 3}'),
        BadRow("heldout.jsonl:3", "the instruction is empty", '{"text": ""}'),
    ]
    assert found.contaminated == [
        Contaminated(instruction_id(text), text, SIMILAR) for text in (QUESTION, "Was ändert sich?")
    ]
    assert found.renamed == {"question as instruction": 3, "text as instruction": 1}
    assert found.ignored == {"note": 3, "id": 1}
    assert found.counts() == {
        "duplicates": 1,
        "bad_rows": 2,
        "in_heldout": 1,
        "contaminated": {SIMILAR: 2},
        "renamed": {"question as instruction": 3, "text as instruction": 1},
        "ignored": {"note": 3, "id": 1},
    }
    assert found.contaminated_jsonl().splitlines()[1] == (
        f'{{"id": "{instruction_id("Was ändert sich?")}", "reason": "{SIMILAR}", "text": "Was ändert sich?"}}'
    )
    assert found.contaminated_jsonl().endswith("}\n")


def test_held_out_rows_of_the_pool_itself(tmp_path: Path) -> None:
    put(tmp_path, "pool.jsonl", lines(*({"instruction": f"Text {n}?"} for n in range(9)), {"text": 3}))
    config = DataConfig(pool="pool.jsonl", heldout=2, limit=6, on_bad_row="quarantine")
    found = import_data(config, tmp_path, 3)
    whole = read_pool("pool.jsonl", base_dir=tmp_path, limit=6, on_bad_row="stop").pool
    left, heldout = split_heldout(whole, 2, 3)
    assert found == ImportedData(left, heldout, [], 0, 0, [], [], {}, {})
    assert found.counts() == {"duplicates": 0, "bad_rows": 0, "in_heldout": 0, "contaminated": {}}
    assert heldout_rows(config, tmp_path, 3).equals(heldout)
    # Only as far as the limit: a later row may be malformed.
    put(tmp_path, "short.jsonl", lines({"instruction": "a"}, {"instruction": "b"}, {"text": 3}))
    stops = DataConfig(pool="short.jsonl", heldout=1, limit=2, on_bad_row="stop")
    assert heldout_rows(stops, tmp_path, 3).equals(import_data(stops, tmp_path, 3).heldout)


def test_nothing_left_to_train_on_says_why(tmp_path: Path) -> None:
    put(tmp_path, "pool.jsonl", lines({"instruction": QUESTION}, {"instruction": "Why?"}))
    put(tmp_path, "same.jsonl", lines({"instruction": QUESTION}, {"instruction": "Why?"}))
    with pytest.raises(DataError) as caught:
        import_data(DataConfig(pool="pool.jsonl", heldout="same.jsonl"), tmp_path, 0)
    assert str(caught.value) == "pool.jsonl: no instruction is left to train on"
    with pytest.raises(DataError) as caught:
        import_data(DataConfig(pool="pool.jsonl", decontaminate=("same.jsonl",)), tmp_path, 0)
    assert str(caught.value) == (
        "pool.jsonl: no instruction is left to train on (2 are too similar to an evaluation question)"
    )


def test_what_the_log_says_of_an_import() -> None:
    assert import_lines({}) == import_lines({"renamed": None, "ignored": {}}) == []
    assert import_lines({"renamed": {"a as b": 1234, "c as d": 2}}) == ["read a as b (1,234 rows); c as d (2 rows)"]
    told = "; the key for the text that answers are compared with is `reference`"
    ten = {f"k{number}": 1000 for number in range(10)}
    shown = ", ".join(f"k{number} (1,000)" for number in range(10))
    assert import_lines({"ignored": ten}) == [f"not read: {shown}{told}"]
    assert import_lines({"ignored": ten | {"more": 1}}) == [f"not read: {shown}, …{told}"]


def test_everything_that_is_a_question(tmp_path: Path) -> None:
    row = {name: name for name in ("turns", "problem", "passage", "input", "text", "question", "prompt", "instruction")}
    put(tmp_path, "a.jsonl", lines(row | {"answer": "x"}, {"turns": ["one", 2, " ", "three"], "text": None}))
    assert read_questions(["a.jsonl"], tmp_path) == [
        *("instruction", "prompt", "question", "text", "input", "passage", "problem", "turns"),
        "one",
        "three",
    ]
    put(
        tmp_path,
        "b.JSON",
        json.dumps({"name": "x", "none": [], "texts": ["x"], "ones": [{"text": "1"}, {"text": "2"}]}),
    )
    put(tmp_path, "deep/in/c.JSONL.GZ", gzip.compress(lines({"text": "3"}).encode()))
    put(tmp_path, "deep/d.json.gz", gzip.compress(b'[{"text": "4"}]'))
    put(tmp_path, "deep/notes.csv", "text\nno\n")
    assert read_questions(["b.JSON", "deep"], tmp_path) == ["1", "2", "4", "3"]


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        ("a.jsonl", '{"x": 1}', DataError, "a.jsonl: no row has any of instruction, prompt, question, text, input, "
         "passage, problem, turns; rename the key that holds the question"),
        ("a.jsonl", '{"text": "x"}\n{"x\n', DataError, "a.jsonl:2: not JSON (Unterminated string starting at at "
         "column 2); correct the row, or leave the file out of data.decontaminate"),
        ("a.jsonl", '{"text": "x"}\n5\n', DataError, "a.jsonl:2: not a JSON object; correct the row, or leave the "
         "file out of data.decontaminate"),
        ("a.json", '{"a": [{"text": "x"}, 5]}', DataError, "a.json: a, row 2: not a JSON object; correct the row, or "
         "leave the file out of data.decontaminate"),
        ("empty/readme.md", "x", ConfigError, "empty: no .json, .jsonl, .json.gz, .jsonl.gz, .parquet file in this "
         "folder; check data.decontaminate"),
    ],
)  # fmt: skip
def test_what_is_said_of_questions_that_are_none(
    tmp_path: Path, name: str, content: str, error: type[Exception], told: str
) -> None:
    put(tmp_path, name, content)
    with pytest.raises(LionError) as caught:
        read_questions([name.split("/")[0]], tmp_path)
    assert (type(caught.value), str(caught.value)) == (error, told)


def test_how_similar_a_text_may_be() -> None:
    words = [f"w{number}" for number in range(10)]
    question = " ".join(words)
    seven, eight = " ".join([*words[:7], "a", "b", "c"]), " ".join([*words[:8], "a", "b"])
    assert EvaluationSet([question, question]).rejects(eight) == SIMILAR
    assert EvaluationSet([question]).rejects(seven) is None
    assert EvaluationSet([question], threshold=0.6).rejects(seven) == SIMILAR
    assert len(EvaluationSet([question, question, "other"])) == 2
    long = [f"v{number}" for number in range(14)]
    around = [f"o{number}" for number in range(60)]
    evaluation = EvaluationSet([" ".join(long)])
    assert (
        evaluation.rejects(" ".join([*around, *long[:13]]))
        == QUOTES
        == "shares 13 words in a row with an evaluation question"
    )
    assert evaluation.rejects(" ".join([*around, *long[1:], *around])) == QUOTES
    assert evaluation.rejects(" ".join([*around, *long[:12], "x", long[13]])) is None
    assert evaluation.rejects(" ".join([*around, *reversed(long)])) is None

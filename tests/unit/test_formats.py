"""The formats that rows are written in, and the files that they stand in: each read as the same conversations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lion_ray.config import DataConfig
from lion_ray.core.errors import DataError
from lion_ray.core.records import INSTRUCTION, ONE_TURN, Prompt, conversation_id, instruction_id, table
from lion_ray.data.formats import FormatError, read_row
from lion_ray.data.importing import import_data, import_lines
from lion_ray.data.pools import PoolRead, read_pool

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Name a river."}
ANSWER = {"role": "assistant", "content": "The Elbe."}
AGAIN = {"role": "user", "content": "Another one?"}
LAST = {"role": "assistant", "content": "The Oder."}


def read(source: str, folder: Path, on_bad_row: Any = "stop") -> PoolRead:
    return read_pool(source, base_dir=folder, limit=None, on_bad_row=on_bad_row)


@pytest.mark.parametrize(
    ("row", "text", "messages", "reference"),
    [
        ({"instruction": "Name a river.", "input": "", "output": "The Elbe."}, "Name a river.", (), None),
        ({"instruction": "Sum up.", "context": "A text.", "response": "x"}, "Sum up.\n\nA text.", (), None),
        ({"system_prompt": "", "question": "Name a river.", "response": "x"}, "Name a river.", (), None),
        ({"system_prompt": "Be brief.", "question": "Name a river."}, "Name a river.", (SYSTEM, USER), None),
        ({"prompt": "Name a river.", "completion": "The Elbe."}, "Name a river.", (), "The Elbe."),
        ({"prompt": "Name a river.", "completion": "x", "reference": "y"}, "Name a river.", (), "y"),
        ({"messages": [USER]}, "Name a river.", (), None),
        ({"messages": [USER, ANSWER]}, "Name a river.", (), "The Elbe."),
        ({"messages": [SYSTEM, USER, ANSWER]}, "Name a river.", (SYSTEM, USER), "The Elbe."),
        ({"messages": [USER, ANSWER, AGAIN]}, "Another one?", (USER, ANSWER, AGAIN), None),
        ({"messages": [USER, ANSWER, AGAIN, LAST]}, "Another one?", (USER, ANSWER, AGAIN), "The Oder."),
        ({"messages": [USER], "system": "Be brief."}, "Name a river.", (SYSTEM, USER), None),
        (
            {"conversations": [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Elbe."}]},
            "Name a river.",
            (),
            "The Elbe.",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Name a"}, {"type": "text", "text": "x"}]}
                ]
            },
            "Name a\nx",
            (),
            None,
        ),
    ],
)
def test_a_row_of_every_format(row: dict[str, Any], text: str, messages: tuple[Any, ...], reference: str) -> None:
    found = read_row(row)
    assert (found.text, found.messages, found.reference) == (text, messages, reference)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": []}, "not a list of messages"),
        ({"messages": "hello"}, "not a list of messages"),
        ({"messages": [SYSTEM]}, "does not end with a turn of the user"),
        ({"messages": [ANSWER]}, "does not end with a turn of the user"),
        ({"messages": [ANSWER, USER]}, "begins with the assistant's"),
        ({"messages": [USER, AGAIN]}, "two consecutive turns of one role"),
        ({"messages": [USER, SYSTEM, AGAIN]}, "system message that is not the first"),
        ({"messages": [USER, {"role": "tool", "content": "3"}]}, "message 2 has the role 'tool'"),
        ({"messages": [{"content": "x"}]}, "message 1 has the role none"),
        ({"messages": [USER | {"tool_calls": [1]}]}, "message 1 calls a tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "other than text, such as an image"),
        ({"messages": [{"role": "user", "content": 3}]}, "is not a string but int"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half a character"),
        ({"messages": [{"role": "user", "content": "  "}]}, "the instruction is empty"),
        ({"messages": [SYSTEM, USER], "system": "Be long."}, "has another one outside it"),
        ({"messages": [USER], "conversations": [USER]}, "both 'messages' and 'conversations'"),
        ({"instruction": "x", "system": "a", "system_prompt": "b"}, "and they differ"),
        ({"messages": ["x"]}, "not an object with role and content"),
    ],
)
def test_a_malformed_conversation_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(FormatError, match=why):
        read_row(row)


NAMES = ("role", "content", "from", "value", "messages", "conversations", "instruction", "type", "text")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES), below, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_whatever_a_row_is_it_is_read_or_told(value: Any) -> None:
    try:
        found = read_row(value)
    except FormatError:
        return
    assert found.text.strip()
    assert not found.messages or found.messages[-1] == {"role": "user", "content": found.text}


CONVERSATIONS = [{"messages": [SYSTEM, USER, ANSWER, AGAIN], "reference": "The Oder."}, {"messages": [USER, ANSWER]}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_conversations_of_every_file(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(CONVERSATIONS), tmp_path / name)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in CONVERSATIONS)
        content = (json.dumps(CONVERSATIONS) if name.split(".")[1] == "json" else lines).encode()
        packed = {"gz": gzip.compress, "zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}
        (tmp_path / name).write_bytes(packed.get(name.split(".")[-1], bytes)(content))
    pool = read(name, tmp_path).pool
    assert pool.schema == INSTRUCTION
    first, second = (Prompt.of(row) for row in pool.to_pylist())
    assert first.turns == (SYSTEM, USER, ANSWER, AGAIN)
    assert (first.text, first.reference) == ("Another one?", "The Oder.")
    assert first.id == conversation_id(first.turns) != instruction_id(first.text)
    assert (second.messages, second.id, second.reference) == ((), instruction_id("Name a river."), "The Elbe.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.csv",
            'instruction,input,reference,note\n"Translate, please",good day,,x\nName a river.,,"The ""Elbe""",y\n',
        ),
        (
            "a.tsv",
            'instruction\tinput\treference\tnote\nTranslate, please\tgood day\t\tx\nName a river.\t\tThe "Elbe"\ty\n',
        ),
    ],
)
def test_a_table_in_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content.replace('The "Elbe"', '"The ""Elbe"""') if name.endswith("tsv") else content)
    found = read(name, tmp_path)
    assert found.pool["text"].to_pylist() == ["Translate, please\n\ngood day", "Name a river."]
    assert found.pool["reference"].to_pylist() == [None, 'The "Elbe"']
    assert found.ignored == {"note": 2}


def test_lines_of_a_plain_text_are_instructions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Name a river.\n\n  Name a town.  \r\n", encoding="utf-8-sig")
    assert read("a.txt", tmp_path).pool["text"].to_pylist() == ["Name a river.", "Name a town."]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", "instruction,instruction\nx,y\n", "a.csv:1: duplicate column 'instruction'"),
        ("a.csv", "task\nx\n", "no column 'instruction'"),
        ("a.csv", 'instruction\n"x\n', "not a valid table"),
        ("a.csv", "instruction\nx,y\n", "a.csv:2: 2 cells for 1 columns"),
        ("a.csv", "instruction,input\n,x\n", "a.csv:2: no 'instruction'"),
        ("a.jsonl.zst", "no zst", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, content: str, why: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=why):
        read(name, tmp_path)


def test_what_was_renamed_and_left_out_is_said_once(tmp_path: Path) -> None:
    rows = [{"question": f"Question {n}?", "system_prompt": "Be brief.", "output": "x", "id": n} for n in range(3)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = import_data(DataConfig(pool="pool.jsonl"), tmp_path, seed=0)
    lines = import_lines(taken.counts())
    assert lines[0] == "read system_prompt as system message (3 rows); question as instruction (3 rows)"
    assert lines[1].startswith(
        "not read: output (3), id (3); the key for the text that answers are compared with is `reference`"
    )
    assert import_lines({}) == []


def test_a_pool_of_single_turns_has_the_columns_that_it_had_before_there_were_conversations() -> None:
    row = {"id": "1", "text": "x", "source": "seed", "iteration": 0}
    assert table([row], INSTRUCTION).schema == ONE_TURN
    assert table([row, row | {"id": "2", "messages": [USER, ANSWER, AGAIN]}], INSTRUCTION).schema == INSTRUCTION


def test_ids_of_conversations() -> None:
    assert conversation_id([USER]) == instruction_id("Name a river.")
    different = [[USER, ANSWER, AGAIN], [SYSTEM, USER], [USER, LAST, AGAIN], [{**SYSTEM, "content": "x"}, USER]]
    assert len({conversation_id(one) for one in different}) == len(different)

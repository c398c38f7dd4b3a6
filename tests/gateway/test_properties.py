"""Properties that hold for any input: what endpoints send, what a journal holds, what a run folder is given."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lion_ray.core.errors import LionError
from lion_ray.core.store import RunStore
from lion_ray.gateway import wire
from lion_ray.gateway.calls import Account, Completion, TokenChoice
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.record import decode_head, decode_record, encode_record, head_of
from lion_ray.gateway.journal.segments import Segment, decode_sidecar, encode_sidecar
from lion_ray.gateway.reply import Reply, parse_reply
from lion_ray.gateway.usage import MOST_TOKENS
from lion_ray.gateway.wire import TransportError
from tests.gateway.support import ACCOUNT, completion, key, segments

settings.register_profile("quick", deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.load_profile("quick")

SURE = st.text(st.characters(exclude_categories=["Cs"]))
"""Texts that have a form in UTF-8: what is left of an answer once it was read."""
COUNTS = st.integers(0, 2**31)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ("choices", "message", "content", "usage", "prompt_tokens", "completion_tokens", "error", "code", "type")
ODD_BODIES = st.recursive(
    JSON,
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=4) | st.lists(inner, min_size=1, max_size=2),
    max_leaves=12,
)
completions = st.builds(
    Completion,
    key=st.binary(min_size=32, max_size=32).map(bytes.hex),
    text=SURE,
    finish_reason=SURE,
    model=SURE,
    endpoint=SURE,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    cached_tokens=COUNTS,
    seconds=st.floats(0, 1e6),
    cost_usd=st.none() | st.floats(0, 1e6),
    replayed=st.just(True),
    logprobs=st.none()
    | st.lists(
        st.builds(TokenChoice, COUNTS, SURE, st.lists(st.tuples(SURE, st.floats(-100, 0)), max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
)
accounts = st.builds(Account, SURE, SURE, SURE)


# --- the wire


@given(st.binary() | ODD_BODIES.map(lambda body: json.dumps(body).encode()))
def test_a_body_is_a_reply_that_can_be_stored_or_a_transport_error(data: bytes) -> None:
    try:
        reply = parse_reply(data)
    except TransportError:
        return
    for text in (reply.text, reply.finish_reason, reply.model):
        text.encode()


@given(SURE, SURE, st.integers(0, MOST_TOKENS), st.integers(0, MOST_TOKENS))
def test_an_honest_reply_is_read_as_it_was_meant(text: str, model: str, prompt: int, completion_tokens: int) -> None:
    body: dict[str, Any] = {"model": model, "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    body["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion_tokens}
    reply: Reply = parse_reply(json.dumps(body).encode())
    assert (reply.text, reply.model) == (text, model)
    assert (reply.usage.prompt, reply.usage.completion) == (prompt, completion_tokens)


@given(st.integers(400, 599), st.text(max_size=30) | st.integers().map(str) | st.floats().map(str), ODD_BODIES)
def test_a_status_is_a_transport_error_of_one_line(status: int, header: str, body: Any) -> None:
    headers = dict.fromkeys(("retry-after", "retry-after-ms", "date", "x-ratelimit-limit-requests"), header)
    text = json.dumps(body)
    error = wire.status_error(status, headers, text)
    assert isinstance(error, TransportError)
    assert len(error.detail.splitlines()) == 1
    pause = getattr(error, "retry_after_s", None)
    assert pause is None or pause >= 0


# --- the journal


@given(completions, accounts)
def test_a_record_is_read_as_it_was_written(one: Completion, account: Account) -> None:
    line = encode_record(one, account)
    assert line.count(b"\n") == 1
    assert decode_record(line[:-1]) == one
    assert decode_head(line[:-1]) == head_of(one, account)


@given(completions, accounts, st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_damaged_record_is_no_record(one: Completion, account: Account, place: float, flip: int) -> None:
    line = bytearray(encode_record(one, account)[:-1])
    line[int(place * len(line))] ^= flip  # a share of its length, which the time of writing changes
    found = decode_record(bytes(line))
    assert found is None or found == one, "at most the letters of its CRC may be written otherwise"


@given(st.lists(completions, max_size=4), st.binary(max_size=40), st.data())
def test_a_sidecar_is_read_as_it_was_written_or_not_at_all(
    many: list[Completion], junk: bytes, data: st.DataObject
) -> None:
    segment = Segment("s.calls")
    for number, one in enumerate(many):
        segment.add(head_of(one, ACCOUNT), 100 * number, 99)
    sidecar = encode_sidecar(segment)
    assert decode_sidecar("s.calls", sidecar) == segment
    at = data.draw(st.integers(0, len(sidecar) - 1))
    for broken in (sidecar[:at], sidecar[:at] + junk, bytes(b ^ (i == at) for i, b in enumerate(sidecar))):
        assert broken == sidecar or decode_sidecar("s.calls", broken) is None


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_a_damaged_journal_serves_what_was_written_or_nothing(seed: int) -> None:
    """Any bytes of any file changed, cut or added: the rest is served, and nothing else."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_damage_and_read(Path(name), rng))


async def _damage_and_read(folder: Path, rng: random.Random) -> None:
    journal = Journal.open(str(folder), segment_bytes=rng.choice((1, 300, 10_000)))
    for number in range(6):
        await journal.put(completion(number), ACCOUNT)
    await journal.close()
    for path in segments(folder) + sorted(folder.glob("*.idx")):
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 30))
        path.write_bytes(data)
    journal = Journal.open(str(folder))
    for number in range(6):
        found = await journal.get(key(number))
        assert found is None or found.text == completion(number).text
    await journal.put(completion(99), ACCOUNT)
    await journal.close()
    journal = Journal.open(str(folder))
    again = await journal.get(key(99))
    assert again is not None
    await journal.close()


# --- the run folder

ROWS = st.lists(st.tuples(SURE, st.floats(allow_nan=False) | st.none()), max_size=5)


@settings(max_examples=15)
@given(st.lists(ROWS, min_size=1, max_size=3), st.dictionaries(SURE, SURE | COUNTS | st.none(), max_size=4))
def test_a_stage_is_read_as_it_was_committed(
    parts: list[list[tuple[str, float | None]]], known: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = RunStore(name)
        store.claim()
        stage = store.stage("stage")
        tables = [
            pa.table(
                {"text": pa.array([r[0] for r in rows], pa.string()), "x": pa.array([r[1] for r in rows], pa.float64())}
            )
            for rows in parts
        ]
        for index, table in enumerate(tables):
            stage.write_part(index, table)
        assert stage.manifest() is None
        stage.commit({**known, "parts": len(parts)})
        again = RunStore(name).stage("stage")
        manifest = again.manifest()
        assert manifest is not None
        assert {key: manifest[key] for key in (*known, "parts")} == {**known, "parts": len(parts)}
        assert again.part_indexes() == set(range(len(parts)))
        assert again.read(len(parts)).equals(pa.concat_tables(tables))
        with pytest.raises(LionError):
            RunStore(name).claim()
        store.heartbeat(ended=True)

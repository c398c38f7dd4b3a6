"""What fuzzing found in what a journal's folder holds, as plain tests."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.record import encode_record
from lion_ray.gateway.journal.segments import decode_sidecar
from lion_ray.gateway.journal.uncertain import read_uncertain
from tests.gateway.support import ACCOUNT, completion, served


async def test_a_compaction_keeps_the_copy_that_can_be_read(tmp_path: Path) -> None:
    """The first one's checksum fits, and its text is no JSON."""
    whole = encode_record(completion(1), ACCOUNT)
    torn = whole[9:-3] + b'\\"}'
    for number, line in enumerate((b"%08x %s\n" % (zlib.crc32(torn), torn), whole)):
        (tmp_path / f"{number:020d}-dead-00000000.calls").write_bytes(line)
    compact(Folder.at(str(tmp_path)))
    journal = Journal.open(str(tmp_path))
    assert await served(journal, [1]) == [1]
    await journal.close()


def test_a_sidecar_whose_names_are_none_is_not_trusted() -> None:
    meta = json.dumps({"replaces": ["a", 0.5], "sums": {}}).encode()
    data = b"lionidx1" + b"".join(n.to_bytes(8, "little") for n in (9, 9, 0, 0, len(meta))) + meta
    assert decode_sidecar("x.calls", data + zlib.crc32(data).to_bytes(4, "little")) is None


@pytest.mark.parametrize("calls", ["1e999", "[]", '"x"'])
def test_what_may_have_been_billed_in_numbers_that_are_none_is_told(tmp_path: Path, calls: str) -> None:
    (tmp_path / "uncertain").mkdir()
    path = tmp_path / "uncertain" / "1.json"
    path.write_text(f'{{"version": 1, "uncertain": [["r", "r", "s", "e", {calls}, 1.0]]}}')
    with pytest.raises(InfrastructureError, match=r"1\.json cannot be read"):
        read_uncertain(Folder.at(str(tmp_path)))

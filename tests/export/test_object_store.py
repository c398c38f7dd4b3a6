"""A run that is in an object store exports to the same bytes as one in a folder."""

from __future__ import annotations

from pathlib import Path

from tests import warm
from tests.export.test_folder import files
from tests.object_store import BUCKET, s3_server


def test_a_run_in_an_object_store(base: Path, exported: Path, tmp_path: Path) -> None:
    words = (f"s3://{BUCKET}/little", str(base), str(tmp_path / "out"))
    with s3_server() as environment:
        done = warm.run("tests.export.in_bucket", *words, env=environment, imported=warm.TOKENIZERS)
    assert done.code == 0, done.err
    assert files(tmp_path / "out") == files(exported)

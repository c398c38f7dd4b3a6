"""The report of a run that lies in an object store: the same page, from the same folder behind a URL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lion_ray.report import render
from tests.object_store import BUCKET, s3_server
from tests.run_folder import RunFolder
from tests.warm import lion

COPY = "import sys; from pyarrow import fs; fs.copy_files(sys.argv[1], sys.argv[2])"


def test_a_run_behind_a_url(tmp_path: Path) -> None:
    pytest.importorskip("moto")
    folder = RunFolder(tmp_path / "run", iterations=1).finish()
    url, out = f"s3://{BUCKET}/runs/small", tmp_path / "out.html"
    with s3_server() as environment:
        # In processes of their own: S3 clients read the environment once.
        variables = os.environ | environment
        subprocess.run([sys.executable, "-c", COPY, str(folder.root), url], check=True, env=variables)
        done = lion("report", url, env=environment)
        assert (done.code, done.out.strip()) == (0, f"{url}/report.html"), done.err
        assert lion("report", url, "--out", str(out), env=environment).code == 0

    def settled(page: str) -> str:
        return re.sub(r"written [\d: -]+ UTC", "", page)

    assert settled(out.read_text()) == settled(render(folder.store))

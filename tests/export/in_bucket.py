"""Make a run at a URL, and export it: `python -m tests.export.in_bucket URL BASE_MODEL OUT`."""

import sys
from pathlib import Path

from lion_ray.export.folder import export
from lion_ray.export.source import Source
from tests.export.runs import make_run

if __name__ == "__main__":
    url, base, out = sys.argv[1:]
    export(Source.open(make_run(url, Path(base))), Path(out))

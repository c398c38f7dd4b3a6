"""`lion-ray report`: write the page and open it."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.core.store import RunStore
from lion_ray.report.page import NAME, render, write_report


def report(store: RunStore, *, out: Path | None = None, show: bool = False) -> str:
    """Write a run's report into its folder, or to the file `out`. Returns its path. `show` opens a browser.

    Raises:
        ConfigError: `show` without `out`, for a run in an object store.
        InfrastructureError: the storage failed.
    """
    if show and out is None and not store.is_local:
        raise ConfigError(f"{store.root}: a browser cannot open a file in an object store; add --out FILE")
    if out is None:
        write_report(store)
        where = store.address(NAME)
    else:
        page = render(store).encode()
        try:
            out.write_bytes(page)
        except OSError as error:
            raise InfrastructureError(f"{out}: the report could not be written: {error.strerror}") from None
        where = str(out.absolute())
    if show:
        webbrowser.open(Path(where).as_uri())
    return where

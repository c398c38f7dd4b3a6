"""The Grafana dashboard against what a real Prometheus scrapes from a run."""

from __future__ import annotations

import pytest

from tests.ray.conftest import Whole
from tests.ray.prometheus import PROMETHEUS, panels


@pytest.mark.skipif(not PROMETHEUS, reason="no prometheus on the PATH")
def test_every_panel_has_something_to_show(whole_run: Whole) -> None:
    assert panels()
    assert whole_run.empty_panels == set()

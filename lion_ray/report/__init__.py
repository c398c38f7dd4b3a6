"""The report: one self-contained HTML file about a run.

Invariants:
- One file without external requests: no script, no font, no external image. Its Content-Security-Policy allows only
  its own style sheet, by hash.
- Everything is read through `store.RunStore`, so it also works for runs in an object store, in progress or killed.
  Missing values are shown as missing, never as 0.
- Text from models, users or files is data. Misleading characters (controls, direction overrides) are made visible, and
  the text is escaped when it is put into the page.
- Values in a run never raise an error; failing storage and damaged files raise InfrastructureError.

This package does not know Ray. It writes only `report.html`.
"""

from lion_ray.report.page import NAME, render, write_report

__all__ = ["NAME", "render", "write_report"]

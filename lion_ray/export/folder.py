"""The export's folder: `data/`, `model/`, `adapter/`, their cards, and checksums.

Invariants:
- The folder is written completely or not at all. A folder that holds anything but an export is never replaced.
- Every file except SHA256SUMS itself is listed in it (format of sha256sum(1)), for the whole export and for each part,
  and with its size in manifest.json.
- The same run exports to the same bytes: nothing depends on time or machine.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lion_ray import __version__
from lion_ray.core.durable import whole_folder
from lion_ray.core.errors import ConfigError, DataError
from lion_ray.export.data_card import data_card
from lion_ray.export.dataset import TRAIN, write_dataset
from lion_ray.export.model import fetch_tokenizer, has_adapters, write_adapter, write_model
from lion_ray.export.model_card import adapter_card, model_card
from lion_ray.export.source import Source

PARTS = {"data": "data", "model": "model", "adapters": "adapter"}
"""Parts that can be exported, and their folders."""
FORMAT = 1
ABOUT, SUMS = "manifest.json", "SHA256SUMS"


@dataclass(frozen=True)
class Exported:
    """An export on this machine."""

    folder: Path
    parts: tuple[str, ...]
    """Keys of PARTS."""
    made: bool
    """False: a complete export already existed and was left unchanged."""


def export(
    source: Source,
    out: Path,
    what: Sequence[str] | None = None,
    *,
    force: bool = False,
    push_to: str | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write `source` to the folder `out`.

    Args:
        what: keys of PARTS; default: all that the run has.
        force: replace an earlier export.
        push_to: OWNER/NAME, the hub repository that the cards link to. With it, an existing complete export of the same
            run is reused.

    Raises:
        ConfigError: an unknown part, or adapters of a run that trained none.
        DataError: `out` exists already, or the run's data cannot be exported.
        InfrastructureError: reading the run or writing to the disk failed.
    """
    parts = _parts(source, what)
    about: dict[str, Any] = {
        "format": FORMAT,
        "run": source.name,
        "iteration": source.iteration,
        "parts": list(parts),
        "hub": push_to,
        "lion-ray": __version__,
    }
    if push_to is not None and not force and _is_complete(out, about):
        return Exported(out, parts, made=False)
    _check_out(out, force)
    with whole_folder(out, replace=force) as folder:
        if "data" in parts:
            rows = _write_data(source, folder / PARTS["data"], push_to if "model" in parts else None)
            say(f"data: {rows:,} training rows")
        data_repo = push_to if "data" in parts else None
        if "model" in parts:
            write_model(source, folder / PARTS["model"])
            _write(folder / PARTS["model"] / "README.md", model_card(source, data_repo))
            say(f"model: the student after iteration {source.iteration}")
        if "adapters" in parts:
            rank = write_adapter(source, folder / PARTS["adapters"])
            _write(folder / PARTS["adapters"] / "README.md", adapter_card(source, rank, data_repo))
            say(f"adapters: of {source.iteration} iterations, merged into one of rank {rank}")
        _write_sums(folder, about)
    return Exported(out, parts, made=True)


def check_sums(folder: Path) -> None:
    """Verify the checksums of an export.

    Raises:
        DataError: it is not an export, or a file is missing or changed.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = about["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder}: not an export (no {ABOUT})") from None
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; export again with --force")
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise DataError(f"{path} was changed after the export; export again with --force")


def _parts(source: Source, what: Sequence[str] | None) -> tuple[str, ...]:
    if what is None:
        return tuple(part for part in PARTS if part != "adapters" or has_adapters(source))
    if unknown := [part for part in what if part not in PARTS]:
        raise ConfigError(f"--what {','.join(what)}: unknown part '{unknown[0]}'; choose from {', '.join(PARTS)}")
    if not what:
        raise ConfigError(f"--what: name at least one of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in what)


def _check_out(out: Path, force: bool) -> None:
    """Check early what `whole_folder` would refuse at the end, and that --force replaces only an export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _read_manifest(out):
        raise DataError(f"{out} exists already and is not an export; choose another folder")
    if not force:
        raise DataError(f"{out} already contains an export; choose another folder, or replace it with --force")


def _read_manifest(out: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) and about.keys() >= {"format", "run", "iteration", "files"} else None


def _is_complete(out: Path, about: dict[str, Any]) -> bool:
    """Whether `out` is a complete export that `about` describes. Raises DataError if it is, but damaged."""
    known = _read_manifest(out)
    if known is None or {name: known.get(name) for name in about} != about:
        return False
    check_sums(out)
    return True


def _write_data(source: Source, folder: Path, model_repo: str | None) -> int:
    with tempfile.TemporaryDirectory(prefix="lion-ray-export-") as scratch:
        prompter = fetch_tokenizer(source, Path(scratch))
        written = write_dataset(source, folder, prompter)
    if not written.rows["answers", TRAIN]:
        raise DataError(f"{source.store.root}: no training rows")
    _write(folder / "README.md", data_card(source, written, model_repo))
    return written.rows["answers", TRAIN]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_sums(folder: Path, about: dict[str, Any]) -> None:
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for part in sorted({name.partition("/")[0] for name in sums}):
        inside = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith(f"{part}/")}
        _write(folder / part / SUMS, _sums_text(inside))
        sums[f"{part}/{SUMS}"] = _sha256(folder / part / SUMS)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sums[name]} for name in sorted(sums)}
    _write(folder / ABOUT, json.dumps(about | {"files": files}, indent=1, ensure_ascii=False) + "\n")
    _write(folder / SUMS, _sums_text(sums | {ABOUT: _sha256(folder / ABOUT)}))


def _sums_text(sums: dict[str, str]) -> str:
    return "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

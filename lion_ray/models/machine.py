"""What this machine's CPU computes well: its cores, its flags, and matrix products timed once.

Invariants:
- One place decides which type `auto` means on a CPU. Engines, servers, fits, benches and `doctor` ask here.
- The products are timed once per machine, in well under a second, and the figures are kept in the user's cache folder.
  A file made by another CPU, another torch or under other settings is not used; one made on a busy machine is made
  anew after a while.
- An explicit type stays what it is; `slower_than_best` tells what it costs.
- Importing this module imports no torch: the products are timed in a process of their own (``python -m
  lion_ray.models.machine``), so that the command line starts quickly.

Why it matters: bfloat16 is the fastest type of a CPU with AMX or AVX-512 BF16, and emulated by one with AVX2 alone,
there five times slower than float32.

This module knows nothing of models, beyond the number of their parameters, nor of vLLM and Ray.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lion_ray.config import Dtype, NumberType, Precision
from lion_ray.core.errors import InfrastructureError
from lion_ray.models.resolve import cache_folder

TYPES: tuple[NumberType, ...] = ("float32", "bfloat16", "float16")
INT8 = "int8"
"""Of a served model's `quantization`; no type that `auto` chooses, as it costs accuracy."""

_NATIVE_FLAGS: dict[NumberType, frozenset[str]] = {
    "bfloat16": frozenset({"amx_bf16", "avx512_bf16", "avx_ne_convert_bf16", "bf16"}),
    "float16": frozenset({"amx_fp16", "avx512_fp16", "asimdhp"}),
}
"""CPU flags (as Linux names them, x86-64 and Arm) of which one must be there for the type not to be emulated."""
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
_CLEARLY = 1.25
"""A rounded type must beat float32 by this factor before it is chosen: rounding costs accuracy."""
_VERSION = 4
"""Of the cached file's content: raise it when what is measured changes."""

# The products: about a layer of a model with 1.5 billion parameters, which does not fit into a CPU's cache.
_INNER, _OUTER = 1536, 8960
_CHOOSING_ROWS, _CHOOSING_OUTER = 64, 2240
_ROWS = (1, 16, 64, 256)
_TIMED_S = 0.06
_BUSY_KEPT_S = 900.0
"""So long what was measured on a busy machine is used, so that the processes of one run do not all measure."""
_OWN_SHARE = 0.75
"""The share of all cores' time that the products take where nothing else runs; what is less was shared."""
_LAYERS_EFFICIENCY = 0.7
"""The part of a bare product's speed that a whole model reaches: attention, norms and sampling take the rest."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Billions of multiply-and-add operations, counted as two, per second (GFLOP/s), on all cores of this process."""

    cpu: str
    cores: int
    native: tuple[str, ...]
    """The types that the CPU's flags say it computes by itself."""
    by_type: Mapping[str, float]
    """GFLOP/s of a product of 64 rows, by type; `int8` with weights rounded before and rows rounded on the way."""
    by_rows: Mapping[int, float]
    """GFLOP/s of the fastest type by the product's rows: one row is limited by memory, many by arithmetic."""
    busy: bool = False
    """Something else ran on the cores meanwhile: what is fastest is right, but the figures are too low."""

    @property
    def fastest(self) -> NumberType:
        """The type that `auto` means here."""
        best: NumberType = "float32"
        for one in TYPES[1:]:
            margin = _CLEARLY if best == "float32" else 1.0
            if one in self.native and self.by_type[one] > margin * self.by_type[best]:
                best = one
        return best

    def slower_than_best(self, dtype: str) -> float:
        """How many times slower than the type that `auto` chooses `dtype` is; less than 1 where it is faster."""
        return self.by_type[self.fastest] / self.by_type[dtype]

    def gflops(self, rows: float, dtype: str | None = None) -> float:
        """GFLOP/s of a product of so many rows, between those measured on a logarithmic scale."""
        known = sorted(self.by_rows)
        rows = min(max(rows, known[0]), known[-1])
        above = next(one for one in known if one >= rows)
        below = max(one for one in known if one <= rows)
        share = 0.0 if above == below else math.log(rows / below) / math.log(above / below)
        found = self.by_rows[below] ** (1 - share) * self.by_rows[above] ** share
        return found / (1.0 if dtype is None else self.slower_than_best(dtype))

    def tokens_per_second(self, parameters: float, rows: float, dtype: str | None = None) -> float:
        """Tokens per second that a model takes in, or writes, where so many are computed at once."""
        return _LAYERS_EFFICIENCY * 1e9 * self.gflops(rows, dtype) / (2 * parameters)

    def sentence(self) -> str:
        """For `doctor`: the types and their speeds, the best first."""
        ranked = sorted(self.by_type, key=lambda one: -self.by_type[one])
        speeds = ", ".join(f"{one} {self.by_type[one]:.0f}" for one in ranked)
        return f"{self.fastest} (GFLOP/s on {self.cores} cores: {speeds})"


def cores() -> int:
    """Cores that this process may use: the machine's, less what its affinity and a container's quota take away."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(found, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return found  # no container, or "max": no quota


@lru_cache(maxsize=1)
def speeds() -> Speeds:
    """This machine's speeds, from the cache folder or measured now.

    Raises:
        InfrastructureError: torch could not be run.
    """
    path = cache_folder() / f"machine-{_fingerprint()}.json"
    try:
        known = _from_json(json.loads(path.read_text(encoding="utf-8")))
        if not known.busy or time.time() - path.stat().st_mtime < _BUSY_KEPT_S:
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or a damaged file: measure
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lion_ray.models.machine"], capture_output=True, text=True, timeout=300, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        result = _from_json(found)
    except (subprocess.SubprocessError, OSError, ValueError, LookupError, TypeError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise InfrastructureError(
            f"this CPU's speed could not be measured ({said[-1] if said else type(error).__name__}); "
            "`lion-ray doctor` tells what is missing"
        ) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        aside.replace(path)  # whole or not at all: other processes of this machine may be reading it
    except OSError:
        pass  # a cache that cannot be written costs some seconds each time, and nothing else
    return result


def resolve_type(dtype: Dtype, *, gpu: bool, on_gpu: NumberType) -> NumberType:
    """`dtype`, or what `auto` means: `on_gpu` on a GPU, the fastest type on a CPU."""
    if dtype != "auto":
        return dtype
    return on_gpu if gpu else speeds().fastest


def resolve_precision(precision: Precision, *, gpu: bool) -> Literal["bf16", "fp32"]:
    """The arithmetic of a fit: as configured, or for `auto` bf16 on a GPU and where this CPU computes it fastest."""
    if precision != "auto":
        return precision
    return "bf16" if gpu or speeds().fastest == "bfloat16" else "fp32"


def _from_json(found: dict[str, Any]) -> Speeds:
    """What `measure` gave; ValueError, KeyError or TypeError for anything else."""
    by_type, by_rows = dict(found["by_type"]), dict(found["by_rows"])
    return Speeds(
        cpu=str(found["cpu"]),
        cores=int(found["cores"]),
        native=tuple(found["native"]),
        by_type={one: float(by_type[one]) for one in (*TYPES, INT8)},
        by_rows={int(rows): float(value) for rows, value in by_rows.items()},
        busy=bool(found.get("busy")),
    )


def multiplies_int8() -> bool:
    """Whether the CPU adds products of 8-bit integers in 32 bits (VNNI, or Arm's dot product)."""
    return bool(_cpu()[1] & _INT8_FLAGS)


@lru_cache(maxsize=1)
def _cpu() -> tuple[str, frozenset[str]]:
    """The CPU's name and flags."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                return name, frozenset(value.split())
    except OSError:
        pass  # not Linux: nothing is known to be native, and float32 is chosen
    return name, flags


def native_types() -> tuple[NumberType, ...]:
    """The types that this CPU computes without emulating them."""
    flags = _cpu()[1]
    return ("float32", *(one for one in TYPES[1:] if flags & _NATIVE_FLAGS[one]))


def _fingerprint() -> str:
    name, flags = _cpu()
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = ""
    settings = [os.environ.get(one, "") for one in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS")]
    known = json.dumps([_VERSION, name, sorted(flags), cores(), torch, settings])
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def measure() -> Speeds:
    """Time the products. Imports torch, and sets its number of threads."""
    import torch
    from torch.utils.mkldnn import to_mkldnn

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    # vLLM's own, or that of `inference.int8_kernel`.
    torch.backends.quantized.engine = "onednn" if multiplies_int8() else "fbgemm"

    def rate(one: str, rows: int, outer: int) -> float:
        layer: Any = torch.nn.Linear(_INNER, outer, bias=False)
        given = torch.randn(rows, _INNER)
        if one == INT8:
            layer = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, torch.qint8)
        else:
            dtype = getattr(torch, one)
            layer, given = layer.to(dtype), given.to(dtype)
            try:  # packed, as vLLM keeps weights on a CPU: several times faster at few rows
                packed, rows_packed = to_mkldnn(layer, dtype), given.to_mkldnn()
                packed(rows_packed)
                layer, given = packed, rows_packed
            except RuntimeError:
                pass  # oneDNN cannot do it with this type here
        layer(given)  # the first product chooses and compiles its kernel
        best, until = math.inf, time.perf_counter() + _TIMED_S
        while True:
            began = time.perf_counter()
            layer(given)
            now = time.perf_counter()
            best = min(best, now - began)  # what else runs here makes single ones slower, never faster
            if now >= until:
                return 2e-9 * rows * outer * _INNER / best

    began, used = time.perf_counter(), time.process_time()
    with torch.no_grad():
        by_type = {one: rate(one, _CHOOSING_ROWS, _CHOOSING_OUTER) for one in (*TYPES, INT8)}
        chosen = Speeds(_cpu()[0], cores(), native_types(), by_type, {})
        by_rows = {rows: rate(chosen.fastest, rows, _OUTER) for rows in _ROWS}
    busy = time.process_time() - used < _OWN_SHARE * cores() * (time.perf_counter() - began)
    return Speeds(chosen.cpu, chosen.cores, chosen.native, by_type, by_rows, busy)


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))

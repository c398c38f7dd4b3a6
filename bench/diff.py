"""Bench of `lion-ray diff`: the memory that making and recovering a delta takes, and whether every bit is restored.

See bench/README.md. Everything is written to a scratch folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench.harness import BenchError, run_client
from bench.measure import peak_mb

LIMIT_MB = 4e9 / 1e6
"""The limit for a 13B model."""
HIDDEN, FEED_FORWARD, VOCABULARY = 5120, 13_824, 32_000
"""Llama 13B's: its largest tensors determine the memory."""
NEW_TOKENS = 3
SHARD_BYTES = 10**9
EVERY_S = 0.01


def shapes(layers: int, rows: int, hidden: int, wide: int) -> dict[str, tuple[int, ...]]:
    """A Llama's tensors by name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        found |= {f"{name}.self_attn.{one}_proj.weight": (hidden, hidden) for one in "qkvo"}
        found |= {f"{name}.mlp.{one}_proj.weight": (wide, hidden) for one in ("gate", "up")}
        found |= {f"{name}.mlp.down_proj.weight": (hidden, wide), f"{name}.input_layernorm.weight": (hidden,)}
    return found


def make_model(folder: Path, tensors: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    """Random weights in shards of about `SHARD_BYTES`, with an index."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text("{}")
    where: dict[str, str] = {}
    held: dict[str, Any] = {}
    size = 0

    def flush() -> None:
        nonlocal size
        name = f"model-{len(set(where.values())):05d}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(held, name))
        held.clear()
        size = 0

    generator = torch.Generator().manual_seed(seed)
    for name, shape in tensors.items():
        tensor = torch.randn(shape, generator=generator).mul_(0.02).to(getattr(torch, dtype))
        if held and size + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor
        size += tensor.nbytes
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def same(left: Path, right: Path) -> bool:
    """Whether two models' tensors are identical in type, shape and every bit."""
    from lion_ray.models.delta import Weights, _digest

    one, other = Weights(left), Weights(right)
    if one.names() != other.names():
        return False
    return all(
        a.dtype == b.dtype and a.shape == b.shape and _digest(a) == _digest(b)
        for name in one.names()
        for a, b in [(one.get(name), other.get(name))]
    )


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """This process's peak memory within the block: anonymous (`/proc/self/smaps_rollup`) and total."""
    found = {"anonymous_mb": 0.0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(EVERY_S):
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    found["anonymous_mb"] = max(found["anonymous_mb"], int(line.split()[1]) * 1024 / 1e6)

    watcher = threading.Thread(target=look)
    began = time.monotonic()
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        found["seconds"] = time.monotonic() - began
        found["peak_mb"] = peak_mb()


def one_step(step: str, base: Path, other: Path, out: Path, dtype: str | None) -> None:
    """Run one step in this process, and print its memory as a line of JSON."""
    from lion_ray.models import delta

    with watched() as found:
        if step == "make":
            delta.make(base, other, out, dtype=dtype, say=lambda _: None)
        else:
            delta.recover(base, other, out, say=lambda _: None)
    print(json.dumps(found))


def measure(base: Path, tuned: Path, scratch: Path, expected: Path, dtype: str | None = None) -> dict[str, Any]:
    """Make a delta and recover it, each in a fresh process."""
    result: dict[str, Any] = {}
    delta, restored = scratch / "delta", scratch / "restored"
    typed = [] if dtype is None else ["--dtype", dtype]
    for step, paths in (("make", (base, tuned, delta)), ("recover", (base, delta, restored))):
        found = run_client(sys.executable, "bench.diff", "--step", step, *map(str, paths), *typed, timeout_s=3600)
        result |= {f"{step}_{name}": round(value, 1) for name, value in found.items()}
    result["exact"] = same(expected, restored)
    result["delta_mb"] = round(sum(path.stat().st_size for path in delta.glob("*.safetensors")) / 1e6, 1)
    result["tuned_mb"] = round(sum(path.stat().st_size for path in tuned.glob("*.safetensors")) / 1e6, 1)
    for folder in (delta, restored):
        shutil.rmtree(folder)
    return result


def synthetic(quick: bool, dtype: str, scratch: Path) -> dict[str, Any]:
    """A model with the largest tensors of a 13B model, and few layers; the tuned one has new tokens."""
    hidden, wide, rows = (512, 1376, 3200) if quick else (HIDDEN, FEED_FORWARD, VOCABULARY)
    layers = 2 if dtype == "float32" else 4  # 3 to 4 GB either way
    make_model(scratch / "base", shapes(layers, rows, hidden, wide), dtype, 1)
    make_model(scratch / "tuned", shapes(layers, rows + NEW_TOKENS, hidden, wide), dtype, 2)
    try:
        return measure(scratch / "base", scratch / "tuned", scratch, scratch / "tuned")
    finally:
        shutil.rmtree(scratch / "base")
        shutil.rmtree(scratch / "tuned")


def real(base: Path, tuned: Path, dtype: str, scratch: Path) -> dict[str, Any]:
    """A real model, restored in `dtype`; expected is the tuned model converted by torch."""
    import torch
    from safetensors.torch import load_file, save_file

    expected = scratch / "expected"
    expected.mkdir()
    tensors: dict[str, Any] = {}
    for path in tuned.glob("*.safetensors"):
        tensors |= {name: one.to(getattr(torch, dtype)) for name, one in load_file(path).items()}
    save_file(tensors, expected / "model.safetensors")
    try:
        return measure(base, tuned, scratch, expected, dtype)
    finally:
        shutil.rmtree(expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small tensors")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--dtype", help="the synthetic model's (float16, bfloat16 or float32)")
    parser.add_argument("--base", type=Path, help="a real model's folder")
    parser.add_argument("--tuned", type=Path, help="the folder of the model tuned from it")
    parser.add_argument("--folder", type=Path, help="where to write; the system's scratch folder by default")
    parser.add_argument("--step", choices=("make", "recover"), help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.step:
        base, other, out = wanted.paths
        one_step(wanted.step, base, other, out, wanted.dtype)
        return
    if (wanted.base is None) != (wanted.tuned is None):
        parser.error("--base and --tuned must be given together")
    result: dict[str, Any] = {"quick": wanted.quick, "limit_mb": LIMIT_MB, "made_up": {}, "real": {}}
    try:
        with tempfile.TemporaryDirectory(prefix="lion-ray-diff-", dir=wanted.folder) as folder:
            scratch = Path(folder)
            for dtype in [wanted.dtype] if wanted.dtype else ["bfloat16", "float32"]:
                show(f"synthetic, {dtype}", found := synthetic(wanted.quick, dtype, scratch))
                result["made_up"][dtype] = found
            for dtype in ("float32", "float16", "bfloat16") if wanted.base else ():
                show(f"real, {dtype}", found := real(wanted.base, wanted.tuned, dtype, scratch))
                result["real"][dtype] = found
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        result["error"] = str(error)
        print(f"bench: {error}", file=sys.stderr)
    measured = [*result["made_up"].values(), *result["real"].values()]
    result["ok"] = "error" not in result and all(
        one["exact"] and max(one["make_peak_mb"], one["recover_peak_mb"]) < LIMIT_MB for one in measured
    )
    print("ok" if result["ok"] else "failed: see above")
    if wanted.json:
        print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def show(title: str, found: dict[str, Any]) -> None:
    print(f"{title}: {found['tuned_mb']:,.0f} MB, {'every bit restored' if found['exact'] else 'NOT IDENTICAL'}")
    for step in ("make", "recover"):
        anonymous, peak, seconds = (found[f"{step}_{name}"] for name in ("anonymous_mb", "peak_mb", "seconds"))
        print(f"  {step}: {anonymous:,.0f} MB anonymous, {peak:,.0f} MB with mapped pages, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()

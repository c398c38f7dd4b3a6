"""What `auto` means on a CPU: by its flags and by products that were timed, never by flags alone."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from lion_ray.config import NumberType
from lion_ray.core.errors import InfrastructureError
from lion_ray.models import machine
from lion_ray.models.machine import Speeds, resolve_precision, resolve_type

ZEN3 = {"float32": 97.0, "bfloat16": 17.0, "float16": 20.0, "int8": 300.0}
AMX = {"float32": 150.0, "bfloat16": 900.0, "float16": 40.0, "int8": 1500.0}


def made(by_type: dict[str, float], native: tuple[str, ...] = ("float32",)) -> Speeds:
    return Speeds("a CPU", 2, native, by_type, {1: 6.0, 16: 40.0, 64: 90.0, 256: 120.0})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Speeds]:
    """What `speeds` says here; a test may put another in."""
    box = {"speeds": made(ZEN3)}
    monkeypatch.setattr(machine, "speeds", lambda: box["speeds"])
    return box


@pytest.mark.parametrize(
    ("by_type", "native", "fastest"),
    [
        (ZEN3, ("float32",), "float32"),
        (AMX, ("float32", "bfloat16"), "bfloat16"),
        (AMX, ("float32",), "float32"),  # fast, but the flags say that it is emulated: not trusted
        # The flag is there, and the environment keeps oneDNN from using it (ONEDNN_MAX_CPU_ISA=AVX2).
        (ZEN3, ("float32", "bfloat16", "float16"), "float32"),
        # A tie goes to float32, which rounds nothing.
        ({"float32": 100.0, "bfloat16": 120.0, "float16": 10.0}, ("float32", "bfloat16"), "float32"),
        ({"float32": 100.0, "bfloat16": 300.0, "float16": 400.0}, ("float32", "bfloat16", "float16"), "float16"),
    ],
)
def test_the_fastest_type(by_type: dict[str, float], native: tuple[str, ...], fastest: str) -> None:
    assert made(by_type, native).fastest == fastest


def test_auto_is_resolved_and_an_explicit_type_stays(measured: dict[str, Speeds]) -> None:
    assert resolve_type("auto", gpu=False, on_gpu="float16") == "float32"
    assert resolve_type("auto", gpu=True, on_gpu="float16") == "float16", "on a GPU as it always was"
    kept: tuple[NumberType, ...] = ("bfloat16", "float16", "float32")
    assert [resolve_type(one, gpu=False, on_gpu="float16") for one in kept] == list(kept)
    assert resolve_precision("auto", gpu=False) == "fp32"
    assert resolve_precision("auto", gpu=True) == "bf16"
    assert resolve_precision("bf16", gpu=False) == "bf16"
    measured["speeds"] = made(AMX, ("float32", "bfloat16"))
    assert resolve_precision("auto", gpu=False) == "bf16"
    # Autocast in float16 would need loss scaling: a fit stays in float32 where only that is fast.
    measured["speeds"] = made({"float32": 1.0, "bfloat16": 1.0, "float16": 9.0}, ("float32", "float16"))
    assert resolve_precision("auto", gpu=False) == "fp32"


def test_how_much_slower_an_explicit_type_is() -> None:
    assert made(ZEN3).slower_than_best("bfloat16") == pytest.approx(97 / 17)
    assert made(ZEN3).slower_than_best("float32") == 1.0


def test_speed_between_and_beyond_what_was_measured() -> None:
    speeds = made(ZEN3)
    assert speeds.gflops(16) == pytest.approx(40)
    assert speeds.gflops(32) == pytest.approx(math.sqrt(40 * 90)), "half way on a logarithmic scale"
    assert speeds.gflops(0.1) == 6.0
    assert speeds.gflops(math.inf) == 120.0
    assert speeds.gflops(64, "bfloat16") == pytest.approx(90 * 17 / 97)
    whole = speeds.tokens_per_second(1.5e9, math.inf)
    assert 0 < whole <= 120e9 / 3e9, "a model is not faster than its products"


def test_the_flags_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, native in [
        ({"avx2", "fma", "f16c"}, ("float32",)),  # f16c converts, and multiplies nothing
        ({"avx512f", "avx512bw"}, ("float32",)),
        ({"avx512f", "avx512_bf16"}, ("float32", "bfloat16")),
        ({"amx_bf16", "avx512_fp16"}, ("float32", "bfloat16", "float16")),
        ({"asimd", "asimdhp", "bf16"}, ("float32", "bfloat16", "float16")),
    ]:
        monkeypatch.setattr(machine, "_cpu", lambda flags=flags: ("a CPU", frozenset(flags)))
        assert machine.native_types() == native


def test_it_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path))
    machine.speeds.cache_clear()
    try:
        first = machine.speeds()
        assert first.cores == machine.cores()
        assert all(first.by_type[one] > 0 for one in machine.TYPES)
        assert first.fastest in first.native
        (file,) = tmp_path.glob("machine-*.json")
        # Whether the cores were shared just now is the machine's affair: a quiet measurement is the one that is kept.
        file.write_text(json.dumps(asdict(first) | {"by_type": ZEN3, "busy": False}))
        machine.speeds.cache_clear()
        assert machine.speeds().by_type == ZEN3, "read and not measured again"
        measured = subprocess.CompletedProcess([], 0, json.dumps(asdict(first)), "")
        monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: measured)
        for damaged in ("", "[]", json.dumps(asdict(first) | {"by_rows": None})):
            file.write_text(damaged)
            machine.speeds.cache_clear()
            assert machine.speeds().by_type == first.by_type, "a damaged file is measured anew"
    finally:
        machine.speeds.cache_clear()


def test_another_setting_is_another_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine._fingerprint()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert machine._fingerprint() != before


def test_a_machine_that_cannot_be_measured_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path))
    monkeypatch.setattr(machine.sys, "executable", "/bin/false")
    machine.speeds.cache_clear()
    try:
        with pytest.raises(InfrastructureError, match="could not be measured"):
            machine.speeds()
    finally:
        machine.speeds.cache_clear()

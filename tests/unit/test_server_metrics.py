"""A served endpoint's line: made of vLLM's own counters."""

from __future__ import annotations

import pytest

from lion_ray.config import ServeConfig
from lion_ray.gateway.stats import Stats, meter_line
from lion_ray.inference.server import requests_at_once
from lion_ray.inference.server_metrics import WINDOW_S, ServerCounts, ServerRates, parse_counts
from lion_ray.models.machine import Speeds

# As vLLM 0.32 writes them, two engines.
PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 40.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e9
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 600.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 250.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 20.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
# TYPE python_info gauge
python_info{implementation="CPython"} 1.0
"""


def test_counts_are_summed_and_the_cache_is_left_out() -> None:
    assert parse_counts(PAGE) == ServerCounts(read=400, written=250, finished=23, running=41, queued=7)
    assert parse_counts("") == ServerCounts()


def test_rates_are_of_the_last_seconds() -> None:
    rates = ServerRates()
    assert rates.add(0.0, ServerCounts()).read_per_s == 0.0
    for second in range(2, 102, 2):
        shown = rates.add(float(second), ServerCounts(read=30.0 * second, written=20.0 * second, finished=second))
    assert [shown.read_per_s, shown.written_per_s] == pytest.approx([30, 20])
    for second in range(102, 102 + 2 * int(WINDOW_S), 2):
        shown = rates.add(float(second), ServerCounts(read=3000, written=2000, finished=100))
    assert [shown.read_per_s, shown.written_per_s] == [0.0, 0.0], "it stands still, and that is seen"
    assert shown.tokens == 5000


def test_the_line_never_says_0_requests_while_a_server_works() -> None:
    rates = ServerRates()
    rates.add(0.0, ServerCounts())
    stats = Stats(in_flight=64, served=rates.add(10.0, parse_counts(PAGE)))
    line = meter_line({"local": [stats]}, 0.0, None)
    assert line == "local: reads 40 and writes 25 tokens/s, 23 answers finished, 41 running, 7 waiting"
    assert "requests/min" not in line


@pytest.mark.parametrize(
    ("scale", "config", "expected"),
    [
        (2.0, ServeConfig(model="m"), 64),
        (1.0, ServeConfig(model="m"), 32),
        (0.1, ServeConfig(model="m"), 8),  # a slow machine: few at once, so that answers come
        (0.1, ServeConfig(model="m", max_num_seqs=48), 48),  # as configured
        (0.1, ServeConfig(model="m", num_gpus=1), 64),
    ],
)
def test_a_slow_server_computes_fewer_requests_at_once(
    monkeypatch: pytest.MonkeyPatch, scale: float, config: ServeConfig, expected: int
) -> None:
    by_rows = {1: 6.0 * scale, 16: 40.0 * scale, 64: 90.0 * scale, 256: 120.0 * scale}
    by_type = {"float32": 97.0, "bfloat16": 17.0, "float16": 20.0, "int8": 300.0}
    monkeypatch.setattr("lion_ray.inference.server.speeds", lambda: Speeds("", 2, ("float32",), by_type, by_rows))
    monkeypatch.setattr("lion_ray.models.machine.speeds", lambda: Speeds("", 2, ("float32",), by_type, by_rows))
    assert requests_at_once(config, 1.5e9) == expected
    assert requests_at_once(config.model_copy(update={"max_num_seqs": None}), None) == 64

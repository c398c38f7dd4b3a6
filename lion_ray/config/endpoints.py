"""The endpoints that a run calls: their addresses, limits, prices, and the servers that it starts itself."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import field_validator, model_validator

from lion_ray.config.section import AUTO, Dtype, Section, by_machine, operational
from lion_ray.core.addresses import check_api

_OWN_FIELDS = {
    "model": "the endpoint's model",
    "messages": "made from the prompts",
    "max_tokens": "the role's max_tokens, on which the budget is based",
    "max_completion_tokens": "the role's max_tokens, on which the budget is based",
    "temperature": "the role's temperature, or left out by omit",
    "top_p": "the role's top_p, or left out by omit",
    "seed": "sent with send_seed",
    "response_format": "sent with json_schema",
    "logprobs": "sent if needed",
    "top_logprobs": "sent if needed",
    "n": "always 1: more answers would be paid for and not kept",
    "best_of": "always 1: more answers would be paid for and not kept",
    "tools": "not supported: a tool call is not an answer",
}
"""Fields of a request that the user may not add, and the reason."""


class ServeConfig(Section):
    """A vLLM OpenAI server that the run starts on loopback, and stops at its end."""

    model: str
    """The model to serve: a folder, a hub name, or bundled:NAME."""
    dtype: Dtype = by_machine()
    """The weights' type in the server; auto: bfloat16 on a GPU, on a CPU the fastest type."""
    quantization: Literal["int8"] | None = None
    """int8: quantize the weights to 8 bits, several times faster and smaller on a CPU; null: no quantization."""
    max_model_len: int = operational(4096, ge=64)
    """The longest prompt plus answer, in tokens."""
    max_num_seqs: int | None = operational(None, ge=1)
    """Concurrent requests; null: on a GPU what its memory holds (8 to 256), on a CPU what keeps answers coming."""
    kv_cache_gib: float = operational(2.0, gt=0)
    """Memory for the key-value cache on a CPU, in GiB."""
    gpu_memory_utilization: float = operational(0.9, gt=0, le=1)
    """Share of its GPUs' memory that the server may take; with a part of a GPU, the share of that part."""
    num_gpus: float | Literal["auto"] = operational(AUTO)
    """GPUs it reserves: 0 (CPU), a part below 1, or a whole number; auto: with the GPU build one, or a part of one."""
    enforce_eager: bool | None = operational(None)
    """Skip compilation: starts sooner, answers slower; null: only on a CPU, where compiling takes minutes."""
    start_timeout_s: float = operational(900.0, gt=0)
    """Timeout until the server answers its first request, in seconds."""

    @field_validator("num_gpus")
    @classmethod
    def _a_part_or_whole(cls, value: float | Literal["auto"]) -> float | Literal["auto"]:
        if value != AUTO and (value < 0 or (value > 1 and value % 1)):
            raise ValueError(f"{value:g} is not a number of GPUs: give auto, a part below 1, or a whole number")
        return value


class LimitsConfig(Section):
    """An endpoint's rate limits for this run; null if it has none, or sends them in its x-ratelimit-* headers."""

    requests_per_minute: float | None = operational(None, gt=0)
    """Requests per minute."""
    tokens_per_minute: float | None = operational(None, gt=0)
    """Prompt and completion tokens per minute, together."""
    input_tokens_per_minute: float | None = operational(None, gt=0)
    """Prompt tokens per minute."""
    output_tokens_per_minute: float | None = operational(None, gt=0)
    """Completion tokens per minute."""
    share: float = operational(1.0, gt=0, le=1)
    """The share of every limit, configured or from headers, that this run uses; the rest is left to other users."""


class PricesConfig(Section):
    """The prices of an endpoint's model, in US dollars per million tokens."""

    input: float = operational(ge=0)
    """Price of a million prompt tokens."""
    output: float = operational(ge=0)
    """Price of a million completion tokens."""
    cached_input: float | None = operational(None, ge=0)
    """Price of a million prompt tokens from the endpoint's cache; null: as input."""
    batch: float = operational(1.0, gt=0, le=1)
    """The price of a batch call as a share of the live price; 0.5 at OpenAI."""


class BatchConfig(Section):
    """The endpoint's Batch API, for roles whose mode is batch."""

    max_requests: int = operational(50_000, ge=1)
    """The most requests in one batch."""
    max_bytes: int = operational(100_000_000, ge=1_000)
    """The largest size of one batch's file, in bytes."""
    linger_s: float = operational(10.0, gt=0)
    """A batch is sent when no call has joined it for this long, in seconds."""
    poll_s: float = operational(30.0, gt=0)
    """Seconds between polls of a running batch."""
    completion_window: str = operational("24h")
    """The time within which the endpoint is asked to finish a batch."""
    leftovers: Literal["batch", "live"] = operational("batch")
    """How unfinished calls of an expired or partly failed batch are retried: in a new batch, or as live calls."""


class EndpointConfig(Section):
    """An OpenAI-compatible API."""

    model: str
    """The model's name at the endpoint; part of every call's key."""
    base_url: str | None = operational(None)
    """The API's address, ending in /v1; null: the openai package's default."""
    more_urls: tuple[str, ...] = operational(())
    """Further addresses of the same model: a call goes to the one with the fewest in flight, a batch to base_url."""
    api_key_env: str | None = operational("OPENAI_API_KEY")
    """The environment variable that holds the key; null if the endpoint needs none."""
    serve: ServeConfig | None = None
    """Start this server for the run instead of calling an address."""
    max_concurrency: int = operational(64, ge=1)
    """Calls in flight at once."""
    limits: LimitsConfig = LimitsConfig()
    """Its rate limits, if its headers do not report them."""
    prices: PricesConfig | None = operational(None)
    """Its prices; null for a free endpoint. A budget needs the prices of every endpoint in use."""
    batch: BatchConfig = BatchConfig()
    """Its Batch API."""
    proxies: int = operational(1, ge=1)
    """Actors that call it; each gets its share of the limits and of max_concurrency."""
    transport: Literal["aiohttp", "openai"] = operational("aiohttp")
    """The HTTP client of live calls: aiohttp (fast), or the openai package."""
    connect_timeout_s: float = operational(10.0, gt=0)
    """Timeout of connecting, in seconds."""
    first_byte_timeout_s: float | None = operational(300.0, gt=0)
    """Timeout until an answer begins, in seconds; null: timeout_s alone. Lost connections are detected sooner."""
    timeout_s: float = operational(600.0, gt=0)
    """Timeout of one whole attempt at a call, in seconds."""
    max_attempts: int = operational(6, ge=1)
    """Attempts at a call that fails with an error or a timeout; a wait for a rate limit (429) is not an attempt."""
    breaker_failures: int = operational(8, ge=1)
    """Consecutive errors, of any calls, after which the circuit breaker opens: the endpoint is only probed."""
    outage_timeout_s: float = operational(3600.0, gt=0)
    """How long an endpoint may be down before the run stops, in seconds."""
    assume_billed: Literal["uncertain", "never"] = operational("uncertain")
    """A call that timed out or was cut off: uncertain counts it against the budget; never: it is not billed."""
    max_backoff_s: float = operational(60.0, gt=0)
    """The longest backoff between attempts if the endpoint requests no pause, in seconds."""
    max_retry_after_s: float = operational(86_400.0, gt=0)
    """The longest pause that an endpoint may request, in seconds; repeated requests for more stop the run."""
    max_reply_bytes: int = operational(16 * 2**20, ge=2**16)
    """The largest reply in bytes, both compressed and decompressed; a larger one quarantines its row."""
    json_schema: bool = False
    """The endpoint supports answers in a JSON schema (OpenAI's response_format)."""
    send_seed: bool = False
    """Send each call's seed; not every endpoint accepts one."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = operational("max_tokens")
    """The request field of the answer's length limit; if the endpoint refuses it, the other one is used."""
    omit: tuple[Literal["temperature", "top_p"], ...] = operational(())
    """Fields that the endpoint does not accept; they are left out of requests and of calls' keys."""
    extra_body: dict[str, Any] = operational({})
    """Additional fields of requests, such as enable_thinking; part of calls' keys."""
    system_role: Literal["system", "developer", "user"] = operational("system")
    """The role of system messages; user, for models without such a role: merged into the user's message, before it."""
    finish_reasons: dict[str, Literal["stop", "length", "content_filter", "error"]] = operational({})
    """Meanings of the endpoint's own finish reasons, which otherwise count as incomplete; `unknown`: none was given."""

    @field_validator("base_url")
    @classmethod
    def _no_secrets(cls, value: str | None) -> str | None:
        return value if value is None else check_api(value)

    @model_validator(mode="after")
    def _one_source(self) -> EndpointConfig:
        if self.serve is not None and self.base_url is not None:
            raise ValueError("give either base_url or serve, not both")
        if self.more_urls and self.base_url is None:
            raise ValueError("more_urls: give the first address as base_url")
        return self

    @field_validator("more_urls")
    @classmethod
    def _no_secrets_in_more(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_api, value))

    @field_validator("extra_body")
    @classmethod
    def _adds_only(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if name in _OWN_FIELDS:
                raise ValueError(f"'{name}' is {_OWN_FIELDS[name]}")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("holds a value that JSON cannot represent, such as a date or .nan; correct it") from None
        return extra

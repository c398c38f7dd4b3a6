"""The endpoints that a run calls: their addresses, limits, prices, and the servers that it starts itself."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import field_validator, model_validator

from lion_ray.config.section import Dtype, Section, by_machine, operational
from lion_ray.core.addresses import check_api

_OWN_FIELDS = {
    "model": "the endpoint's model",
    "messages": "made of the prompts",
    "max_tokens": "the role's max_tokens, on which the budget rests",
    "max_completion_tokens": "the role's max_tokens, on which the budget rests",
    "temperature": "the role's temperature, or left out by omit",
    "top_p": "the role's top_p, or left out by omit",
    "seed": "sent with send_seed",
    "response_format": "sent with json_schema",
    "logprobs": "sent where they are needed",
    "top_logprobs": "sent where they are needed",
    "n": "always 1: more answers would be paid for and not kept",
    "best_of": "always 1: more answers would be paid for and not kept",
    "tools": "no part of a distillation: a tool call is no answer",
}
"""Fields of a request that are not the user's to add, and whose they are."""


class ServeConfig(Section):
    """A vLLM OpenAI server that the run starts on loopback, and stops at its end."""

    model: str
    """The model to serve: a folder, a hub name, or bundled:NAME."""
    dtype: Dtype = by_machine()
    """The weights' type in the server; auto: bfloat16 on a GPU, on a CPU the type that it computes fastest."""
    quantization: Literal["int8"] | None = None
    """int8: round the weights once to 8 bits, several times faster and smaller on a CPU; null: as they are."""
    max_model_len: int = operational(4096, ge=64)
    """The longest prompt plus answer, in tokens."""
    max_num_seqs: int | None = operational(None, ge=1)
    """How many requests run at once in the server; null: 64 on a GPU, on a CPU so many that answers come steadily."""
    kv_cache_gib: float = operational(2.0, gt=0)
    """Memory for the key-value cache on a CPU, in GiB."""
    gpu_memory_utilization: float = operational(0.9, gt=0, le=1)
    """Share of a GPU's memory the server may take."""
    num_gpus: int = operational(0, ge=0)
    """GPUs for the server; 0 runs it on the CPU."""
    enforce_eager: bool | None = operational(None)
    """Skip compilation: starts sooner, answers slower; null: on a CPU, where compiling takes minutes."""
    start_timeout_s: float = operational(900.0, gt=0)
    """How long the server may take to answer its first request, in seconds."""


class LimitsConfig(Section):
    """An endpoint's rate limits, for this run; null where it sets none or tells them in its x-ratelimit-* headers."""

    requests_per_minute: float | None = operational(None, gt=0)
    """Requests in a minute."""
    tokens_per_minute: float | None = operational(None, gt=0)
    """Prompt and completion tokens in a minute, together."""
    input_tokens_per_minute: float | None = operational(None, gt=0)
    """Prompt tokens in a minute."""
    output_tokens_per_minute: float | None = operational(None, gt=0)
    """Completion tokens in a minute."""
    share: float = operational(1.0, gt=0, le=1)
    """The part of every limit, told or configured, that is this run's; the rest is other people's."""


class PricesConfig(Section):
    """What an endpoint's model costs, in US dollars for a million tokens."""

    input: float = operational(ge=0)
    """A million prompt tokens."""
    output: float = operational(ge=0)
    """A million completion tokens."""
    cached_input: float | None = operational(None, ge=0)
    """A million prompt tokens that the endpoint found in its cache; null: as input."""
    batch: float = operational(1.0, gt=0, le=1)
    """What a call costs in a batch, as a share of its live price; OpenAI asks 0.5."""


class BatchConfig(Section):
    """How calls go through the endpoint's Batch API, for roles whose mode is batch."""

    max_requests: int = operational(50_000, ge=1)
    """Requests in one batch at most."""
    max_bytes: int = operational(100_000_000, ge=1_000)
    """Bytes in one batch's file at most."""
    linger_s: float = operational(10.0, gt=0)
    """A batch is sent when no call has joined it for so long, in seconds."""
    poll_s: float = operational(30.0, gt=0)
    """Seconds between looks at a batch under way."""
    completion_window: str = operational("24h")
    """What the endpoint is asked to finish a batch within."""
    leftovers: Literal["batch", "live"] = operational("batch")
    """What an expired or partly failed batch left undone goes again in: a new batch, or live calls."""


class EndpointConfig(Section):
    """An OpenAI-compatible API."""

    model: str
    """The model's name at the endpoint; part of every call's key."""
    base_url: str | None = operational(None)
    """The API's address, ending in /v1; null for the openai package's own default."""
    api_key_env: str | None = operational("OPENAI_API_KEY")
    """The environment variable that holds the key; null where the endpoint asks for none."""
    serve: ServeConfig | None = None
    """Start this server for the run instead of calling an address."""
    max_concurrency: int = operational(64, ge=1)
    """Calls in flight at once."""
    limits: LimitsConfig = LimitsConfig()
    """Its rate limits, where it does not tell them itself."""
    prices: PricesConfig | None = operational(None)
    """What it costs; null for an endpoint that costs nothing. A budget needs the prices of every endpoint in use."""
    batch: BatchConfig = BatchConfig()
    """Its Batch API."""
    proxies: int = operational(1, ge=1)
    """Actors that call it; each has its part of the limits and of max_concurrency."""
    transport: Literal["aiohttp", "openai"] = operational("aiohttp")
    """The HTTP client under live calls: aiohttp (fast), or the openai package."""
    connect_timeout_s: float = operational(10.0, gt=0)
    """Time to connect, in seconds."""
    first_byte_timeout_s: float | None = operational(300.0, gt=0)
    """Time until an answer begins, in seconds; null: no limit of its own. Connections that die are noticed sooner."""
    timeout_s: float = operational(600.0, gt=0)
    """Time for one whole attempt at a call, in seconds."""
    max_attempts: int = operational(6, ge=1)
    """Attempts at a call that fails by error or time-out; waiting for a rate limit (429) is not an attempt."""
    breaker_failures: int = operational(8, ge=1)
    """Errors in a row, of any calls, after which the endpoint counts as down and is only probed."""
    outage_timeout_s: float = operational(3600.0, gt=0)
    """How long an endpoint may be down before the run stops, in seconds."""
    assume_billed: Literal["uncertain", "never"] = operational("uncertain")
    """A call that timed out or was cut off: uncertain counts it against the budget; never, where it bills none."""
    max_backoff_s: float = operational(60.0, gt=0)
    """The longest pause between attempts that the endpoint did not ask for, in seconds."""
    max_retry_after_s: float = operational(86_400.0, gt=0)
    """The longest pause that an endpoint may ask for, in seconds; one that keeps asking for more stops the run."""
    max_reply_bytes: int = operational(16 * 2**20, ge=2**16)
    """The largest reply that is read, in bytes, as it comes and unpacked; the row of a larger one is quarantined."""
    json_schema: bool = False
    """The endpoint can be made to answer in a JSON schema (OpenAI's response_format)."""
    send_seed: bool = False
    """Send each call's seed; not every endpoint takes one."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = operational("max_tokens")
    """The name under which the endpoint takes the answer's length limit; the other is found when it refuses this."""
    omit: tuple[Literal["temperature", "top_p"], ...] = operational(())
    """Fields that the endpoint does not take: they are left out of requests, and of calls' keys."""
    extra_body: dict[str, Any] = operational({})
    """Fields that requests have on top, such as enable_thinking; part of calls' keys."""
    system_role: Literal["system", "developer", "user"] = operational("system")
    """How a system message is sent; user, for models without that role: before what the user says, in one message."""
    finish_reasons: dict[str, Literal["stop", "length", "content_filter", "error"]] = operational({})
    """What finish reasons of the endpoint's own mean, where they are taken for incomplete; `unknown`: none is given."""

    @field_validator("base_url")
    @classmethod
    def _no_secrets(cls, value: str | None) -> str | None:
        return value if value is None else check_api(value)

    @model_validator(mode="after")
    def _one_source(self) -> EndpointConfig:
        if self.serve is not None and self.base_url is not None:
            raise ValueError("give either base_url or serve, not both")
        return self

    @field_validator("extra_body")
    @classmethod
    def _adds_only(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if name in _OWN_FIELDS:
                raise ValueError(f"'{name}' is {_OWN_FIELDS[name]}")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("holds something that JSON has no form for, such as a date or .nan") from None
        return extra

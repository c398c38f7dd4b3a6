"""One-line errors for an endpoint that refuses every call: what is wrong, where, and what to set.

This module decides nothing: `faults` guesses whose fault a refusal is, and `suspects` decides.
"""

from __future__ import annotations

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError
from lion_ray.gateway.calls import Call, Failure
from lion_ray.gateway.faults import MAX_TOKENS_FIELDS, named_fields
from lion_ray.gateway.suspects import BY_NUMBER, Suspicion
from lion_ray.gateway.wire import Refused


def refusal_error(name: str, address: str, config: EndpointConfig, refused: Refused, call: Call) -> EndpointError:
    """The error for endpoint `name`, which refuses every call. `address` holds no secret."""
    variable = config.api_key_env
    who = f"endpoint {name} ({address})"
    match refused.fault:
        case "key" if variable is None:
            message = f"{who} needs a key: name its environment variable in endpoints.{name}.api_key_env"
        case "key":
            message = f"{who} refuses the key in {variable}: check that environment variable and the key's rights"
        case "model":
            message = f"{who} has no model '{config.model}': check endpoints.{name}.model"
        case "address":
            message = f"{who} has no chat completions API: check endpoints.{name}.base_url (it often ends in /v1)"
        case "quota":
            message = (
                f"{who} reports that the account has no credit or is closed: top it up, then run the same command again"
            )
        case "system" if any(one["role"] in ("system", "developer") for one in call.messages):
            message = (
                f"{who} does not accept system messages for '{config.model}': set endpoints.{name}.system_role: user, "
                "which puts them at the start of the user's message"
            )
        case "system" | "parameter":
            message = f"{who} does not accept a field of every request: {_remedy(name, refused.detail, call)}"
    return EndpointError(f"{message} [{refused.detail}]")


def suspicion(name: str, address: str, failure: Failure) -> Suspicion:
    """A failure that may affect every call, although its message does not say so."""
    error = EndpointError(
        f"endpoint {name} ({address}) has answered no call, and {BY_NUMBER} failed in the same way: check "
        f"endpoints.{name}.model and base_url; leave out a field that it does not accept with omit, or add one that it "
        f"requires with extra_body [{failure.reason}: {failure.detail}]"
    )
    return Suspicion(failure, error, by_words=False)


def _remedy(name: str, detail: str, call: Call) -> str:
    fields = named_fields(detail)
    here = f"endpoints.{name}"
    ours = [field for field in fields if field in ("temperature", "top_p")]
    if ours:
        left_out = ours[-1:] if "both" in detail.lower() else ours
        return f"leave it out with {here}.omit: [{', '.join(left_out)}], or set the {call.role or 'role'}'s own value"
    if any(field in MAX_TOKENS_FIELDS for field in fields):
        return f"lower the {call.role or 'role'}'s max_tokens, or set {here}.max_tokens_field to the field's name there"
    if "seed" in fields:
        return f"set {here}.send_seed: false"
    if "response_format" in fields or "json_schema" in fields:
        return f"set {here}.json_schema: false"
    wanted = fields[0] if fields else "FIELD"
    return (
        f"add it with {here}.extra_body: {{{wanted}: value}}, or leave one out with {here}.omit: [temperature, top_p]"
    )

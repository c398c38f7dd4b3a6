"""bespokelabs-curator, used as in its guide; runs in its own environment (see `peers`).

Its limits are set too high to have an effect, and its cache is off.
"""

from __future__ import annotations

import os
import tempfile

from bench.measure import MAX_TOKENS, MODEL, WARM_UP, arguments, measured, prompt

os.environ |= {
    "CURATOR_DISABLE_CACHE": "1",
    "TELEMETRY_ENABLED": "0",
    "OPENAI_API_KEY": "none",
}


def main() -> None:
    given = arguments().parse_args()
    os.environ["OPENAI_BASE_URL"] = given.url
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder:
        os.environ["CURATOR_CACHE_DIR"] = folder
        import litellm.litellm_core_utils.default_encoding  # noqa: F401 - before the rest: it holds tiktoken's file
        from bespokelabs import curator

        llm = curator.LLM(
            model_name=MODEL,
            backend="openai",
            generation_params={"max_tokens": MAX_TOKENS, "temperature": 1.0, "top_p": 1.0},
            backend_params={
                "base_url": given.url,
                "max_requests_per_minute": 10_000_000,
                "max_tokens_per_minute": 10_000_000_000,
                "max_concurrent_requests": given.in_flight,
            },
        )
        llm([prompt(row) for row in WARM_UP])
        with measured(given.calls) as result:
            result.answered = len(llm([prompt(row) for row in range(given.calls)]).dataset)


if __name__ == "__main__":
    main()

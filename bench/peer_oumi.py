"""oumi's remote inference engine, used as in its guide; runs in its own environment (see `peers`).

Its adaptive concurrency is off, because it would start with half of the workers, which is slower. It appends every
answer to a file, as it always does.
"""

from __future__ import annotations

import logging
import tempfile

from bench.measure import MAX_TOKENS, MODEL, WARM_UP, arguments, measured, prompt


def main() -> None:
    given = arguments().parse_args()
    from oumi.core.configs import GenerationParams, InferenceConfig, ModelParams, RemoteParams
    from oumi.core.types.conversation import Conversation, Message, Role
    from oumi.inference import RemoteInferenceEngine

    logging.disable(logging.WARNING)

    def conversations(rows: range) -> list[Conversation]:
        return [Conversation(messages=[Message(role=Role.USER, content=prompt(row))]) for row in rows]

    generation = GenerationParams(max_new_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0)
    remote = RemoteParams(
        api_url=f"{given.url}/chat/completions",
        api_key="none",
        num_workers=given.in_flight,
        politeness_policy=0.0,
        use_adaptive_concurrency=False,
    )
    engine = RemoteInferenceEngine(ModelParams(model_name=MODEL), generation_params=generation, remote_params=remote)
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder:

        def infer(rows: range, name: str) -> int:
            config = InferenceConfig(generation=generation, remote_params=remote, output_path=f"{folder}/{name}.jsonl")
            done = engine.infer(conversations(rows), config)
            return sum(1 for one in done if one.messages[-1].role == Role.ASSISTANT and one.messages[-1].content)

        infer(WARM_UP, "warm-up")
        with measured(given.calls) as result:
            result.answered = infer(range(given.calls), "rows")


if __name__ == "__main__":
    main()

"""`lion-ray eval`: measure whether the student improved. `evaluation` does the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from lion_ray.cli.common import AsJson, results_console
from lion_ray.core.errors import ConfigError

if TYPE_CHECKING:
    from lion_ray.core.progress import Progress
    from lion_ray.evaluation.participants import Participant

CHOICES = ("bbh", "agieval")
PARTICIPANT = "a run (RUN@N: after iteration N), a model, CONFIG.yaml:ENDPOINT, http://host/v1#MODEL, or answers.jsonl"


class RunByDefault(TyperGroup):
    """A group whose default command is `run`: an unknown command name is its first argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


eval_app = typer.Typer(
    cls=RunByDefault,
    help="Measure whether the student improved: eval TARGET --suite …, or eval score for recorded outputs.",
    no_args_is_help=True,
)


@eval_app.command("run")
def evaluate(
    target: Annotated[str, typer.Argument(help=f"What to measure: {PARTICIPANT}.", metavar="TARGET")],
    suite: Annotated[
        str, typer.Option(help="vicuna80, user252, bbh, agieval, a file of questions, or a .yaml file with checks.")
    ],
    questions: Annotated[Path | None, typer.Option(help="vicuna80's or user252's questions.")] = None,
    data: Annotated[str | None, typer.Option(help="bbh's or agieval's folder; or hub.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="What to compare it with; default: the run's teacher.", metavar="PARTICIPANT")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="The judge; default: the run's referee.", metavar="PARTICIPANT")
    ] = None,
    judge_prompt: Annotated[
        str | None, typer.Option(help="The referee's template: explain, scores, scores-turns, or a .yaml file.")
    ] = None,
    setting: Annotated[
        Literal["1", "2", "both"], typer.Option(help="1: one order; 2: both orders, several samples.")
    ] = "both",
    samples: Annotated[int, typer.Option(min=1, max=999, help="Setting 2's samples in each order.")] = 3,
    letters: Annotated[
        Literal["published", "standing", "logprobs"], typer.Option(help="How to read the letters of bbh and agieval.")
    ] = "published",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions: in total, or per task of bbh and agieval.")
    ] = None,
    iteration: Annotated[
        int | None,
        typer.Option(min=0, help="The run's student after this iteration; 0 is the base model. Default: the last."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model at an http address.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the key of http addresses.", metavar="NAME")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt format of a model without a run: chat, instruction, or a .txt file.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="The number type of a served model.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Temperature of the target's answers.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum tokens of the target's answers.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Maximum cost in US dollars.")] = None,
    journal: Annotated[str | None, typer.Option(help="Journal of paid calls; default: the run's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: the run's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on a suite (the word run is optional)."""
    from lion_ray.core.progress import Progress
    from lion_ray.evaluation.participants import ParticipantOptions, find_participant
    from lion_ray.evaluation.session import done, place_of

    progress = Progress(sys.stderr)
    try:
        options = ParticipantOptions("TARGET", iteration, model, api_key_env, prompt, dtype, temperature, max_tokens)
        participant = find_participant(target, options, progress.say)
        place = place_of(participant, out, journal)
        if suite in CHOICES:
            if reference or judge or questions:
                raise ConfigError(f"--suite {suite} takes --data, and neither --questions, --reference nor --judge")
            if temperature is not None:
                raise ConfigError(f"--suite {suite} runs at temperature 0: omit --temperature")
            from lion_ray.evaluation.benchmarks.run import MAX_TOKENS, ChoicePlan, choose

            if participant.recorded is not None:
                raise ConfigError(f"{target}: recorded outputs are scored by `lion-ray eval score --suite {suite}`")
            choices = _choices(suite, data)
            plan = ChoicePlan(suite, choices, participant, letters, limit, max_tokens or MAX_TOKENS, budget)
            _show_choices(done(choose(plan, place, progress)), as_json)
            return
        if (
            checked := _check_plan(suite, participant, limit, budget, temperature, max_tokens, reference, judge)
        ) is not None:
            if reference or judge or questions or data:
                others = "--questions, --data, --reference nor --judge"
                raise ConfigError(f"--suite {suite} is scored by checks; it takes neither {others}")
            from lion_ray.evaluation.checks import check_suite

            _show_checked(done(check_suite(checked, place, progress)), as_json)
            return
        if data is not None:
            raise ConfigError(f"--data is for {' and '.join(CHOICES)}; --suite {suite} takes --questions")
        from lion_ray.discrimination.quality import settings
        from lion_ray.evaluation.pairwise.run import PairwisePlan, compare

        other = _reference(
            participant, reference, ParticipantOptions("--reference", None, None, api_key_env, prompt, dtype), progress
        )
        referee = _judge(
            participant,
            judge,
            judge_prompt,
            ParticipantOptions("--judge", None, None, api_key_env, prompt, dtype),
            progress,
        )
        how = settings(setting, samples, referee.temperature)
        compared = PairwisePlan(suite, questions, participant, other, referee, how, limit, budget)
        _show_relative(done(compare(compared, place, progress)), as_json)
    finally:
        progress.close()


@eval_app.command("score")
def score_outputs(
    suite: Annotated[Literal["bbh", "agieval"], typer.Option(help="Which benchmark.")],
    data: Annotated[str, typer.Option(help="The folder with its questions; or hub.")],
    outputs: Annotated[Path, typer.Option(help='JSON Lines: {"id": "bbh/navigate/0", "output": "(A)"}.')],
    letters: Annotated[
        Literal["published", "standing", "logprobs"],
        typer.Option(
            help="How to read letters: the first character A to F (published), or the first letter that stands alone."
        ),
    ] = "published",
    as_json: AsJson = False,
) -> None:
    """Score recorded outputs on a benchmark, without a model."""
    from lion_ray.evaluation.benchmarks.recorded import read_outputs, score

    scored = score(suite, _choices(suite, data), read_outputs(outputs), letters)
    if as_json:
        print(json.dumps(scored.to_json()))
        return
    _print_score(scored)


def _check_plan(
    suite: str,
    participant: Participant,
    limit: int | None,
    budget: float | None,
    temperature: float | None,
    max_tokens: int | None,
    reference: str | None,
    judge: str | None,
) -> Any:
    """The plan of a suite that is scored by checks. Returns None for other suites."""
    from lion_ray.evaluation.checks import own_suite, run_suite

    if suite.lower().endswith((".yaml", ".yml")):
        return own_suite(Path(suite), participant, limit, budget, temperature=temperature, max_tokens=max_tokens)
    # With a judge or a reference, a file of questions is a suite of relative quality.
    return None if reference or judge else run_suite(suite, participant, limit, budget)


def _choices(suite: str, data: str | None) -> Any:
    """A multiple-choice suite's questions, from a folder or the hub."""
    from lion_ray.evaluation.benchmarks.protocol import FILES, load_suite

    if data is None:
        raise ConfigError(f"--suite {suite} needs its questions: --data FOLDER ({FILES[suite]}), or --data hub")
    if data == "hub":
        from lion_ray.evaluation.benchmarks.hub import load_from_hub

        return load_from_hub(suite)
    return load_suite(suite, Path(data))


def _reference(target: Participant, named: str | None, options: Any, progress: Progress) -> Participant:
    from lion_ray.evaluation.participants import find_participant, teacher_of

    if named is not None:
        return find_participant(named, options, progress.say)
    if target.run is None:
        raise ConfigError(f"--reference is missing: what to compare the target with; {PARTICIPANT}")
    return teacher_of(target.run)


def _judge(
    target: Participant, named: str | None, template: str | None, options: Any, progress: Progress
) -> Participant:
    from lion_ray.evaluation.participants import as_judge, find_participant, referee_of

    if named is not None:
        return as_judge(find_participant(named, options, progress.say), template or "explain")
    if target.run is None:
        raise ConfigError(f"--judge is missing: the model that judges; {PARTICIPANT.rpartition(', or ')[0]}")
    referee = referee_of(target.run)
    return referee if template is None else as_judge(referee, template)


def _show_relative(found: Any, as_json: bool) -> None:
    from lion_ray.evaluation.pairwise.table import notes, relative_tables

    _show(found, as_json, relative_tables, notes)


def _show_checked(found: Any, as_json: bool) -> None:
    from lion_ray.evaluation.checks import check_notes, check_tables

    _show(found, as_json, check_tables, check_notes)


def _show(found: Any, as_json: bool, tables: Callable[[Any], list[Any]], lines: Callable[[Any], list[str]]) -> None:
    if as_json:
        print(json.dumps(found.json))
        return
    console = results_console()
    for table in tables(found.json):
        console.print(table)
    for line in lines(found.json):
        console.print(line, soft_wrap=True)
    console.print(f"result  {found.path} (rows: the .parquet file beside it)", soft_wrap=True)


def _show_choices(found: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.json))
        return
    _print_score(found.score)
    console = results_console()
    means = ", ".join(f"{way} {mean:.1%}" for way, mean in found.json["means"].items() if mean is not None)
    console.print(f"mean by method of reading letters: {means}", soft_wrap=True)
    for why, count in found.json["reasons"].items():
        console.print(f"{count} questions without an answer: {why}", soft_wrap=True)
    console.print(f"result  {found.path} (outputs: the .jsonl file beside it)", soft_wrap=True)


def _print_score(scored: Any) -> None:
    from lion_ray.evaluation.benchmarks.protocol import FILES
    from lion_ray.evaluation.benchmarks.recorded import score_table

    console = results_console()
    console.print(score_table(scored))
    if scored.missing:
        console.print(f"missing: {', '.join(scored.missing)} ({FILES[scored.suite]})", soft_wrap=True)
    if not scored.whole:
        console.print(
            "only a part of the suite was answered; the paper's numbers are for all questions", soft_wrap=True
        )

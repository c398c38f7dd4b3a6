"""The learning bench: the world's truth, what its endpoint reads of lion-ray's own prompts, the arms, the figures."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.learning import rubrics, world
from bench.learning.__main__ import cells, parse
from bench.learning.arms import ARMS, FULL, HALF, QUICK, Cell, config
from bench.learning.asked import ToGenerator, ToReferee, ToTeacher, UnreadError, asked
from bench.learning.endpoint import Nature, Roles, endpoint
from bench.learning.experiment import (
    STEM,
    STEM_ANSWERS,
    ensure,
    read_result,
    result_file,
    run_folder,
    take_stem,
    write_inputs,
    write_result,
)
from bench.learning.families import BY_NAME, FAMILIES, Family, from_words, in_words, roman
from bench.learning.picture import curves
from bench.learning.summary import arms_table, curve, difference, families_table, mean_right, outcome
from lion_ray.api import load
from lion_ray.config import DataConfig
from lion_ray.data.importing import import_data
from lion_ray.discrimination.rubric import read_checks, read_rubric, score
from lion_ray.discrimination.score_parser import parse_scores
from lion_ray.generation.sampling import clean_candidate, filter_candidate
from lion_ray.prompts.messages import (
    BUILTINS,
    generator_messages,
    load_template,
    referee_messages,
    rubricator_messages,
    teacher_messages,
    verifier_messages,
)

TASK = world.Task("larger", "Which number is larger, 482 or 428?", "482")


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("Write the date 2024-03-05 in words.", "5 March 2024"),
        ("Spell out this date: 1999-12-31", "31 December 1999"),
        ("How many metres are 7 kilometres?", "7000 metres"),
        ("How many minutes are 12 hours?", "720 minutes"),
        ("Write the word lamp backwards.", "pmal"),
        ("Sort these words by the alphabet: pear, apple, fig", "apple, fig, pear"),
        ("Put into alphabetical order: tree, boat", "boat, tree"),
        ("List these words from last to first: red, cat, sun", "sun, cat, red"),
        ("Give this as JSON: Anna is 34 and lives in Oslo.", '{"name": "Anna", "age": 34, "city": "Oslo"}'),
        ("Make JSON of this: Anna, 34, from Oslo.", '{"name": "Anna", "age": 34, "city": "Oslo"}'),
        ("What is twelve plus twenty-nine, in words?", "forty-one"),
        ('What does this Python line print? print("ab" * 3)', "ababab"),
        ('What does this Python line print? print("lamp"[2])', "m"),
        ('What does this Python line print? print("lamp".upper())', "LAMP"),
        ("How often does the letter o occur in potato?", "2"),
        ("Which number comes next: 3, 6, 9, 12", "15"),
        (TASK.instruction, TASK.answer),
        ("Write every word with a capital: the cat and the moon", "The Cat And The Moon"),
        ("Form an acronym of these words: world, health, office", "WHO"),
        ("Keep the words that start with b: bag, sun, box, tree", "bag, box"),
        ("Write the number 94 in Roman numerals.", "XCIV"),
    ],
)
def test_the_truth_of_each_family(instruction: str, answer: str) -> None:
    task = world.read(instruction)
    assert task is not None
    assert task.answer == answer


def test_another_worlds_instruction_has_no_truth() -> None:
    assert world.read("Write a poem about the sea.") is None
    assert world.read("Which number comes next: 3, 6, 9, 12\nand why") is None


def test_numbers_in_words_and_in_roman_numerals() -> None:
    assert [in_words(number) for number in (0, 13, 20, 99)] == ["zero", "thirteen", "twenty", "ninety-nine"]
    assert all(from_words(in_words(number)) == number for number in range(100))
    assert [roman(number) for number in (4, 49, 99, 120)] == ["IV", "XLIX", "XCIX", "CXX"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_writes_different_tasks_that_it_alone_reads_and_a_filter_lets_through(family: Family) -> None:
    drawn = list(itertools.islice(world.tasks(Random(1), family.name), 60))
    assert drawn == list(itertools.islice(world.tasks(Random(1), family.name), 60))
    assert len({task.instruction for task in drawn}) == 60
    for task in drawn:
        assert [one.name for one in FAMILIES if one.read(task.instruction) is not None] == [family.name]
        assert clean_candidate(task.instruction) == task.instruction
        assert filter_candidate(task.instruction, "stop", min_words=4) is None
        wrong = world.slip(task, Random(2))
        assert not world.is_right(wrong, task.answer)
        assert world.score(task, wrong) < world.score(task, task.answer) == 10


def test_there_are_twelve_families_at_least_and_a_pool_has_as_many_of_each() -> None:
    assert len(BY_NAME) == len(FAMILIES) >= 12
    held = {task.instruction for task in world.heldout(20)}
    pool = world.pool(3 * len(FAMILIES), 0, held)
    assert set(Counter(task.family for task in pool).values()) == {3}
    assert not held & {task.instruction for task in pool}
    assert world.pool(10, 0, held) != world.pool(10, 1, held)


@pytest.mark.parametrize(
    ("answer", "right"), [("482", True), (" 482.\n", True), ("428", False), ("482 428", False), ("", False)]
)
def test_an_answer_is_right_after_minimal_normalisation(answer: str, right: bool) -> None:
    assert world.is_right(answer, TASK.answer) is right


def test_a_teacher_slips_in_its_share_of_the_tasks_and_always_in_the_same() -> None:
    tasks = world.pool(600, 0, ())
    wrong = [not world.is_right(world.taught(task, 0.3, 0), task.answer) for task in tasks]
    assert 0.24 < sum(wrong) / len(wrong) < 0.36
    assert wrong == [not world.is_right(world.taught(task, 0.3, 0), task.answer) for task in tasks]
    assert all(world.taught(task, 0.0, 0) == task.answer for task in tasks)


def test_a_judge_without_noise_says_the_truth_and_with_it_depends_on_the_order() -> None:
    assert world.judged(TASK, ("482", "428"), 0.0, 0) == (10, world.score(TASK, "428"))
    noisy = [world.judged(TASK, pair, 3.0, 0) for pair in (("482", "428"), ("428", "482"))]
    assert noisy[0] != noisy[1][::-1]
    assert noisy[0] == world.judged(TASK, ("482", "428"), 3.0, 0)
    assert all(1 <= points <= 10 for pair in noisy for points in pair)


# --- what the endpoint reads


def roles(**nature: Any) -> Roles:
    return Roles(Nature(**nature))


def body(messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


@pytest.mark.parametrize("name", BUILTINS["teacher"])
def test_the_endpoint_reads_what_a_teacher_is_asked(name: str) -> None:
    messages = teacher_messages(load_template(name, "teacher"), TASK.instruction)
    assert asked(messages) == ToTeacher(TASK.instruction)
    assert roles().reply(body(messages)) == "482"
    assert not world.is_right(roles(teacher_error=1.0).reply(body(messages)), "482")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", BUILTINS["referee"])
def test_the_endpoint_reads_what_a_referee_is_asked_and_lion_ray_its_scores(name: str, as_json: bool) -> None:
    template = load_template(name, "referee")
    messages = referee_messages(template, TASK.instruction, "428 [answer", "482", as_json=as_json)
    question = asked(messages)
    assert isinstance(question, ToReferee)
    assert (question.instruction, question.answers) == (TASK.instruction, ("428 [answer", "482"))
    assert (question.form == "json") is as_json
    scores = parse_scores(roles().reply(body(messages)))
    assert scores is not None
    assert scores == pytest.approx((round(world.score(TASK, "428 [answer"), 1), 10))


@pytest.mark.parametrize("name", BUILTINS["generator"])
def test_the_endpoint_reads_what_a_generator_is_asked_and_stays_in_the_family(name: str) -> None:
    messages = generator_messages(load_template(name, "generator"), TASK.instruction)
    assert asked(messages) == ToGenerator(TASK.instruction, "easy" if name.startswith("easy") else "hard")
    written = [world.read(roles().reply(body(messages, seed=seed))) for seed in range(20)]
    assert {task.family for task in written if task} == {"larger"}
    assert len(set(written)) > 15
    assert TASK not in written
    everywhere = [world.read(roles(families="random").reply(body(messages, seed=seed))) for seed in range(40)]
    assert len({task.family for task in everywhere if task}) > 8


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "482"}],
        [{"role": "user", "content": "Write a poem about the sea."}],
        [{"role": "user", "content": "[poem begins ab12]\nRoses\n[poem ends ab12]"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ],
)
def test_what_cannot_be_read_is_refused_and_counted(messages: Any) -> None:
    answering = roles()
    with pytest.raises(UnreadError):
        answering.reply(body(messages))
    assert answering.counts == {"unread calls": 1}


def test_the_endpoint_is_a_process_that_speaks_http_and_counts() -> None:
    messages = teacher_messages(load_template("answer", "teacher"), TASK.instruction)
    with endpoint(Nature()) as served:
        said = _post(served.url, body(messages, model="world"))
        assert said["choices"][0]["message"]["content"] == "482"
        assert said["usage"]["completion_tokens"] == 1
        with pytest.raises(urllib.error.HTTPError, match="400"):
            _post(served.url, body([{"role": "user", "content": "Hello"}]))
        counts = served.counts()
    assert (counts["teacher calls"], counts["teacher completion tokens"], counts["unread calls"]) == (1, 1, 1)


def _post(url: str, sent: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(sent).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


# --- the arms


@pytest.mark.parametrize("size", [FULL, HALF, QUICK], ids=["full", "half", "quick"])
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_is_a_configuration_that_asks_for_as_many_answers(arm: Any, size: Any) -> None:
    cell = Cell(arm.name, size=size)
    loaded = load(config(cell, "") | {"run_name": cell.name}, overrides=cell.overrides).config
    if arm.name == "seed_only":
        assert loaded.iterations == 0
        assert loaded.imitation.epochs > size.epochs
    elif cell.has_rounds and not loaded.iterations:
        assert loaded.imitation.epochs == size.epochs
    else:
        assert loaded.iterations == size.iterations
        assert loaded.generation.hard + loaded.generation.easy == size.new_rows
        assert size.seed_rows + loaded.iterations * size.new_rows == size.answers


def test_a_cells_name_tells_it_from_every_other() -> None:
    wanted = [
        Cell(arm.name, seed, error, noise, size)
        for arm in ARMS
        for seed in (0, 1)
        for error in (0.0, 0.1)
        for noise in (0.0, 3.0)
        for size in (FULL, HALF, QUICK)
    ]
    assert len({cell.name for cell in wanted}) == len(wanted)
    assert all(Cell.of(json.loads(json.dumps(_values(cell)))) == cell for cell in wanted[:3])


def _values(cell: Cell) -> Any:
    return asdict(cell)


def test_arms_share_a_first_imitation_unless_it_is_another() -> None:
    stem = Cell("lion").stem
    own = {"seed_only", "random_all_tokens"}
    """Another number of passes, other labels. The loss of `preference` is another one only after a judge's verdicts."""
    assert {Cell(arm.name).stem for arm in ARMS if arm.name not in own} == {stem}
    assert Cell("lion", noise=3.0).stem == stem, "a judge's noise comes later"
    others = [*map(Cell, own), Cell("lion", seed=1), Cell("lion", error=0.1), Cell("lion", size=QUICK)]
    assert stem not in {cell.stem for cell in others}


def test_a_run_begins_with_the_first_imitation_of_one_that_is_done(tmp_path: Path) -> None:
    done, cell = Cell("lion"), Cell("hard_only")
    for one in (*STEM, *STEM_ANSWERS):
        (run_folder(tmp_path, done) / one).mkdir(parents=True)
    weights = Path("iteration-1/checkpoint/model/model.safetensors")
    for name in (weights, Path("iteration-0/result.json"), Path("iteration-1/verdicts/part-00000.parquet")):
        file = run_folder(tmp_path, done) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("as it was")
    assert take_stem(tmp_path, cell) is None, "the other run is not done"
    write_result(result_file(tmp_path, done), result(done, (0.0, 0.5)))
    assert take_stem(tmp_path, cell) == done.name
    taken = run_folder(tmp_path, cell)
    assert (taken / weights).samefile(run_folder(tmp_path, done) / weights)
    assert not (taken / "iteration-0/result.json").samefile(run_folder(tmp_path, done) / "iteration-0/result.json")
    assert not (taken / "iteration-1/verdicts").exists()
    assert take_stem(tmp_path, cell) is None, "it has begun, and goes on as its folder does"
    assert take_stem(tmp_path, Cell("hard_only", seed=1)) is None


def test_the_inputs_are_rows_that_lion_ray_takes_all_of(tmp_path: Path) -> None:
    cell = Cell("lion", size=QUICK)
    write_inputs(tmp_path, cell)
    data = import_data(DataConfig(**config(cell, "")["data"]), tmp_path, 0)
    assert data.pool.num_rows == QUICK.seed_rows
    assert data.heldout.num_rows == QUICK.heldout_per_family * len(FAMILIES)
    assert not data.heldout["reference"].null_count


def test_quick_is_two_arms_and_one_seed_and_what_is_given_counts() -> None:
    assert [(cell.arm, cell.seed, cell.size) for cell in cells(parse(["--quick"]))] == [
        ("seed_only", 0, QUICK),
        ("lion", 0, QUICK),
    ]
    given = cells(parse(["--arm", "lion", "--seeds", "2", "--error", "0.1", "--noise", "1", "--noise", "3"]))
    assert [(cell.seed, cell.error, cell.noise) for cell in given] == [
        (0, 0.1, 1.0),
        (1, 0.1, 1.0),
        (0, 0.1, 3.0),
        (1, 0.1, 3.0),
    ]
    assert len(cells(parse([]))) == 3 * len(ARMS)


# --- the figures


def result(cell: Cell, shares: tuple[float, ...]) -> list[dict[str, Any]]:
    """Lines of a cell whose checkpoints get such shares of forty tasks right."""
    rows: list[dict[str, Any]] = [{"kind": "cell", **_values(cell), "seconds": 60.0, "attempt": 1}]
    for iteration, share in enumerate(shares):
        source = "seed" if iteration < 2 else "hard"
        taught = {"answers": 10, "right": 10, "families": {source: {"larger": 10}}} if iteration else {}
        rows.append(
            {
                "kind": "checkpoint",
                "iteration": iteration,
                "answers": 10 * iteration,
                "hard": None,
                "easy": None,
                "taught": taught,
            }
        )
        rows += [
            {"kind": "answer", "instruction": f"task {number}", "family": "larger", "right": number < 40 * share}
            for number in range(40)
        ]
    return rows


def test_what_is_done_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("lion")
    write_result(result_file(tmp_path, cell), result(cell, (0.0, 0.5)))
    monkeypatch.setattr("bench.learning.experiment.endpoint", None)
    assert ensure(tmp_path, cell) == result_file(tmp_path, cell)
    assert outcome(read_result(ensure(tmp_path, cell))).cell == cell


def test_arms_are_compared_task_by_task() -> None:
    lion = [outcome(result(Cell("lion", seed), (0.0, 0.4, 0.8))) for seed in (0, 1)]
    rows = [outcome(result(Cell("random_rows", seed), (0.0, 0.4, 0.6))) for seed in (0, 1)]
    figure = mean_right([one.last for one in lion])
    assert figure.value == pytest.approx(0.8)
    assert figure.low < 0.8 < figure.high
    gain = difference([one.last for one in lion], [one.last for one in rows])
    assert gain.value == pytest.approx(0.2)
    assert 0 < gain.low < 0.2 < gain.high < 0.4
    table = arms_table([*lion, *rows])
    assert len(table) == 4
    assert "| lion | 2 | 20 | 0.0% → 40.0% → 80.0% | 80.0% [" in table[2]
    assert "+20.0% [+" in table[2]
    families = families_table([*lion, *rows], (0.0, 0.0))
    assert "| larger | 0% | 80% (10) | 60% (10) |" in families


def test_the_picture_has_a_line_for_each_arm_and_answers_across() -> None:
    arms = {name: curve([outcome(result(Cell(name), (0.0, 0.4, 0.8)))]) for name in ("lion", "seed_only")}
    assert [answers for answers, _ in arms["lion"]] == [0, 10, 20]
    root = ET.fromstring(curves(arms, "exact match"))
    names = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"lion", "seed_only", "teacher's answers"} <= names
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_a_rubric_of_the_world_knows_right_from_wrong() -> None:
    for task in (next(world.tasks(world.rng_of("rubric", name), name)) for name in BY_NAME):
        criteria = [text for text, _ in rubrics.criteria(task.answer)]
        assert all(rubrics.decided(criteria, task.answer + ".", 0.0, 0)), task
        wrong = world.slip(task, world.rng_of("slip", task.instruction))
        assert not rubrics.decided(criteria, wrong, 0.0, 0)[0]
        assert not any(rubrics.decided(criteria[:1], "", 0.0, 0))


def test_the_world_writes_and_applies_rubrics_in_lion_ray_s_own_prompts() -> None:
    task = next(world.tasks(world.rng_of("rounds")))
    roles = Roles(Nature())
    template = load_template("criteria", "rubricator")
    written = roles.reply({"messages": rubricator_messages(template, task.instruction, task.answer)})
    found = read_rubric(written)
    assert isinstance(found, list)
    template = load_template("check", "verifier")
    answers = [task.answer, 'It\'s "something"\nelse', ""]
    messages = verifier_messages(template, task.instruction, [one.text for one in found], answers)
    met = read_checks(roles.reply({"messages": messages}), answers, len(found))
    assert isinstance(met, list)
    scores = [score(each, found) for each in met]
    assert scores[0] == 1.0 > scores[1] >= scores[2] == 0.0
    assert {"rubricator calls", "verifier calls"} < set(roles.counts)

"""Benchmark files, their prompts, and where their rows come from."""

from __future__ import annotations

import json
import re

import datasets
import pytest
import yaml

from rosa.errors import RosaError
from rosa.evaluate.examples import fingerprint, load_examples, suite_rows
from rosa.evaluate.tasks import TASK_FILES, built_in_tasks, resolve_tasks
from tests.support.evaluation import load_task

REAL = [t for t in built_in_tasks().values() if t.suite != "toy"]
LOCAL = (
    *("boolq", "social_i_qa", "ARC-Challenge", "ARC-Easy", "openbookqa", "hellaswag"),
    *("winogrande", "MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq"),
)
PAPER_SIZES = {
    **{"BoolQ": 3270, "PIQA": 1838, "SIQA": 1954, "ARC-C": 1172, "ARC-E": 2376, "OBQA": 500},
    **{"HellaSwag": 10042, "WinoGrande": 1267, "MultiArith": 600, "GSM8K": 1319, "AddSub": 395},
    **{"AQuA": 254, "SingleEq": 508, "SVAMP": 1000, "MAWPS": 238},
}


def test_the_fifteen_benchmarks_have_the_papers_names_order_and_sizes():
    assert [(t.title, t.size) for t in REAL] == list(PAPER_SIZES.items())


def test_every_real_benchmark_follows_the_protocol():
    for task in REAL:
        assert task.max_new_tokens == {"commonsense": 32, "arithmetic": 256}[task.suite]
        assert task.prompt == "alpaca"
        assert task.file == f"{task.name}/test.json"
        assert len(task.citation) > 20


def test_the_tests_whose_training_part_is_in_math10k_are_marked():
    marked = {t.name for t in built_in_tasks().values() if "Math10K" in t.seen_in_training}
    assert marked == {"MultiArith", "AddSub", "SingleEq"}


def test_the_prompt_is_alpacas_word_for_word(tmp_path):
    row = {"instruction": "Is it?", "input": "", "output": "true", "answer": "true"}
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "test.json").write_text(json.dumps([row, {**row, "input": "Here."}]))
    plain, with_input = load_examples(load_task("boolq"), tmp_path)
    assert plain.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nIs it?\n\n### Response:\n"
    )
    assert with_input.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nIs it?\n\n### Input:\nHere.\n\n### Response:\n"
    )
    assert [(e.index, e.label) for e in (plain, with_input)] == [(0, "true"), (1, "true")]


@pytest.mark.parametrize("name", LOCAL)
def test_real_test_sets_load_whole_with_known_labels(name, shared_data):
    task = load_task(name)
    examples = load_examples(task, shared_data / "test")
    assert len(examples) == task.size
    assert all(task.is_correct(task.parse(e.label), e.label) for e in examples)


@pytest.mark.parametrize("name", LOCAL)
def test_the_suites_own_outputs_are_scored_as_their_labels(name, shared_data):
    """The commonsense files' `output` states the label; a filter that misreads it is wrong."""
    task = load_task(name)
    rows = json.loads((shared_data / "test" / task.file).read_text())
    right = sum(task.is_correct(task.parse(row["output"]), row["answer"]) for row in rows)
    assert right == len(rows) if task.suite == "commonsense" else right > 0


@pytest.mark.parametrize("name", ["tiny-sums", "tiny-choice"])
def test_toy_tasks_come_with_the_package_whatever_the_data_folder(name, tmp_path):
    task = load_task(name)
    assert len(load_examples(task, tmp_path)) == task.size


# --- hub templates: raw rows become the suite's wording ---------------------------------------

FOUR = {"text": ["red", "blue", "green", "grey"], "label": ["A", "B", "C", "D"]}
HUB_ROWS = {
    "boolq": (
        {"question": "is ice cold", "passage": "...", "answer": True},
        "Please answer the following question with true or false, question: is ice cold?\n\n"
        "Answer format: true/false",
        "true",
    ),
    "piqa": (
        {"goal": "Open a jar.", "sol1": "Twist the lid.", "sol2": "Eat the lid.", "label": 0},
        "Please choose the correct solution to the question: Open a jar.\n\n"
        "Solution1: Twist the lid.\n\nSolution2: Eat the lid.\n\n"
        "Answer format: solution1/solution2",
        "solution1",
    ),
    "social_i_qa": (
        {
            **{"context": "Kim fell.", "question": "How does Kim feel?"},
            **{"answerA": "sore", "answerB": "tall", "answerC": "rich", "label": "3\n"},
        },
        "Please choose the correct answer to the question: Kim fell. How does Kim feel?\n\n"
        "Answer1: sore Answer2: tall Answer3: rich\n\nAnswer format: answer1/answer2/answer3",
        "answer3",
    ),
    "ARC-Easy": (
        {"question": "Which is a color of grass?", "choices": FOUR, "answerKey": "C"},
        "Please choose the correct answer to the question: Which is a color of grass?\n\n"
        "Answer1: red Answer2: blue Answer3: green Answer4: grey\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        "answer3",
    ),
    "ARC-Challenge": (
        {
            "question": "Which?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        "Please choose the correct answer to the question: Which?\n\n"
        "Answer1: x Answer2: y Answer3: z\n\nAnswer format: answer1/answer2/answer3",
        "answer2",
    ),
    "openbookqa": (
        {"question_stem": "Grass is", "choices": FOUR, "answerKey": "D"},
        "Please choose the correct answer to the question: Grass is\n\n"
        "Answer1: red Answer2: blue Answer3: green Answer4: grey\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        "answer4",
    ),
    "hellaswag": (
        {
            **{"activity_label": "Baking", "ctx": "A man kneads. he", "label": "0"},
            "endings": ["bakes.", "flies.", "sinks.", "melts."],
        },
        "Please choose the correct ending to complete the given sentence: Baking: A man kneads. he"
        "\n\nEnding1: bakes. Ending2: flies. Ending3: sinks. Ending4: melts.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "ending1",
    ),
    "winogrande": (
        {"sentence": "The _ was red.", "option1": "car", "option2": "sky", "answer": "2"},
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "The _ was red.\n\nOption1: car Option2: sky Answer format: option1/option2",
        "option2",
    ),
    "MultiArith": ({"question": " How many? ", "final_ans": "8"}, " How many? ", "8"),
    "gsm8k": ({"question": "How many?", "answer": "3+4=7\n#### 1,007"}, "How many?", "1,007"),
    "AQuA": (
        {"question": "How old?", "options": ["A)3", "B)4 y"], "rationale": "", "correct": "B"},
        "How old? Answer Choices: (A) 3 (B) 4 y",
        "B",
    ),
    "SVAMP": (
        {"Body": "Ann has 3 nuts.", "Question": "How many nuts?", "Answer": "3.0"},
        "Ann has 3 nuts. How many nuts?",
        "3.0",
    ),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_hub_rows_take_the_suites_wording(name):
    raw, instruction, answer = HUB_ROWS[name]
    rows = suite_rows(load_task(name).hub, [raw], "here")
    assert rows == [{"instruction": instruction, "answer": answer}]


def test_a_task_without_a_known_hub_data_set_says_so():
    without = {t.name for t in REAL if t.hub is None}
    assert without | set(HUB_ROWS) == {t.name for t in REAL}
    for name in without:
        with pytest.raises(RosaError, match=rf"no hub data set is known.*{name}.*--data FOLDER"):
            load_examples(load_task(name))


UNPACK = {
    "boolq": (r"question: (?P<question>.*)\?\n\nAnswer format", lambda a: {"answer": a == "true"}),
    "social_i_qa": (
        r"question: (?P<question>.*)\n\nAnswer1: (?P<answerA>.*) Answer2: (?P<answerB>.*) "
        r"Answer3: (?P<answerC>.*)\n\nAnswer format",
        lambda a: {"label": a[-1]},
    ),
    "winogrande": (
        r"sentence: (?P<sentence>.*)\n\nOption1: (?P<option1>.*) Option2: (?P<option2>.*) Answer f",
        lambda a: {"answer": a[-1]},
    ),
}


@pytest.mark.parametrize("name", UNPACK)
def test_hub_templates_give_the_local_files_wording(name, shared_data):
    """Fields cut out of the suite's own rows and put through the template give those rows again."""
    task = load_task(name)
    pattern, label = UNPACK[name]
    rows = json.loads((shared_data / "test" / task.file).read_text())
    raw = []
    for row in rows:
        fields = re.search(pattern, row["instruction"], re.DOTALL).groupdict()
        if name == "social_i_qa":  # context and question are joined with a space
            context, question = fields["question"].split(" ", 1)
            fields |= {"context": context, "question": question}
        raw.append({**fields, **label(row["answer"])})
    again = suite_rows(task.hub, raw, name)
    assert again == [{key: row[key] for key in ("instruction", "answer")} for row in rows]


def test_a_hub_task_is_loaded_through_datasets(monkeypatch):
    raw, instruction, _ = HUB_ROWS["ARC-Easy"]
    calls = []

    def load_dataset(path, config, split, revision):
        calls.append((path, config, split, revision))
        return datasets.Dataset.from_list([raw, raw])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load_examples(load_task("ARC-Easy"))
    assert calls == [("allenai/ai2_arc", "ARC-Easy", "test", None)]
    assert len(examples) == 2
    assert instruction in examples[1].prompt


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RosaError, match=r"google/boolq.*--data FOLDER.*Couldn't reach the hub"):
        load_examples(load_task("boolq"))


def test_hub_rows_with_other_fields_name_the_source():
    with pytest.raises(RosaError, match=r"templates of there do not fit.*question"):
        suite_rows(load_task("boolq").hub, [{"sentence": "x"}], "there")


# --- names, groups and a user's own file -------------------------------------------------------


def test_groups_expand_and_no_task_is_asked_twice():
    assert resolve_tasks(["all"]) == REAL
    assert [t.suite for t in resolve_tasks(["toy"])] == ["toy", "toy"]
    names = [t.name for t in resolve_tasks(["gsm8k", "arithmetic"])]
    assert names[0] == "gsm8k"
    assert sorted(names) == sorted(t.name for t in REAL if t.suite == "arithmetic")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(RosaError, match=r"no task 'bolq' \(did you mean 'boolq'\?\)"):
        resolve_tasks(["bolq"])


OWN = {
    **{"name": "colors", "title": "Colors", "suite": "mine", "size": 0},
    **{"file": "colors.jsonl", "filter": "first_label", "answers": ["red", "blue"]},
    **{"max_new_tokens": 4, "prompt": "plain"},
}


def write_own(folder, **changes):
    values = {k: v for k, v in {**OWN, **changes}.items() if v is not None}
    file = folder / "colors.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def test_a_users_yaml_is_a_task_with_its_data_next_to_it(tmp_path):
    (tmp_path / "colors.jsonl").write_text('{"instruction": "Sky?", "answer": "blue"}\n')
    (task,) = resolve_tasks([write_own(tmp_path)])
    (example,) = load_examples(task)
    assert (example.prompt, example.label) == ("Sky?", "blue")
    assert task.parse("I say blue") == "blue"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"filter": "best"}, "unknown filter 'best'; choose from first_label, last_number"),
        ({"prompt": "chatml"}, "unknown prompt 'chatml'"),
        ({"answers": [True, False]}, "answers must be text; quote"),
        ({"answers": None}, "first_label needs answers"),
        ({"filter": "last_number"}, "no other takes them"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"name": "../up"}, "the name '../up' must be"),
        ({"color": "red"}, "unknown key 'color'"),
        ({"file": None}, "the key 'file' is missing"),
        ({"hub": {"path": "x"}}, "the key 'split' is missing"),
        ({"hub": "x"}, "expected keys and values, found str"),
    ],
)
def test_a_bad_task_file_names_file_and_key(tmp_path, changes, complaint):
    with pytest.raises(RosaError, match=re.escape(complaint)) as caught:
        load_task(write_own(tmp_path, **changes))
    assert "colors.yaml" in str(caught.value)


def test_a_task_file_that_is_no_yaml_or_not_there(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(RosaError, match=r"bad\.yaml: cannot be read as YAML"):
        load_task(str(tmp_path / "bad.yaml"))
    with pytest.raises(RosaError, match=r"no task file .*absent\.yaml"):
        load_task(str(tmp_path / "absent.yaml"))


def test_the_package_has_no_task_file_that_the_table_order_forgets():
    assert {path.stem for path in TASK_FILES.glob("*.yaml")} == set(built_in_tasks())


# --- bad rows ----------------------------------------------------------------------------------


def boolq_with(tmp_path, text):
    (tmp_path / "boolq").mkdir(exist_ok=True)
    (tmp_path / "boolq" / "test.json").write_text(text, encoding="utf-8")
    return tmp_path


GOOD = {"instruction": "q", "answer": "true"}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            [GOOD, {**GOOD, "answer": "maybe"}],
            "row 2: the label 'maybe' is unknown to the task boolq",
        ),
        ([GOOD, {"instruction": "q"}], "row 2: the field 'answer' is missing"),
        ([{"answer": "true"}], "row 1: the field 'instruction' is missing"),
        ([{**GOOD, "answer": ["true"]}], "row 1: the field 'answer' must be text, found list"),
        ([{**GOOD, "instruction": 3}], "row 1: the field 'instruction' must be text, found int"),
        ([GOOD, "true"], "row 2: expected an object"),
        ([], "has no rows"),
    ],
)
def test_bad_rows_name_file_and_row(tmp_path, rows, complaint):
    data = boolq_with(tmp_path, json.dumps(rows))
    with pytest.raises(RosaError, match=re.escape(complaint)) as caught:
        load_examples(load_task("boolq"), data)
    assert "test.json" in str(caught.value)


def test_a_missing_test_set_says_which_are_there(tmp_path):
    boolq_with(tmp_path, json.dumps([GOOD]))
    with pytest.raises(
        RosaError, match=r"no .*gsm8k.test\.json for the task gsm8k; .* holds boolq"
    ):
        load_examples(load_task("gsm8k"), tmp_path)


def test_numeric_labels_may_be_numbers(tmp_path):
    (tmp_path / "SVAMP").mkdir()
    (tmp_path / "SVAMP" / "test.json").write_text('[{"instruction": "q", "answer": 22.0}]')
    (example,) = load_examples(load_task("SVAMP"), tmp_path)
    assert example.label == "22.0"


def test_a_fingerprint_follows_questions_and_rules(tmp_path):
    data = boolq_with(tmp_path, json.dumps([GOOD]))
    task = load_task("boolq")
    before = fingerprint(task, load_examples(task, data))
    assert before == fingerprint(task, load_examples(task, data))
    boolq_with(tmp_path, json.dumps([{**GOOD, "answer": "false"}]))
    assert before != fingerprint(task, load_examples(task, data))

"""The embedded model: its world, tokenizer, data and what it can do."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import rosa
from pretraining import documents, instructed, mixture, skills, tasks, tokenizer, world
from rosa.data.prompts import instruction_prompt

ASSETS = Path(rosa.__file__).parent / "assets"
FOLDER = ASSETS / "rosa-tiny"
DATA = ASSETS / "tiny-data"


def rows(task: str, part: str) -> list[dict[str, str]]:
    return json.loads((DATA / task / f"{part}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def words():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


@pytest.mark.parametrize("stage", mixture.STAGES)
def test_same_seed_same_documents(stage):
    def drawn(seed: int) -> list[documents.Document]:
        rng = random.Random(seed)
        return [mixture.draw(rng, stage) for _ in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("part", world.PARTS)
def test_worlds_stay_in_their_part(part):
    rng = random.Random(0)
    for _ in range(20):
        group = world.people(rng, 3, part)
        assert world.part_of(sorted(map(repr, group))) == part
        assert all(world.part_of(change) == part for change in world.changes(rng, 2, part))


def test_changes_are_right_and_small():
    rng = random.Random(0)
    for change in (world.changes(rng, 1)[0] for _ in range(200)):
        assert eval(change.calculation.replace("=", "==")), change
        assert min(change.start, change.by, change.result) >= 0
        assert max(change.start, change.by, change.result) <= world.LARGEST


@pytest.mark.parametrize("task", tasks.TASKS)
def test_data_files_are_what_the_generator_writes(task):
    assert rows(task, "train") == tasks.rows(task, "finetuning", len(rows(task, "train")))
    assert rows(task, "test") == tasks.rows(task, "test", len(rows(task, "test")))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_train_and_test_share_no_question(task):
    train, test = rows(task, "train"), rows(task, "test")
    assert not {row["instruction"] for row in train} & {row["instruction"] for row in test}
    assert len({row["instruction"] for row in train + test}) == len(train) + len(test)


def test_train_and_test_share_no_calculation():
    train = {row["output"].split(".")[0] for row in rows("tiny-sums", "train")}
    test = {row["output"].split(".")[0] for row in rows("tiny-sums", "test")}
    assert train
    assert test
    assert not train & test


def test_labels_are_balanced():
    answers = [row["answer"] for row in rows("tiny-choice", "test")]
    shares = [answers.count(f"answer{i}") / len(answers) for i in range(1, tasks.OPTIONS + 1)]
    assert sum(shares) == 1
    assert all(abs(share - 1 / tasks.OPTIONS) < 0.08 for share in shares)


def test_pretraining_never_shows_the_tasks_answers():
    """The format of the tasks' answers is for fine-tuning to teach."""
    rng = random.Random(0)
    for _ in range(3000):
        document = mixture.draw(rng, mixture.STAGES[-1])
        text = "".join(piece for piece, _ in document)
        assert "the correct answer is answer" not in text
        if "How many" in text and "### Response" in text:
            assert "The answer is" not in text.split("### Response:\n")[1]


def test_pieces_of_a_document_join_without_merging(words):
    rng = random.Random(0)
    for _ in range(200):
        document = mixture.draw(rng, mixture.STAGES[-1])
        ids, marks = skills.encode(words, document)
        assert ids == words.encode("".join(text for text, _ in document))
        assert any(marks)


def test_every_word_of_the_world_is_one_token(words):
    for word in (*world.NAMES, *world.PLACES, *world.THINGS, *world.GOODS):
        assert len(words.encode(" " + word)) == 1
    assert len(words.encode("2045")) == 4


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(text):
    words = AutoTokenizer.from_pretrained(FOLDER) if not _cache else _cache[0]
    _cache[:] = [words]
    text = unicodedata.normalize("NFC", text)  # as Qwen2's tokenizer does
    if tokenizer.END not in text and tokenizer.PAD not in text:
        assert words.decode(words.encode(text)) == text


_cache: list = []


def test_folder_is_small_and_standard(model, words):
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size <= 8_000_000
    assert model.config.model_type == "qwen2"
    assert model.num_parameters() <= 4_000_000
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    assert model.model.layers[0].self_attn.head_dim >= 32
    assert model.config.vocab_size == len(words)
    assert model.generation_config.eos_token_id == words.eos_token_id


@pytest.mark.parametrize("skill", sorted(skills.MAIN))
def test_base_model_has_its_skills(model, words, skill):
    found = skills.probes(skill, 60, seed=1)
    assert skills.accuracy(model, words, found) >= 0.9


def test_skill_table_is_the_models():
    table = json.loads((FOLDER / "skills.json").read_text(encoding="utf-8"))
    assert set(skills.MAIN) <= set(table["skills"])
    assert all(table["skills"][skill]["accuracy"] >= 0.9 for skill in skills.MAIN)


def test_greedy_answer_in_words_it_knows(model, words):
    prompt = instruction_prompt("Where is Ann?", "Ben visits Oslo. Ann visits Rome.")
    ids = torch.tensor([words.encode(prompt)])
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert words.decode(answer, skip_special_tokens=True) == "Ann visits Rome."


def test_skills_cover_the_documents():
    assert set(skills.MAIN) <= set(skills.SKILLS) | set(instructed.INSTRUCTED)

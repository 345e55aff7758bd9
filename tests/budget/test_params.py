"""Parameter budgets: the paper's "# Param (%)" from the shapes alone, and `rosa params`."""

from __future__ import annotations

import functools
import json
import resource
import sys

import pytest
from transformers import Gemma2Config, Qwen2Config, Qwen3Config

from rosa.budget.budget_tables import table_1
from rosa.budget.parameters import (
    ParameterCount,
    base_parameters,
    builtin_models,
    count_parameters,
    load_model_config,
    rank_arguments,
)
from rosa.cli import main as cli
from rosa.errors import RosaError
from rosa.methods.registry import load_method, method_names

# Trainable parameters per method; VeRA has none here, as its rank is unknown.
TABLE_1 = {
    "Qwen2.5-7B": {
        "lora": 40_370_176,
        "dora": 41_760_768,
        "adalora": 30_279_984,
        "boft": 1_720_320,
        "c3a": 50_978_816,
        "bone": 22_249_472,
        "ln_tuning": 100_352,
        "rosa": 19_927_040,
    },
    "Llama-3.1-8B": {
        "lora": 41_943_040,
        "dora": 43_319_296,
        "adalora": 31_459_968,
        "boft": 2_260_992,
        "c3a": 54_525_952,
        "bone": 22_020_096,
        "ln_tuning": 266_240,
        "rosa": 26_476_544,
    },
    "Gemma2-9B": {
        "lora": 54_018_048,
        "dora": 55_867_392,
        "adalora": 40_517_064,
        "boft": 2_666_496,
        "c3a": 65_028_096,
        "bone": 29_589_504,
        "ln_tuning": 605_696,
        "rosa": 33_632_256,
    },
}
# The two of the paper's percentages that no known setting gives: (method, model) -> what we print.
ONE_DIGIT_OFF = {("dora", "Qwen2.5-7B"): 0.545, ("bone", "Llama-3.1-8B"): 0.273}
# RoSA elsewhere: trainable parameters and percentage to three decimals.
ROSA_ELSEWHERE = {
    "Qwen2.5-0.5B": (4_270_080, 0.857),
    "Qwen2.5-1.5B": (8_572_928, 0.552),
    "Qwen2.5-3B": (14_598_144, 0.471),
    "Llama-3.2-3B": (17_604_608, 0.545),
    "Qwen3-8B": (29_786_112, 0.362),
    "Gemma3-4B-text": (17_059_840, 0.438),
    "Gemma3-4B": (17_059_840, 0.395),
}
BASE_PARAMETERS = {
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-8B": 8_030_261_248,
    "Gemma2-9B": 9_241_705_984,
    "Qwen2.5-0.5B": 494_032_768,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-2-7B": 6_738_415_616,
    "Qwen3-0.6B": 596_049_920,
    "Gemma3-1B": 999_885_952,
}


@functools.cache
def count(model, method):
    return count_parameters(load_model_config(model), method)


@pytest.mark.parametrize("model", TABLE_1)
@pytest.mark.parametrize("method", TABLE_1["Qwen2.5-7B"])
def test_methods_train_as_many_parameters_as_in_table_1(model, method):
    found = count(model, method)
    assert found.trainable == TABLE_1[model][method]
    expected = load_method(method).paper_percent[model]
    assert round(found.percent, 3) == ONE_DIGIT_OFF.get((method, model), expected)
    if (method, model) in ONE_DIGIT_OFF:
        assert model in found.note  # and the note says so
        assert round(found.percent, 3) != expected


@pytest.mark.parametrize("model", ROSA_ELSEWHERE)
def test_rosa_trains_as_many_parameters_as_reported_elsewhere(model):
    found = count(model, "rosa")
    assert (found.trainable, round(found.percent, 3)) == ROSA_ELSEWHERE[model]


@pytest.mark.parametrize("model", TABLE_1)
def test_vera_has_the_papers_percentage_at_ranks_1_and_75_so_its_rank_is_unknown(model):
    for rank in (1, 75):
        found = count_parameters(load_model_config(model), "vera", {"r": rank})
        assert round(found.percent, 3) == load_method("vera").paper_percent[model]
    assert "rank" in load_method("vera").note


def test_vera_counts_its_scalings_and_not_the_shared_matrices():
    outputs = 2048 + 512 + 512 + 2048 + 8192 + 8192 + 2048  # q, k, v, o, gate, up, down
    found = count_parameters(load_model_config("Llama-3.2-1B"), "vera", {"r": 8})
    assert found.trainable == 16 * (outputs + 7 * 8)


@pytest.mark.parametrize("model", BASE_PARAMETERS)
def test_builtin_models_have_the_published_number_of_parameters(model):
    assert base_parameters(load_model_config(model)) == BASE_PARAMETERS[model]


def test_every_builtin_model_has_a_published_family_name():
    assert set(builtin_models()) == {*BASE_PARAMETERS, *ROSA_ELSEWHERE, "Gemma2-2B", "rosa-tiny"}


def test_lora_by_hand_on_a_small_folder(small):
    r, d, kv, ff = 4, 64, 32, 96
    per_layer = r * (2 * (d + d) + 2 * (d + kv) + 2 * (d + ff) + (ff + d))
    assert count_parameters(load_model_config(small), "lora", {"r": r}).trainable == 3 * per_layer


def test_rank_reaches_the_methods_that_have_one():
    assert rank_arguments("lora", 4) == {"r": 4}
    assert rank_arguments("adalora", 4) == {"init_r": 4}
    assert rank_arguments("ln_tuning", 4) == {}
    assert rank_arguments("lora", None) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="resource usage is read the POSIX way")
def test_counting_nine_billion_parameters_allocates_no_weights():
    count("rosa-tiny", "boft")  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for method in ("boft", "vera"):
        count_parameters(load_model_config("Gemma2-9B"), method)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 200e6  # one BOFT permutation of this model alone is 51 MB, and it has 84


# The command


SMALL_LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.fixture
def small(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL_LLAMA))
    return str(tmp_path)


def complaint(capsys, *argv):
    """The one line on stderr that bad input prints, with exit code 2."""
    assert cli.main(["params", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_json_of_a_builtin_name_in_any_case(capsys):
    assert cli.main(["params", "qwen2.5-7b", "--methods", "lora,LN Tuning", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["method"], row["trainable"]) for row in rows] == [
        ("Qwen2.5-7B", "lora", 40_370_176),
        ("Qwen2.5-7B", "ln_tuning", 100_352),
    ]
    assert rows[0]["percent"] == pytest.approx(0.527302, abs=1e-6)
    assert rows[0]["paper_percent"] == 0.527


def test_table_prints_the_count_the_percentage_and_the_papers(capsys):
    assert cli.main(["params", "Llama-3.1-8B", "--methods", "bone"]) == 0
    out = capsys.readouterr().out
    assert "22,020,096" in out
    assert "0.273" in out
    assert "0.274" in out
    assert "The paper prints 0.274" in out


def test_another_rank_is_not_compared_with_the_paper(capsys):
    argv = ["params", "Qwen2.5-7B", "--methods", "lora,ln_tuning", "--r", "8", "--json"]
    assert cli.main(argv) == 0
    lora, norms = json.loads(capsys.readouterr().out)
    assert lora["trainable"] == 40_370_176 // 2
    assert lora["paper_percent"] is None
    assert norms["paper_percent"] == 0.001  # it has no rank


def test_a_method_that_peft_cannot_apply_says_why_and_the_others_are_counted(capsys):
    assert cli.main(["params", "Gemma3-4B", "--methods", "c3a,lora", "--json"]) == 0
    c3a, lora = json.loads(capsys.readouterr().out)
    assert c3a["trainable"] is None
    assert "4304" in c3a["note"]  # a width of the vision tower that blocks of 128 don't divide
    assert lora["trainable"] > 0


def test_unknown_model_names_the_nearest(capsys):
    assert "did you mean 'Qwen2.5-7B'?" in complaint(capsys, "Qwen2.5-7")


def test_folder_without_config(capsys, tmp_path):
    assert "has no config.json" in complaint(capsys, str(tmp_path))


def test_folder_of_an_adapter(capsys, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter; give its base model" in complaint(capsys, str(tmp_path))


def test_a_model_whose_layers_a_method_does_not_know(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    argv = ["params", str(tmp_path), "--methods", "lora,bone,rosa", "--json"]
    assert cli.main(argv) == 0
    lora, bone, rosa = json.loads(capsys.readouterr().out)
    assert lora["trainable"] > 0
    assert "Conv1D" in bone["note"]
    assert rosa["trainable"] is None
    assert "RoPE" in rosa["note"] or "rotary" in rosa["note"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"model_type": "lama"}', "did you mean 'llama'?"),
        ("{}", "model_type 'None'"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "not a valid llama configuration"),
        ('{"model_type": "siglip"}', "no causal language model"),
    ],
)
def test_config_that_is_no_model(capsys, tmp_path, text, says):
    (tmp_path / "config.json").write_text(text)
    assert says in complaint(capsys, str(tmp_path), "--methods", "lora")


def test_unknown_method(capsys):
    assert "did you mean 'adalora'?" in complaint(capsys, "Qwen2.5-7B", "--methods", "adalore")


def test_rank_below_one(capsys):
    assert "--r must be at least 1, not 0" in complaint(capsys, "Qwen2.5-7B", "--r", "0")


def test_r_low_too_small_for_the_head(capsys):
    said = complaint(capsys, "Qwen2.5-7B", "--methods", "rosa", "--r_low", "0.001")
    assert "r_low" in said


@pytest.fixture
def offline(monkeypatch):
    from transformers import PretrainedConfig

    def fail(model):
        raise OSError(f"no connection for {model}\nmore lines")

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", fail)


@pytest.mark.parametrize(
    ("hub_id", "name"), [("Qwen/Qwen2.5-7B", "Qwen2.5-7B"), ("google/gemma-2-9b", "Gemma2-9B")]
)
def test_a_builtin_configuration_is_found_under_its_hub_id_when_offline(offline, hub_id, name):
    with pytest.warns(UserWarning, match=f"no connection.*built-in configuration {name} is used"):
        config = load_model_config(hub_id)
    assert config.to_dict() == load_model_config(name).to_dict()


@pytest.mark.parametrize("hub_id", ["someone/Qwen2.5-7B", "Qwen/Qwen1-9B"])
def test_another_hub_id_offline_raises(offline, hub_id):
    with pytest.raises(RosaError, match="no connection"):
        load_model_config(hub_id)


def test_only_the_config_of_a_hub_id_is_fetched(capsys, monkeypatch):
    from transformers import PretrainedConfig

    asked = []

    def hub(model):
        asked.append(model)
        return dict(SMALL_LLAMA), {}

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", hub)
    assert cli.main(["params", "someone/small", "--methods", "lora", "--json"]) == 0
    assert asked == ["someone/small"]
    assert json.loads(capsys.readouterr().out)[0]["trainable"] > 0


def test_memory_of_a_training_step(capsys, small):
    argv = ["params", small, "--memory", "--methods", "lora,rosa", "--json"]

    def rows(*more):
        assert cli.main([*argv, *more]) == 0
        return json.loads(capsys.readouterr().out)

    config = load_model_config(small)
    trained = count_parameters(config, "rosa").trainable
    frozen, lora, rosa = rows()
    sizes = rosa["bytes"]
    assert frozen["bytes"]["weights"] == 2 * base_parameters(config)
    assert sizes["adapter"] == 4 * trained
    assert sizes["adapter"] + sizes["gradients"] + sizes["optimizer"] == 16 * trained
    assert rosa["total"] == pytest.approx(sum(sizes.values()), abs=3)
    assert frozen["bytes"]["activations"] < lora["bytes"]["activations"]
    assert rows("--max_length", "2048")[2]["bytes"]["logits"] == 2 * sizes["logits"]
    less = rows("--gradient_checkpointing")[2]["bytes"]["activations"]
    assert less < sizes["activations"]
    assert rows("--dtype", "nf4")[0]["bytes"]["weights"] < frozen["bytes"]["weights"]


def test_the_table_of_memory(capsys):
    argv = ["params", "Llama-3.1-8B", "--memory", "--methods", "rosa", "--batch_size", "2"]
    assert cli.main([*argv, "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "2 rows of 1,024 tokens, bfloat16" in out
    assert "| frozen model | 14.96 |" in out


def test_options_of_memory_require_it(capsys):
    assert "add --memory" in complaint(capsys, "Qwen2.5-7B", "--batch_size", "4")
    assert "exclude each other" in complaint(
        capsys, "Qwen2.5-7B", "--memory", "--match_budget", "rosa"
    )
    assert "--max_length must be at least 1" in complaint(
        capsys, "Qwen2.5-7B", "--memory", "--max_length", "0"
    )


# The paper's Table 1


def test_percentages_that_are_not_the_papers_are_marked_and_explained():
    def counted(method, trainable, paper):
        title = load_method(method).title
        return ParameterCount(method, title, trainable, 1_000_000, "the reason", paper)

    table = table_1(
        {
            "A": [counted("lora", 5_271, 0.527), counted("dora", 5_454, 0.546)],
            "B": [counted("lora", 5_204, 0.520), counted("dora", 5_366, 0.537)],
        }
    )
    lora, dora = table.blocks[0].rows
    assert [c.value for c in lora.cells] == [0.5271, 0.527, 0.5204, 0.52]
    assert [c.value for c in dora.cells] == ["0.545*", 0.546, 0.5366, 0.537]
    assert table.notes == ("3 of 4 are the paper's to the last digit.", "* DoRA: the reason")


def test_the_rows_are_in_the_papers_order():
    assert method_names()[:3] == ["lora", "dora", "adalora"]
    assert method_names(["variant"])[:2] == ["roae_only", "rosa_low_0.5"]


@pytest.mark.slow
def test_table_1_counted_and_as_the_paper_prints_it(capsys):
    assert cli.main(["params", "--table", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 27
    off = {(r["method"], r["model"]): round(r["percent"], 3) for r in rows if r["differs"]}
    assert off == ONE_DIGIT_OFF


def test_a_model_or_the_table_is_required(capsys):
    assert "rosa params MODEL, or rosa params --table" in complaint(capsys)
    assert "drop --r_low" in complaint(capsys, "--table", "--r_low", "0.5")


def test_variants_by_one_name(capsys):
    assert cli.main(["params", "rosa-tiny", "--methods", "variants", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == method_names(["variant"])


def test_lr64_trains_a_similar_number_of_parameters_as_rosa():
    """0.267 % with norms and 0.264 % without; the paper's 0.261 % is neither."""
    config = load_model_config("Qwen2.5-7B")
    assert round(count_parameters(config, "rosa_lr64").percent, 3) == 0.267
    without_norms = count_parameters(config, "rosa_lr64", {"modules_to_save": []})
    assert round(without_norms.percent, 3) == 0.264
    assert round(count_parameters(config, "rosa_lr128").percent, 3) == 0.530


@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config, Gemma2Config])
def test_norms_only_trains_what_rosa_trains_apart_from_roae(kind):
    sizes = {key: value for key, value in SMALL_LLAMA.items() if key != "model_type"}
    config = kind(**sizes, head_dim=16)

    def trainable(method, arguments=None):
        return count_parameters(config, method, arguments).trainable

    norms = trainable("rosa") - trainable("rosa", {"train_norms": False})
    assert norms == 3 * 64 * (4 if kind is Gemma2Config else 2)  # none of the norms of heads
    assert trainable("norms_only") == norms
    assert trainable("rosa_lr128") == trainable("lora_qk", {"r": 128}) + norms

"""What a dry run assumes: shapes behind hub ids, the work in a data set, and the time it takes."""

from __future__ import annotations

import math

from rosa.budget.activation_memory import DecoderShape
from rosa.budget.memory import AdaptedModel
from rosa.budget.parameters import load_model_config, matching_builtin
from rosa.budget.time import CPU_CORE, training_seconds
from rosa.compare.grid import TrainingSet
from rosa.reproduce.dry_run import base_size, workload
from rosa.train.recipe import Recipe


def test_shapes_behind_hub_ids(tmp_path):
    known = {
        "google/gemma-2-9b": "Gemma2-9B",
        "Qwen/Qwen2.5-0.5B": "Qwen2.5-0.5B",
        "meta-llama/Llama-3.1-8B": "Llama-3.1-8B",
        "meta-llama/Llama-2-7b-hf": "Llama-2-7B",
        "rosa-tiny": "rosa-tiny",
        "Qwen/Qwen2.5-72B": "Qwen/Qwen2.5-72B",
        str(tmp_path): str(tmp_path),
    }
    assert {name: matching_builtin(name) for name in known} == known
    shape = DecoderShape.of(load_model_config("Gemma2-9B"))
    assert (shape.norms, shape.query_width, shape.tied) == (4, 16 * 256, True)
    assert base_size("rosa-tiny") == 1_274_496


def test_work_is_read_from_the_data_or_taken_as_known():
    toy = TrainingSet(data=["tiny-sums", "tiny-choice"], tasks=["toy"])
    work = workload(toy, None, None)
    assert (work.rows, work.questions) == (6000, 500)
    assert 0 < work.response < work.prompt < work.longest
    assert workload(toy, None, limit=10).questions == 20
    away = TrainingSet(data="not-here.json", tasks=["arithmetic"])
    known = workload(away, {"rows": 5, "prompt": 3, "response": 2}, None)
    assert (known.rows, known.longest, known.questions) == (5, None, 4314)


def test_the_embedded_model_is_estimated_within_a_factor_of_three():
    """100 steps of 8 rows took 14 s on one core (docs/guides/comparing.md)."""
    toy = workload(TrainingSet(["tiny-sums", "tiny-choice"], ["toy"]), None, None)
    setting = Recipe("m", "d", "o", "rosa", {"r": 64}, batch_size=8, max_steps=100)
    setting.gradient_accumulation = 1
    shape = DecoderShape.of(load_model_config("rosa-tiny"))
    own = AdaptedModel(shape, 1_274_496, 81_408, dtype_bytes=4)
    assert math.isclose(training_seconds(own, setting, toy, CPU_CORE), 14, rel_tol=2 / 3)

"""Generated parts of the docs; a test checks that they are up to date.

python -m docs.generators             # writes all of them
python -m docs.generators.concept     # draws the pictures of RoAE and DLS

`reference/architectures.md`, `dls_matrix.md` and `versions.md` come from tests/support, the tables
of `notes/performance.md` and `notes/gemma3.md` from benchmarks/.
"""

from __future__ import annotations

from pathlib import Path

from docs.generators import (
    inspected,
    methods,
    precision,
    readme,
    real,
    recipe,
    scale,
    tasks,
    tiny_study,
)
from docs.generators.blocks import DOCS, ROOT, filled
from rosa import DlsConfig, DypamConfig, RosaConfig


def pages() -> dict[Path, str]:
    """Every page with generated parts, as it should be."""
    demo_real = readme.demo_table("demo_real.json", "make demo-real-record")
    blocks = {
        ROOT / "README.md": {
            "demo-real": demo_real,
            "parameters": readme.parameters_line(),
            "costs": readme.costs_table(),
            "status": readme.status(),
            "demo-table": readme.demo_table(),
        },
        DOCS / "guides/dls.md": {"dls-config": recipe.table(DlsConfig)},
        DOCS / "guides/real_models.md": {"demo-real": demo_real},
        DOCS / "reference/methods.md": {
            "paper-methods": methods.methods_table(["baseline", "ours"]),
            "variants": methods.methods_table(["variant"]),
            "dypam-config": recipe.table(DypamConfig),
            "unsupported": methods.unsupported_table(),
        },
        DOCS / "reference/tasks.md": {"tasks": tasks.tasks_table()},
        DOCS / "reference/adapter_format.md": {"config": recipe.table(RosaConfig)},
        DOCS / "notes/real_models.md": {"strength": inspected.strength_table()},
        DOCS / "notes/gemma3.md": {
            "real-scales": real.scales_table(),
            "real-scores": real.correlation_table(),
            "real-runs": real.norms_table(),
        },
        DOCS / "notes/tiny_study.md": {
            "scores": tiny_study.scores_table(),
            "questions": tiny_study.questions_table(),
            "rates": tiny_study.rates_table(),
        },
        DOCS / "notes/performance.md": {
            "scale-costs": scale.cost_table(),
            "scale-memory": scale.memory_table(),
            "scale-check": scale.check_table(),
            "precision-logits": precision.logits_table(),
            "precision-training": precision.training_table(),
            "real-training": real.training_table(),
            "real-padding": real.padding_table(),
            "real-evaluation": real.evaluation_table(),
            "real-startup": real.startup_table(),
        },
    }
    filled_in = {
        path: filled(path.read_text(encoding="utf-8"), own) for path, own in blocks.items()
    }
    return {DOCS / "reference/recipe.md": recipe.page(), **filled_in}

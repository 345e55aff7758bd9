"""A choice as the figures that TensorBoard, W&B and the Trainer's other trackers can draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.integrations import INTEGRATION_TO_CALLBACK

from rosa.dls.choice import EXPLORE


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one record of a history, by name.

    `dls/explore` is 1 where the layers were drawn, else 0; `dls/chosen/layer_03` is 1 for a layer
    that trains from here on, else 0; `dls/score/layer_03` is its score, where it was scored.
    """
    width = len(str(len(record["scores"]) - 1))
    figures = {"dls/explore": float(record["mode"] == EXPLORE)}
    for layer, score in enumerate(record["scores"]):
        figures[f"dls/chosen/layer_{layer:0{width}}"] = float(layer in record["selected"])
        if score is not None:
            figures[f"dls/score/layer_{layer:0{width}}"] = score
    return figures


def tell_trackers(
    trainer: Any, args: Any, state: Any, control: Any, record: Mapping[str, Any]
) -> None:
    """Hand a choice to the trackers of `report_to`, at the step that `state` is at.

    Not by `Trainer.log`, which would print two figures per layer and put them among the losses.
    """
    trackers: tuple[Any, ...] = tuple(INTEGRATION_TO_CALLBACK.values())
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, trackers):
            callback.on_log(args, state, control, logs=scalars(record), model=trainer.model)

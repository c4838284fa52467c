"""Two small evaluations for the tests of what compares."""

import json
from pathlib import Path
from typing import Any

from visuomotor.evaluation.evaluate import evaluate

POLICY = "pusht-keypoints-small"
FIRST, EPISODES, MAX_STEPS, BATCH = 500_017, 6, 160, 8
STEPS = {"four": 4, "two": 2}
"""Denoising steps by the report's name, in the order of the names; with so few, seeds flip in both directions."""


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Evaluates into folders of their own; contents of `eval.json` by name."""
    for name, steps in STEPS.items():
        evaluate(
            POLICY,
            output=folder / name,
            episodes=EPISODES,
            seed=FIRST,
            noise_scheduler_type="DDIM",
            num_inference_steps=steps,
            max_steps=MAX_STEPS,
            videos=1,
            policy_batch=BATCH,
            device="cpu",
            progress=False,
        )
    return {name: json.loads((folder / name / "eval.json").read_text()) for name in STEPS}

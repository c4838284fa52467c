"""`visuomotor` in one of several processes, which notes in RUN/sizes_RANK.json how much of the policy it holds when it
saves, as pairs of its numbers and all numbers. torchrun runs this file."""

import json
import os
import sys
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from visuomotor.cli import main
from visuomotor.training import loop

clip, save, gradients = torch.nn.utils.clip_grad_norm_, loop.save_checkpoint, []


def sizes(tensors: Any) -> list[tuple[int, int]]:
    return [(len(t.to_local().flatten()) if isinstance(t, DTensor) else t.numel(), t.numel()) for t in tensors]


def clip_grad_norm_(parameters, norm):
    parameters = list(parameters)
    gradients[:] = sizes(parameter.grad for parameter in parameters)
    return clip(parameters, norm)


def save_checkpoint(run, step, policy, average, optimizer, *others):
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    noted = {
        "weights": sizes(policy.parameters()),
        "gradients": list(gradients),
        "moments": sizes(moments),
        "average": sizes(average.policy.parameters()),
    }
    (run / f"sizes_{os.environ['RANK']}.json").write_text(json.dumps(noted))
    return save(run, step, policy, average, optimizer, *others)


torch.nn.utils.clip_grad_norm_ = clip_grad_norm_
loop.save_checkpoint = save_checkpoint
sys.exit(main())

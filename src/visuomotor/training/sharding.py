"""A policy of which each process holds a part: weights, gradients, moments and average, by PyTorch's FSDP2.

Parameters are DTensors. The weights of a block are whole in a process, as plain tensors, only while it computes.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.transformer import TransformerBlock
from visuomotor.policy.unet import ConvBlock
from visuomotor.policy.vision import RgbEncoder

BLOCKS = (ConvBlock, TransformerBlock, RgbEncoder)
"""What is made whole together: modules that nothing calls but by `forward`. What is left (a tenth of the published
recipe) is whole while the loss is computed, which is the policy's own `forward`."""


def shard(policy: DiffusionPolicy, device: str) -> DiffusionPolicy:
    """Shares a policy out among all processes of torchrun, in place; every process must call it with the same weights.

    Each parameter is cut along its first dimension that the number of processes divides, for kernels over time are
    (K, C', C) with a K of 3 or 5; where there is none, along the first, unevenly.

    Args:
        policy: Whole, on the processor. Its blocks go to the device one after the other.
        device: Where it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    count = torch.distributed.get_world_size()
    return _shard(policy, init_device_mesh(torch.device(device).type, (count,)))


def sharded_copy(policy: DiffusionPolicy) -> DiffusionPolicy:
    """A policy with the same weights, shared out in the same way, that does not train."""
    mesh = next(iter(policy.parameters())).device_mesh  # ty: ignore[missing-attribute]
    other = _shard(_new(policy).eval().requires_grad_(False), mesh)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            held(tensor).copy_(held(policy.state_dict()[name]))
    return other


def gathered_copy(policy: DiffusionPolicy) -> DiffusionPolicy | None:
    """The whole of a policy that is shared out, plain and on the processor; every process must call it.

    Returns:
        In evaluation mode, in the main process; None in the others.
    """
    tensors = gather(policy.state_dict())
    if not tensors:
        return None
    other = _new(policy).eval()
    other.load_state_dict(tensors)
    return other


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the main process's memory, one gathered after the other; an empty dict in the others."""
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if _rank() == 0:
            kept[name] = full.detach().cpu().contiguous()
    return kept


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of this."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def held(tensor: Any) -> Tensor:
    """What this process holds of a tensor: in memory the same."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor, in every process; every process must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def start(tensor: Any) -> tuple[int, ...]:
    """Where in the whole that begins which this process holds."""
    place = [0] * tensor.dim()
    if is_sharded(tensor):
        ((dim,), mesh) = [placement.dim for placement in tensor.placements], tensor.device_mesh
        length = -(-tensor.shape[dim] // mesh.size())  # of all parts but the last ones
        place[dim] = min(length * mesh.get_local_rank(), tensor.shape[dim])
    return tuple(place)


def _shard(policy: DiffusionPolicy, mesh: Any) -> DiffusionPolicy:
    from torch.distributed.fsdp import fully_shard

    # Nothing in the network writes into what a block returns, which would undo its hooks.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for parameter in policy.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no kernels in channels-last memory
    blocks = [module for module in policy.modules() if isinstance(module, BLOCKS)]
    for module in (*blocks, policy):
        cut = partial(_cut, mesh.size())
        fully_shard(module, mesh=mesh, shard_placement_fn=cut, reshard_after_forward=True)
    return policy


def _cut(count: int, parameter: nn.Parameter) -> Any:
    from torch.distributed.tensor import Shard

    return Shard(next((dim for dim, size in enumerate(parameter.shape) if size % count == 0), 0))


def _new(policy: DiffusionPolicy) -> DiffusionPolicy:
    with torch.random.fork_rng(devices=[]):
        return DiffusionPolicy(policy.config, policy.statistics, pretrained=False)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

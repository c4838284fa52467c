"""A policy's networks as graphs in files, for engines that know neither Visuomotor nor its layers."""

import logging
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mish

from visuomotor.config import DiffusionConfig
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.unet import ConditionalUnet1d, ResidualBlock
from visuomotor.policy.vision import resize_and_crop

ROWS = 3
"""Of the examples that graphs are made from; any other number works as well."""
LARGE = 1_500_000_000
"""Bytes of weights from which ONNX keeps them in a second file: one message holds 2 GiB."""

KEPT = [
    r".*\.pool[./].*",
    r".*rgb_encoder(\.\d+)?\.out/.*",
    r".*\.down_modules\.0\..*",
    r".*\.final_conv\..*",
    r".*\.action_encoder/.*",
    r".*\.final/.*",
]
"""Layers that int8 leaves alone, where positions and actions come in and go out, beside the last of `up_modules`: they
take little time, and what is lost there is lost in the actions."""


class Encoder(nn.Module):
    """Images of each camera as recorded, (rows, C, H, W) in [0, 1] -> (rows, numbers): resized, cropped, normalised."""

    def __init__(self, policy: DiffusionPolicy):
        super().__init__()
        self.policy = policy
        self.cameras = list(policy.config.image_features)
        self.matrices = {}
        for place, feature in enumerate(policy.config.image_features.values()):
            if policy.config.resize_shape not in (None, feature.shape[1:]):
                # Resizing is linear in rows and in columns, and every engine has products.
                for axis, size in enumerate(feature.shape[1:]):
                    to = policy.config.resize_shape[axis]
                    matrix = interpolate(torch.eye(size)[None, None], (to, size), mode="bilinear", antialias=True)
                    self.register_buffer(f"resize_{place}_{axis}", matrix[0, 0], persistent=False)

    def forward(self, *images: Tensor) -> Tensor:
        prepared = {}
        for place, (name, values) in enumerate(zip(self.cameras, images, strict=True)):
            if hasattr(self, f"resize_{place}_0"):
                rows, columns = getattr(self, f"resize_{place}_0"), getattr(self, f"resize_{place}_1")
                values = rows @ values @ columns.T
            values = resize_and_crop(values[:, None], self.policy.config)
            prepared[name] = self.policy.normalizer(name, values)
        return self.policy.diffusion.image_features(prepared)[:, 0]


class Shares(nn.Module):
    """What the denoiser's layers are told, of one of its two sources: `told` is the sum of both, (rows, F)."""

    def __init__(self, policy: DiffusionPolicy):
        super().__init__()
        self.denoiser = policy.diffusion.denoiser
        self.blocks = [module for module in self.denoiser.modules() if isinstance(module, ResidualBlock)]


class Condition(Shares):
    """Of what was observed, normalised, (rows, G)."""

    def forward(self, global_cond: Tensor) -> Tensor:
        if not isinstance(self.denoiser, ConditionalUnet1d):
            return self.denoiser.cond_encoder(global_cond)
        embedding = self.denoiser.diffusion_step_encoder[3]
        assert isinstance(embedding, nn.Linear)
        nothing = global_cond.new_zeros(1, embedding.out_features)
        condition = mish(global_cond)
        return torch.cat([block.film_shares(nothing, condition)[1] for block in self.blocks], dim=-1)


class Steps(Shares):
    """Of denoising steps, (rows,) float32."""

    def __init__(self, policy: DiffusionPolicy, cond_size: int):
        super().__init__(policy)
        self.cond_size = cond_size

    def forward(self, steps: Tensor) -> Tensor:
        told = self.denoiser.diffusion_step_encoder(steps)
        if not isinstance(self.denoiser, ConditionalUnet1d):
            return told
        nothing, told = told.new_zeros(1, self.cond_size), mish(told)
        return torch.cat([block.film_shares(told, nothing)[0] for block in self.blocks], dim=-1)


class Denoiser(Shares):
    """Noisy actions (rows, Tp, Da) and what the layers are told (rows, F) -> the prediction (rows, Tp, Da)."""

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        known: Any = told
        if isinstance(self.denoiser, ConditionalUnet1d):
            known = told.split([block.cond_encoder[1].out_features for block in self.blocks], dim=1)
        return self.denoiser(x, x, x, told=known)  # step and observation are not looked at


def parts(policy: DiffusionPolicy) -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """The graphs of a policy by name, each with examples of what it takes by name."""
    config, random = policy.config, torch.Generator().manual_seed(0)
    states = [f.shape[0] for f in (config.state_feature, config.env_state_feature) if f is not None]
    found: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}
    numbers = sum(states)
    if config.image_features:
        shapes = [feature.shape for feature in config.image_features.values()]
        images = {f"images_{i}": torch.rand(ROWS, *shape, generator=random) for i, shape in enumerate(shapes)}
        encoder = Encoder(policy)
        found["encoder"] = encoder, images
        with torch.no_grad():
            numbers += encoder(*images.values()).shape[1]
    size = numbers * config.n_obs_steps
    condition, steps = Condition(policy), Steps(policy, size)
    found["condition"] = condition, {"global_cond": torch.randn(ROWS, size, generator=random)}
    found["steps"] = steps, {"steps": torch.arange(ROWS, dtype=torch.float32)}
    with torch.no_grad():
        told = steps(found["steps"][1]["steps"])
    x = torch.randn(ROWS, config.horizon, *config.output_features["action"].shape, generator=random)
    found["denoiser"] = Denoiser(policy), {"x": x, "told": told}
    return {name: (module.eval(), examples) for name, (module, examples) in found.items()}


@torch.no_grad()
def write_onnx(module: nn.Module, examples: dict[str, Tensor], file: Path) -> None:
    """As ONNX, opset 20."""
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(examples.values()),
            dynamo=True,
            opset_version=20,
            input_names=list(examples),
            dynamic_shapes=_dynamic(module, examples),
            verbose=False,
        )
    assert program is not None
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program.save(file, external_data=weights > LARGE)


@torch.no_grad()
def write_torch(module: nn.Module, examples: dict[str, Tensor], file: Path) -> None:
    """As torch.export's archive, without the examples, which alone would be pickled."""
    with _quiet():
        program = torch.export.export(module, tuple(examples.values()), dynamic_shapes=_dynamic(module, examples))
    program.example_inputs = None
    torch.export.save(program, file)


@torch.no_grad()
def openvino_model(module: nn.Module, examples: dict[str, Tensor]) -> Any:
    """As OpenVINO's model in memory."""
    import openvino

    with _quiet():
        model = openvino.convert_model(module, example_input=tuple(examples.values()))
    for given, (name, example) in zip(model.inputs, examples.items(), strict=True):
        given.tensor.set_names({name})
        given.get_node().set_partial_shape(openvino.PartialShape([-1, *example.shape[1:]]))
    model.validate_nodes_and_infer_types()
    return model


def write_openvino(model: Any, file: Path) -> None:
    """Whole: OpenVINO would round the weights to half precision unasked."""
    import openvino

    openvino.save_model(model, file, compress_to_fp16=False)


def quantize(model: Any, samples: Iterable[Mapping[str, Any]], config: DiffusionConfig, denoiser: bool) -> Any:
    """Products and convolutions in int8 but those of `KEPT`, calibrated on samples of the inputs.

    The range of what flows between layers is that of all samples, not their mean as nncf has it: the largest values
    come with the highest and with the lowest noise, and cutting them off cost more than half of the error.
    """
    import nncf
    from nncf.quantization import range_estimator as ranges

    given = list(samples)
    estimator = ranges.RangeEstimatorParameters(
        ranges.StatisticsCollectorParameters(ranges.StatisticsType.MIN, ranges.AggregatorType.MIN),
        ranges.StatisticsCollectorParameters(ranges.StatisticsType.MAX, ranges.AggregatorType.MAX),
    )
    kept = [*KEPT, rf".*\.up_modules\.{len(config.down_dims) - 2}\..*"]
    transformer = denoiser and config.denoiser == "transformer"
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(given),
            subset_size=len(given),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(patterns=kept, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=estimator),
        )


@contextmanager
def _quiet() -> Generator[None]:
    """Without what the exporters say of sizes that they meet, of torchvision, and of every layer they leave alone."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _dynamic(module: nn.Module, examples: dict[str, Tensor]) -> Any:
    rows = torch.export.Dim("rows", min=1, max=2**20)
    sizes = [{0: rows} for _ in examples]
    return (tuple(sizes),) if isinstance(module, Encoder) else tuple(sizes)  # *images are one argument

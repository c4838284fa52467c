"""LeRobot's Diffusion Policy checkpoints, from 2024 to 0.6: what their files mean to us.

LeRobot 0.4 and later keep the normalisation beside the model, in `policy_preprocessor.json` and
`policy_postprocessor.json`; before that its statistics were tensors among the weights. The oldest config, of 2024, has
no `type` and normalises each feature in its own way.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visuomotor.config import DiffusionConfig, Feature, nearest
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.policy.checkpoint import read_json, read_tensors
from visuomotor.policy.normalization import NEEDED
from visuomotor.serialization import from_json

OURS_ALONE = (
    *("backbone_width", "backbone_stages"),
    *("denoiser", "transformer_dim", "transformer_layers", "transformer_heads"),
    *("timesteps", "ddim_eta", "warm_start"),
)
"""Fields of DiffusionConfig that LeRobot's does not have."""
SHARED = tuple(spec.name for spec in dataclasses.fields(DiffusionConfig) if spec.name not in OURS_ALONE)
LEROBOTS_VALUES = {
    "vision_backbone": ("resnet18", "resnet34"),
    "noise_scheduler_type": ("DDPM", "DDIM"),
    "beta_schedule": ("squaredcos_cap_v2", "linear"),
    "prediction_type": ("epsilon", "sample"),
}
"""What LeRobot knows of the fields that name a choice; ours know more."""
LATER: dict[str, Any] = {
    "drop_n_last_frames": 7,
    "resize_shape": None,
    "crop_ratio": 1.0,
    "use_separate_rgb_encoder_per_camera": False,
    "gradient_checkpointing": False,
    "do_mask_loss_for_padding": False,
}
"""Shared fields that older versions lack, and what those versions did."""
NOT_OF_THE_COMPUTATION = (
    *("type", "device", "use_amp", "compile_model", "compile_mode"),
    *("push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision"),
    *("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay"),
    *("scheduler_name", "scheduler_warmup_steps"),
)
"""LeRobot's fields that say where and how it trained, not what the policy computes."""
OF_2024 = ("input_shapes", "output_shapes", "input_normalization_modes", "output_normalization_modes")
MODES_OF_2024 = {"min_max": "MIN_MAX", "mean_std": "MEAN_STD"}
PRETRAINED = {
    f"ResNet{depth}_Weights.{weights}": f"timm/resnet{depth}.tv_in1k"
    for depth in (18, 34)
    for weights in ("IMAGENET1K_V1", "DEFAULT")
}
"""The same weights, by torchvision's name and by timm's on the hub."""
STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
INSIDE = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""How the names of statistics among the weights begin."""
EPS = 1e-8
"""What LeRobot adds to deviations, and takes for a range of zero."""

Statistics = dict[str, dict[str, np.ndarray]]


def is_lerobot(content: Any) -> bool:
    """Whether a config.json is LeRobot's, of any version."""
    return isinstance(content, dict) and "format_version" not in content and not {"type", *OF_2024}.isdisjoint(content)


def lerobot_config(content: Mapping[str, Any], path: Path) -> DiffusionConfig:
    """LeRobot's config.json as ours.

    States that its network never sees, such as `observation.velocity`, are left out.

    Raises:
        CheckpointError: It is another kind of policy, or a field is unknown, missing, or has a value that ours cannot.
    """
    kind = content.get("type", "diffusion")
    if kind != "diffusion":
        raise CheckpointError(mismatch(f"{path}: type", "diffusion", _short(kind), "only Diffusion Policies are run"))
    fields = dict(content) if set(OF_2024).isdisjoint(content) else _from_2024(content, path)
    for name, value in fields.items():
        # What is null or false is off: later versions may add such fields, and this policy does without.
        if name not in (*SHARED, *NOT_OF_THE_COMPUTATION) and value is not None and value is not False:
            advice = f"did you mean {nearest(name, SHARED)}? Else it is of a newer LeRobot: update"
            raise CheckpointError(
                mismatch(f"{path}: {name}", "a known field", f"an unknown one, {_short(value)}", advice)
            )
    for name in SHARED:
        if name not in fields and name not in LATER:
            raise CheckpointError(mismatch(f"{path}: {name}", "a value", "none", "every LeRobot writes it: add it"))
    shared = LATER | {name: fields[name] for name in SHARED if name in fields}
    for name, known in LEROBOTS_VALUES.items():
        if isinstance(shared[name], str) and shared[name] not in known:
            expected, advice = " or ".join(map(repr, known)), "it is of a newer LeRobot: update"
            raise CheckpointError(mismatch(f"{path}: {name}", expected, _short(shared[name]), advice))
    shared["input_features"] = _seen(shared["input_features"])
    pretrained = shared["pretrained_backbone_weights"]
    if pretrained is not None and str(pretrained) not in PRETRAINED:
        place, expected = f"{path}: pretrained_backbone_weights", f"null or one of {list(PRETRAINED)}"
        raise CheckpointError(mismatch(place, expected, _short(pretrained), "null will do: the weights are trained"))
    shared["pretrained_backbone_weights"] = PRETRAINED.get(str(pretrained))
    try:
        return from_json(DiffusionConfig, shared, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _seen(features: Any) -> Any:
    """Less the states that the network does not see."""
    if not isinstance(features, dict):
        return features  # no features: `from_json` refuses it
    return {
        name: feature
        for name, feature in features.items()
        if name == "observation.state" or not isinstance(feature, dict) or feature.get("type") != "STATE"
    }


def _from_2024(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The oldest config in the words of the newer ones: a type for each feature, a mode for each type."""
    for name in OF_2024:
        if not isinstance(content.get(name), dict):
            expected, found = "a value for each feature", _short(content.get(name))
            raise CheckpointError(mismatch(f"{path}: {name}", expected, found, "copy the file again"))
    inputs = {name: {"type": _type_of(name), "shape": shape} for name, shape in content["input_shapes"].items()}
    outputs = {name: {"type": "ACTION", "shape": shape} for name, shape in content["output_shapes"].items()}
    modes = content["input_normalization_modes"] | content["output_normalization_modes"]
    mapping: dict[str, str] = {}
    for name, feature in (_seen(inputs) | outputs).items():
        mode = MODES_OF_2024.get(str(modes[name])) if name in modes else "IDENTITY"
        if mode is None:
            place, expected = f"{path}: normalization of {name}", f"one of {list(MODES_OF_2024)}"
            raise CheckpointError(mismatch(place, expected, _short(modes[name]), "this mode is unknown"))
        before = mapping.setdefault(feature["type"], mode)
        if mode != before:
            place, expected = f"{path}: normalization of {name}", f"{before} as for the others of its type"
            raise CheckpointError(mismatch(place, expected, mode, "one type of feature has one mode here"))
    rest = {name: value for name, value in content.items() if name not in OF_2024}
    return rest | {"input_features": inputs, "output_features": outputs, "normalization_mapping": mapping}


def _type_of(name: str) -> str:
    if name.startswith("observation.image"):
        return "VISUAL"
    return "ENV" if name == "observation.environment_state" else "STATE"


def read_lerobot(folder: Path, config: DiffusionConfig) -> tuple[Statistics, dict[str, Tensor]]:
    """The statistics and weights of LeRobot's policy in `folder`, whose config is `config`.

    Raises:
        CheckpointError: A file or tensor is missing or unknown, or the files do not agree.
    """
    path = folder / "model.safetensors"
    weights = _plain_names(read_tensors(path), path)
    if any(name.startswith(INSIDE) for name in weights) and not (folder / "policy_preprocessor.json").exists():
        statistics = _statistics_inside(config, weights, path)
        dropped = _unseen_buffers(folder)
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(dropped)}
    else:
        statistics = _statistics_beside(config, folder)
    return statistics, weights


def _plain_names(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without what torch.compile and wrappers around the model put into them."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if plain.setdefault(name.replace("_orig_mod.", ""), tensor) is not tensor:
            raise CheckpointError(mismatch(f"{path}: {name}", "one tensor of that name", "two", "the file is damaged"))
    for prefix in ("module.", "model."):
        if plain and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def _short(value: Any) -> str:
    return repr(value)[:80]


def _mode(config: DiffusionConfig, feature: Feature) -> str:
    return config.normalization_mapping.get(feature.type, "IDENTITY")


# Statistics inside the model


def _buffer(place: str, name: str) -> str:
    return f"{place}.buffer_{name.replace('.', '_')}."


def _statistics_inside(config: DiffusionConfig, weights: dict[str, Tensor], path: Path) -> Statistics:
    """Takes the statistics out of the weights."""
    statistics: Statistics = {}
    for name, feature in (config.input_features | config.output_features).items():
        places = ("unnormalize_outputs", "normalize_targets") if name == "action" else ("normalize_inputs",)
        statistics[name] = {}
        for key in NEEDED[_mode(config, feature)]:
            found = [_take(weights, _buffer(place, name) + key, name, path) for place in places]
            if not np.array_equal(found[0], found[-1]):
                first, last = (f"{place} {values.tolist()}" for place, values in zip(places, found, strict=True))
                raise CheckpointError(mismatch(f"{path}: {key} of {name}", first, last, "the file is damaged"))
            statistics[name][key] = found[0]
    return statistics


def _take(weights: dict[str, Tensor], tensor: str, feature: str, path: Path) -> np.ndarray:
    if tensor not in weights:
        raise CheckpointError(mismatch(f"{path}: {tensor}", f"statistics of {feature}", "none", "copy the file again"))
    values = _array(weights.pop(tensor))
    if not np.isfinite(values).all():  # LeRobot fills what it was never given with infinity
        advice = "it was saved without statistics: save it again with those of its data set"
        raise CheckpointError(mismatch(f"{path}: {tensor}", f"statistics of {feature}", values.tolist(), advice))
    return values


def _unseen_buffers(folder: Path) -> tuple[str, ...]:
    """How statistics of states begin that the config left out, because the network does not see them."""
    content = read_json(folder / "config.json")
    features = content.get("input_features") or {name: {"type": _type_of(name)} for name in content["input_shapes"]}
    return tuple(_buffer("normalize_inputs", name) for name in features.keys() - _seen(features).keys())


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


# Statistics beside the model


def _statistics_beside(config: DiffusionConfig, folder: Path) -> Statistics:
    """What the two processor files say; they must agree with the config and with each other."""
    before, after = folder / "policy_preprocessor.json", folder / "policy_postprocessor.json"
    statistics = _read_processor(before, "normalizer_processor", config, config.input_features | config.output_features)
    outputs = _read_processor(after, "unnormalizer_processor", config, config.output_features)
    for key in NEEDED[_mode(config, config.output_features["action"])]:
        first, last = statistics["action"][key], outputs["action"][key]
        if not np.array_equal(first, last):
            expected, found = f"{first.tolist()} as in {before.name}", last.tolist()
            raise CheckpointError(mismatch(f"{after}: {key} of action", expected, found, "they must be the same"))
    return statistics


def _read_processor(path: Path, wanted: str, config: DiffusionConfig, features: Mapping[str, Feature]) -> Statistics:
    """The statistics in the one step of that name; every other step must change nothing."""
    content = read_json(path)
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(mismatch(f"{path}: steps", "a list of steps", _short(steps), "copy the file again"))
    found = []
    for step in steps:
        name, options = step.get("registry_name", step.get("class")), step.get("config") or {}
        if not isinstance(options, dict):
            raise CheckpointError(mismatch(f"{path}: {name}", "options", _short(options), "copy the file again"))
        if name == wanted:
            _check_options(path, wanted, config, features, options)
            found.append(step)
        elif not _changes_nothing(name, options):
            expected = f"{wanted} and steps that change nothing"
            raise CheckpointError(
                mismatch(f"{path}: {name}", expected, _short(options), "this step cannot be done here")
            )
    if len(found) != 1:
        raise CheckpointError(mismatch(f"{path}: {wanted}", "one such step", len(found), "copy the file again"))
    return _read_state(path, found[0].get("state_file"), config, features)


def _changes_nothing(name: Any, options: dict[str, Any]) -> bool:
    """Whether a step leaves names and numbers as they are."""
    known = {
        "rename_observations_processor": {"rename_map": _is_identity},
        "to_batch_processor": {},
        "device_processor": {"device": lambda _: True, "float_dtype": lambda dtype: dtype in ("float32", "float")},
    }.get(str(name))
    return known is not None and all(
        not value or (option in known and known[option](value)) for option, value in options.items()
    )


def _is_identity(names: Any) -> bool:
    return isinstance(names, dict) and all(old == new for old, new in names.items())


def _check_options(
    path: Path, step: str, config: DiffusionConfig, features: Mapping[str, Feature], options: dict[str, Any]
) -> None:
    """The options of a normalizer against config.json."""

    def refuse(name: str, expected: object, found: object, advice: str) -> CheckpointError:
        return CheckpointError(mismatch(f"{path}: {step}: {name}", expected, found, advice))

    kinds, modes, only = options.get("features"), options.get("norm_map"), options.get("normalize_observation_keys")
    if not isinstance(kinds, dict) or not isinstance(modes, dict):
        raise refuse("features, norm_map", "a value for each", _short((kinds, modes)), "copy the file again")
    for name, value in options.items():
        if name not in ("features", "norm_map", "normalize_observation_keys", "eps") and value:
            raise refuse(name, "a known option", f"an unknown one, {_short(value)}", "it is of a newer LeRobot: update")
    if options.get("eps", EPS) != EPS:
        raise refuse("eps", EPS, _short(options["eps"]), "no other is used here")
    for name, feature in features.items():
        expected = _mode(config, feature)
        found = modes.get(feature.type, "IDENTITY")
        if found != expected:
            wanted = f"{expected}, which config.json has"
            raise refuse(f"norm_map of {feature.type} ({name})", wanted, _short(found), "the two files must agree")
        if expected == "IDENTITY":
            continue
        kind = {"type": feature.type, "shape": list(feature.shape)}
        if kinds.get(name) != kind:
            wanted = f"{kind}, which config.json has"
            raise refuse(f"features: {name}", wanted, _short(kinds.get(name)), "the two files must agree")
        if only is not None and name != "action" and (not isinstance(only, list) or name not in only):
            raise refuse(
                "normalize_observation_keys", name, _short(only), "every observation of the policy must be in it"
            )


def _read_state(path: Path, state: Any, config: DiffusionConfig, features: Mapping[str, Feature]) -> Statistics:
    """The statistics of `features` in a step's safetensors file; those of other columns of the data set are left."""
    statistics: Statistics = {name: {} for name in features}
    if state is not None:
        if not isinstance(state, str) or state != Path(state).name or not state.endswith(".safetensors"):
            expected = "the name of a safetensors file beside it"
            raise CheckpointError(mismatch(f"{path}: state_file", expected, _short(state), "nothing else is read"))
        for tensor, values in read_tensors(path.with_name(state)).items():
            name, _, key = tensor.rpartition(".")
            if name not in features:
                continue
            whole = key != "count" and not values.is_floating_point()
            if key not in STATISTICS or whole or not bool(values.isfinite().all()):
                expected, found = f"finite numbers of one of {list(STATISTICS)}", values.flatten()[:4].tolist()
                place = f"{path.with_name(state)}: {tensor}"
                raise CheckpointError(mismatch(place, expected, found, "copy the file again"))
            statistics[name][key] = _array(values)
    for name, feature in features.items():
        for key in NEEDED[_mode(config, feature)]:
            if key not in statistics[name]:
                place = path if state is None else path.with_name(state)
                advice = "it was saved without: save it again with the statistics of its data set"
                raise CheckpointError(mismatch(f"{place}: {name}.{key}", f"statistics of {name}", "none", advice))
    return statistics

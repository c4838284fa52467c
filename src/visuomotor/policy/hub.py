"""Policies on the Hugging Face hub: the upload, and the card that says what a policy is and how good."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.files import sha256
from visuomotor.policy.checkpoint import find_policy, load_policy, read_config, read_json, read_tensors

LICENSE = "apache-2.0"
"""What the card says where config.json names no licence, as LeRobot's does."""


def push_to_hub(
    policy_folder: str | Path, name: str, evaluation: str | Path | None = None, private: bool = False
) -> str:
    """Uploads a policy, ours or LeRobot's, in one commit.

    Args:
        policy_folder: A policy's folder or a run's. Its `*.json`, `*.safetensors` and README.md go up, nothing else.
        name: `owner/name` on the hub; the repository is made if there is none.
        evaluation: An `eval.json`, or the folder of one; goes up too.
        private: Whether a repository that is made is private.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: The policy or the evaluation is damaged, or the hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    folder = find_policy(policy_folder)
    load_policy(folder)  # a damaged one is of no use to anybody
    names = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")}
    contents: dict[str, str | Path | bytes] = {**names}
    contents["README.md"] = model_card(folder, evaluation, name).encode()
    if (folder / "README.md").is_file():
        contents["README.md"] = folder / "README.md"
    if evaluation is not None:
        contents["eval.json"] = _evaluation_file(evaluation)
    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        operations = [CommitOperationAdd(file, content) for file, content in contents.items()]
        api.create_commit(address.repo_id, operations, commit_message="Upload a policy with Visuomotor")
    except (HTTPError, OSError, ValueError) as error:  # ValueError: the name, or the head of a README, is not valid
        found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        advice = "check the name, the network, and that `hf auth login` has been done"
        raise CheckpointError(mismatch(name, "a repository on the hub that takes it", found, advice)) from error
    return str(address)


def model_card(policy_folder: str | Path, evaluation: str | Path | None = None, name: str | None = None) -> str:
    """A README.md for a policy: the hub's metadata, observations and actions, how to load it, how good it is.

    Args:
        policy_folder: As for `push_to_hub`.
        evaluation: An `eval.json`, or the folder of one.
        name: What to call the policy; None takes the folder's name.

    Raises:
        CheckpointError: The policy's config or the evaluation is damaged.
    """
    folder = find_policy(policy_folder)
    config, title = read_config(folder), name or folder.resolve().name
    parts = [_about(config, folder, title), _features(config), _use(folder, title)]
    results = []
    if evaluation is not None:
        path = _evaluation_file(evaluation)
        content = read_json(path)
        try:
            results, text = _results(content), _evaluation(content, folder)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            found, advice = f"{type(error).__name__} {error}", "pass the eval.json that `visuomotor eval` wrote"
            raise CheckpointError(mismatch(str(path), "an evaluation", found, advice)) from error
        parts.append(text)
    return "\n".join([_metadata(folder, title, results), *parts])


def _evaluation_file(evaluation: str | Path) -> Path:
    path = Path(evaluation)
    return path / "eval.json" if path.is_dir() else path


def _metadata(folder: Path, title: str, results: list[Any]) -> str:
    from huggingface_hub import ModelCardData

    content = read_json(folder / "config.json")
    chosen = content.get("license")
    metadata = ModelCardData(
        library_name="visuomotor",
        pipeline_tag="robotics",
        license=chosen if isinstance(chosen, str) else LICENSE,
        tags=["robotics", "diffusion-policy", "visuomotor", *(["lerobot"] if "type" in content else [])],
        datasets=_datasets(folder),
        model_name=title,
        eval_results=results or None,
    )
    return f"---\n{metadata.to_yaml()}\n---\n"


def _datasets(folder: Path) -> list[str] | None:
    """What it was trained on, if that is a name on the hub: LeRobot writes it beside the policy, we into the run."""
    beside, source = folder / "train_config.json", None
    runs = [parent / "config.json" for parent in folder.resolve().parents[2:3]]  # RUN/checkpoints/step_000050/policy
    if beside.is_file():
        content = read_json(beside)
        dataset = content.get("dataset") if isinstance(content, dict) else None
        source = dataset.get("repo_id") if isinstance(dataset, dict) else None
    elif folder.resolve().name == "policy" and runs and runs[0].is_file():
        content = read_json(runs[0])
        source = content.get("source") if isinstance(content, dict) else None
        source = None if Path(str(source)).exists() else source
    return [source] if isinstance(source, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) else None


def _about(config: DiffusionConfig, folder: Path, title: str) -> str:
    count = sum(tensor.numel() for tensor in read_tensors(folder / "model.safetensors").values())
    return (
        f"# {title}\n\n"
        f"A [Diffusion Policy](https://arxiv.org/abs/2303.04137) with {count / 1e6:.1f}M parameters. From the last "
        f"{config.n_obs_steps} observations it plans {config.horizon} actions, of which it executes "
        f"{config.n_action_steps} before it plans again. Sampler: {_sampler(config)}.\n"
    )


def _sampler(config: DiffusionConfig) -> str:
    steps = config.num_inference_steps or config.num_train_timesteps
    return _acting(config.noise_scheduler_type, steps, config.timesteps, config.ddim_eta, config.warm_start)


def _acting(sampler: str, steps: int, timesteps: Sequence[int] | None, eta: float, warm_start: float) -> str:
    """In words; what is as usual is not named."""
    text = f"{sampler} with {steps} step{'s' * (steps != 1)}"
    if timesteps is not None:
        text += f" at {', '.join(map(str, timesteps))}"
    if eta:
        text += f", eta {eta:g}"
    return text if warm_start == 1 else f"{text}, warm start from {warm_start:g} of the diffusion's time"


def _features(config: DiffusionConfig) -> str:
    rows = ["## Observations and actions", "", "| name | type | shape | normalisation |", "|---|---|---|---|"]
    for name, feature in (config.input_features | config.output_features).items():
        mode = config.normalization_mapping.get(feature.type, "IDENTITY")
        rows.append(f"| `{name}` | {feature.type} | {tuple(feature.shape)} | {mode} |")
    images = "Images are uint8, or floats in [0, 1]. Everything else is" if config.image_features else "All are"
    return "\n".join([*rows, "", f"{images} in the units of the data.", ""])


def _use(folder: Path, title: str) -> str:
    lines = [
        "## Use",
        "",
        "```python",
        "import visuomotor",
        f'policy = visuomotor.load_policy("{title}")',
        "policy.reset()  # when an episode begins",
        "action = policy.select_action(observation)  # tensors by name, each with a batch axis in front",
        "```",
        "",
    ]
    if (folder / "policy_preprocessor.json").is_file():
        lines += ["It is in LeRobot's format: LeRobot 0.6 loads it with `DiffusionPolicy.from_pretrained`.", ""]
    return "\n".join(lines)


def _results(evaluation: dict[str, Any]) -> list[Any]:
    """The figures as the hub lists them."""
    from huggingface_hub import EvalResult

    env, count = evaluation["settings"]["env"], len(evaluation["episodes"])
    figures = {
        "success_rate": (f"Success rate in %, {count} episodes", round(100 * evaluation["success_rate"], 1)),
        "mean_max_reward": (f"Mean max reward, {count} episodes", round(evaluation["mean_max_reward"], 4)),
    }
    return [
        EvalResult("robotics", env, env, kind, value, task_name="Robotics", metric_name=label)
        for kind, (label, value) in figures.items()
    ]


def _evaluation(evaluation: dict[str, Any], folder: Path) -> str:
    settings, episodes = evaluation["settings"], evaluation["episodes"]
    success, low, high = (100 * rate for rate in (evaluation["success_rate"], *evaluation["success_rate_interval"]))
    seeds = [episode["seed"] for episode in episodes]
    same = settings["weights_sha256"] == sha256(folder / "model.safetensors")
    # Evaluations from before there were these settings do not have them.
    more = settings.get("timesteps"), settings.get("ddim_eta", 0), settings.get("warm_start", 1)
    sampler = _acting(settings["noise_scheduler_type"], settings["num_inference_steps"], *more)
    weights = "those of this model.safetensors" if same else "another file, such as that before a conversion"
    rows = {
        "environment": settings["env"],
        "success": f"**{success:.1f} %** (95 % interval {low:.1f} to {high:.1f} %)",
        "mean max reward": f"{evaluation['mean_max_reward']:.3f}",
        "mean max coverage": f"{evaluation['mean_max_coverage']:.3f}",
        "episodes": f"{len(episodes)}, seeds {min(seeds)} to {max(seeds)}, at most {settings['max_steps']} steps each",
        "sampler": f"{sampler}, {settings['n_action_steps']} actions executed of each plan",
        "weights": f"{weights} (sha256 `{settings['weights_sha256']}`)",
        "versions": ", ".join(f"{package} {version}" for package, version in evaluation["versions"].items()),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## Evaluation\n\n| | |\n|---|---|\n{table}\n\nEvery episode is in `eval.json`.\n"

"""Policies to and from the hub, as a small server on the loopback address plays it; and the card beside them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from visuomotor.errors import CheckpointError
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.hub import model_card, push_to_hub
from visuomotor.policy.lerobot_export import FILES, save_lerobot

from ..hub_server import HubServer
from .lerobot_folders import actions, small
from .small import small_config, small_policy

OURS = ["config.json", "model.safetensors", "statistics.json"]
EVALUATION = {
    "success_rate": 0.625,
    "success_rate_interval": [0.3057, 0.8632],
    "mean_max_coverage": 0.9012,
    "mean_max_reward": 0.9487,
    "episodes": [{"seed": 100000 + i, "success": i < 5} for i in range(8)],
    "settings": {
        "policy": "outputs/keypoints",
        "weights_sha256": "0" * 64,
        "env": "pusht",
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 16,
        "n_action_steps": 6,
        "max_steps": 300,
        "seed": 100000,
    },
    "versions": {"visuomotor": "0.1.0", "torch": "2.13.0"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small policy of ours."""
    save_policy(small(), tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """The folder of an evaluation."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "eval.json").write_text(json.dumps(EVALUATION))
    return tmp_path / "evaluation"


def served(server: HubServer, name: str = "someone/policy", revision: str = "main") -> Path:
    return server.folder / "models" / name / revision


# Up and down


@pytest.mark.parametrize("write", [save_policy, save_lerobot])
def test_what_goes_up_comes_down(hub_server: HubServer, tmp_path: Path, write: Callable[..., None]) -> None:
    write(small(), tmp_path / "policy")
    (tmp_path / "policy" / "token.txt").write_text("secret")
    address = push_to_hub(tmp_path / "policy", "someone/policy")
    assert address == f"{hub_server.endpoint}/someone/policy"
    files = sorted(path.name for path in served(hub_server).iterdir())
    assert files == sorted([*(OURS if write is save_policy else FILES), "README.md"])
    assert len([request for request in hub_server.requests if "/commit/" in request]) == 1
    assert torch.equal(actions(load_policy("someone/policy")), actions(small()))
    assert "README.md" not in hub_server.downloaded()  # nor anything that could be a pickle


@pytest.mark.parametrize("private", [False, True])
def test_a_repository_is_made_as_asked(
    hub_server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    create, asked = HfApi.create_repo, []

    def note(self: HfApi, name: str, **options: Any) -> Any:
        asked.append((name, options))
        return create(self, name, **options)

    monkeypatch.setattr(HfApi, "create_repo", note)
    push_to_hub(folder, "someone/policy", private=private)
    assert asked == [("someone/policy", {"private": private, "exist_ok": True})]


def test_a_second_upload_replaces_the_first(hub_server: HubServer, folder: Path) -> None:
    push_to_hub(folder, "someone/policy")
    other = small_policy(small_config(environment=4), seed=1).eval()
    save_policy(other, folder)
    push_to_hub(folder, "someone/policy")
    assert torch.equal(actions(load_policy("someone/policy")), actions(other))


def test_a_run_gives_its_newest_checkpoint(hub_server: HubServer, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "checkpoints" / "step_000050" / "policy")
    push_to_hub(tmp_path / "run", "someone/policy")
    assert sorted(path.name for path in served(hub_server).iterdir()) == sorted([*OURS, "README.md"])


def test_an_evaluation_goes_up_with_the_policy(hub_server: HubServer, folder: Path, evaluation: Path) -> None:
    push_to_hub(folder, "someone/policy", evaluation)
    assert json.loads((served(hub_server) / "eval.json").read_text()) == EVALUATION
    assert (served(hub_server) / "README.md").read_text() == model_card(folder, evaluation, "someone/policy")


def test_a_readme_of_the_users_own_stays(hub_server: HubServer, folder: Path, evaluation: Path) -> None:
    (folder / "README.md").write_text("# Mine\n")
    push_to_hub(folder, "someone/policy", evaluation)
    assert (served(hub_server) / "README.md").read_text() == "# Mine\n"
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_revisions(hub_server: HubServer, folder: Path) -> None:
    shutil.copytree(folder, served(hub_server, revision="main"))
    other = small_policy(small_config(environment=4), seed=1).eval()
    save_policy(other, served(hub_server, revision="v2"))
    assert torch.equal(actions(load_policy("someone/policy")), actions(small()))
    assert torch.equal(actions(load_policy("someone/policy", revision="v2")), actions(other))
    with pytest.raises(CheckpointError, match=r"^someone/policy: expected a folder here, .* got RevisionNotFoundError"):
        load_policy("someone/policy", revision="v3")


def test_a_downloaded_policy_opens_without_the_hub(hub_server: HubServer, folder: Path) -> None:
    shutil.copytree(folder, served(hub_server))
    load_policy("someone/policy")
    hub_server.close()
    assert torch.equal(actions(load_policy("someone/policy")), actions(small()))


def test_a_run_of_lerobots_on_the_hub(hub_server: HubServer) -> None:
    save_lerobot(small(), served(hub_server) / "checkpoints" / "000100" / "pretrained_model")
    assert torch.equal(actions(load_policy("someone/policy")), actions(small()))


def test_a_repository_without_a_policy(hub_server: HubServer) -> None:
    served(hub_server).mkdir(parents=True)
    (served(hub_server) / "other.json").write_text("{}")
    message = r"^someone/policy: expected config.json and model.safetensors, or checkpoints/, got \['other.json'\]; "
    with pytest.raises(CheckpointError, match=message):
        load_policy("someone/policy")


def test_a_revision_is_for_the_hub_alone(folder: Path) -> None:
    for source in (folder, "pusht-keypoints-small"):
        with pytest.raises(CheckpointError, match=r": revision: expected None, got 'v2'; leave the revision out: "):
            load_policy(source, revision="v2")


@pytest.mark.parametrize(
    ("name", "refuses", "found"),
    [
        ("someone/policy", "POST /api/repos/create", "HfHubHTTPError: "),
        ("someone/policy", "POST /api/models/someone/policy/commit/main", "HfHubHTTPError: "),
        ("some one/policy", "", "HFValidationError: "),
    ],
)
def test_an_upload_that_fails(hub_server: HubServer, folder: Path, name: str, refuses: str, found: str) -> None:
    hub_server.fail = lambda request: 403 if request == refuses else None
    with pytest.raises(CheckpointError) as caught:
        push_to_hub(folder, name)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected a repository on the hub that takes it, got {found}")
    assert message.endswith("; check the name, the network, and that `hf auth login` has been done")
    assert "\n" not in message


def test_a_damaged_policy_is_not_uploaded(hub_server: HubServer, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected safetensors, got "):
        push_to_hub(folder, "someone/policy")
    assert hub_server.requests == []


# The card


def test_the_card_of_a_policy(folder: Path, evaluation: Path) -> None:
    text = model_card(folder, evaluation, "someone/policy")
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "visuomotor",
        "pipeline_tag": "robotics",
        "license": "apache-2.0",
        "tags": ["robotics", "diffusion-policy", "visuomotor"],
        "model-index": [
            {
                "name": "someone/policy",
                "results": [
                    {
                        "task": {"type": "robotics", "name": "Robotics"},
                        "dataset": {"type": "pusht", "name": "pusht"},
                        "metrics": [
                            {"type": "success_rate", "value": 62.5, "name": "Success rate in %, 8 episodes"},
                            {"type": "mean_max_reward", "value": 0.9487, "name": "Mean max reward, 8 episodes"},
                        ],
                    }
                ],
            }
        ],
    }
    for line in (
        "# someone/policy",
        "| `observation.environment_state` | ENV | (4,) | MIN_MAX |",
        "| `action` | ACTION | (3,) | MIN_MAX |",
        'policy = visuomotor.load_policy("someone/policy")',
        "| success | **62.5 %** (95 % interval 30.6 to 86.3 %) |",
        "| mean max reward | 0.949 |",
        "| mean max coverage | 0.901 |",
        "| episodes | 8, seeds 100000 to 100007, at most 300 steps each |",
        "| sampler | DDIM with 16 steps, 6 actions executed of each plan |",
        "| versions | visuomotor 0.1.0, torch 2.13.0 |",
    ):
        assert line in text.splitlines()


def test_the_card_says_which_weights_were_measured(folder: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    def measured(digest: str) -> str:
        content = EVALUATION | {"settings": EVALUATION["settings"] | {"weights_sha256": digest}}
        (tmp_path / "eval.json").write_text(json.dumps(content))
        return model_card(folder, tmp_path / "eval.json")

    own = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"| weights | those of this model.safetensors (sha256 `{own}`) |" in measured(own)
    assert "| weights | another file, such as that before a conversion (sha256 `000" in measured("0" * 64)


@pytest.mark.parametrize(
    ("changes", "sampler"),
    [
        ({"noise_scheduler_type": "DDIM", "num_inference_steps": 1}, "DDIM with 1 step"),
        (
            {"noise_scheduler_type": "DDIM", "num_inference_steps": 2, "ddim_eta": 0.5, "timesteps": (9, 4)},
            "DDIM with 2 steps at 9, 4, eta 0.5",
        ),
        (
            {"noise_scheduler_type": "DPMSolverMultistep", "num_inference_steps": 5, "warm_start": 0.3},
            "DPMSolverMultistep with 5 steps, warm start from 0.3 of the diffusion's time",
        ),
    ],
)
def test_the_card_says_how_the_policy_acts(tmp_path: Path, changes: dict[str, Any], sampler: str) -> None:
    """The policy itself, and the one that was measured."""
    save_policy(small_policy(small_config(environment=4, num_train_timesteps=10, **changes)), tmp_path / "policy")
    settings = EVALUATION["settings"] | json.loads(json.dumps(changes))
    (tmp_path / "eval.json").write_text(json.dumps(EVALUATION | {"settings": settings}))
    text = model_card(tmp_path / "policy", tmp_path / "eval.json")
    assert f" before it plans again. Sampler: {sampler}.\n" in text
    assert f"| sampler | {sampler}, 6 actions executed of each plan |" in text


def test_a_policy_near_the_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /policy has fewer folders above it than a run's checkpoint."""
    monkeypatch.setattr(Path, "resolve", lambda path: Path("/policy"))
    assert "datasets" not in ModelCard(model_card(folder)).data.to_dict()


def test_a_card_without_an_evaluation(folder: Path) -> None:
    text = model_card(folder)
    assert "# policy\n" in text
    assert "Evaluation" not in text
    assert "model-index" not in ModelCard(text).data.to_dict()


def test_the_card_of_lerobots_format(tmp_path: Path) -> None:
    save_lerobot(small(), tmp_path / "policy")
    content = json.loads((tmp_path / "policy" / "config.json").read_text()) | {"license": "mit"}
    (tmp_path / "policy" / "config.json").write_text(json.dumps(content))
    (tmp_path / "policy" / "train_config.json").write_text(json.dumps({"dataset": {"repo_id": "lerobot/pusht"}}))
    text = model_card(tmp_path / "policy")
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["datasets"]) == ("mit", ["lerobot/pusht"])
    assert data["tags"] == ["robotics", "diffusion-policy", "visuomotor", "lerobot"]
    assert "LeRobot 0.6 loads it with `DiffusionPolicy.from_pretrained`" in text


@pytest.mark.parametrize(
    ("source", "datasets"),
    [("lerobot/pusht_keypoints", ["lerobot/pusht_keypoints"]), ("pusht-demonstrations", None), ("/data/pusht", None)],
)
def test_a_run_tells_its_data_set(folder: Path, tmp_path: Path, source: str, datasets: list[str] | None) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / "checkpoints" / "step_000050" / "policy")
    (run / "config.json").write_text(json.dumps({"format_version": 1, "source": source, "recipe": {}}))
    assert ModelCard(model_card(run)).data.to_dict().get("datasets") == datasets


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "KeyError 'settings'"),
        ([], "TypeError "),
        (EVALUATION | {"success_rate_interval": [0.5]}, "ValueError "),
        (EVALUATION | {"episodes": []}, "ValueError "),
        (EVALUATION | {"success_rate": "high"}, "TypeError "),
    ],
)
def test_what_is_no_evaluation_is_refused(folder: Path, tmp_path: Path, content: Any, found: str) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(content))
    message = rf"^{re.escape(str(path))}: expected an evaluation, got {re.escape(found)}.*; pass the eval.json that "
    with pytest.raises(CheckpointError, match=message):
        model_card(folder, path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"eval.json: expected a JSON file, got none"):
        model_card(folder, path)

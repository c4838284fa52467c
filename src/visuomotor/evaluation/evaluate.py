"""A policy's figures on Push-T, written as one folder: `eval.json`, `report.html` and videos."""

import inspect
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from visuomotor import __version__
from visuomotor.config import DiffusionConfig, nearest
from visuomotor.errors import ConfigError, mismatch
from visuomotor.evaluation.intervals import wilson_interval
from visuomotor.evaluation.remote import RemoteChunks
from visuomotor.evaluation.report import report
from visuomotor.evaluation.video import episode_frames, write_video
from visuomotor.files import atomic_folder, write_bytes, write_json
from visuomotor.policy.checkpoint import find_policy, load_policy, weights_sha256
from visuomotor.policy.device import choose_device
from visuomotor.simulation.cluster import cluster, shares
from visuomotor.simulation.pusht import MAX_STEPS
from visuomotor.simulation.rollout import ChunkPolicy, Episode, rollout

ENVIRONMENTS = ("pusht",)
FIRST_SEED = 100_000
"""First of the seeds that published figures are measured on, as LeRobot's."""


def evaluate(
    policy_source: str | Path | None,
    *,
    output: str | Path,
    server: str | None = None,
    episodes: int = 500,
    seed: int = FIRST_SEED,
    env: str = "pusht",
    noise_scheduler_type: str | None = None,
    num_inference_steps: int | None = None,
    n_action_steps: int | None = None,
    ddim_eta: float | None = None,
    warm_start: float | None = None,
    max_steps: int = MAX_STEPS,
    videos: int = 3,
    environments: int | None = None,
    policy_batch: int = 64,
    device: str = "auto",
    ray: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures a policy from `episodes` initial states, `seed` and the seeds after it.

    Args:
        policy_source: As for `load_policy`: a policy's folder, a run's folder, a shipped policy or a hub name.
            None with `server`.
        output: The folder to write. That of an earlier evaluation is replaced; any other must be new or empty.
        server: The URL of `visuomotor serve`: act with its policy, as it is served.
        episodes: How many. 500 give an interval of about 8 percentage points, 50 of 25.
        seed: The first.
        env: The task; `pusht`.
        noise_scheduler_type: `DDPM`, `DDIM` or `DPMSolverMultistep` instead of the policy's own.
        num_inference_steps: Denoising steps instead of the policy's own.
        n_action_steps: Executed steps of each plan instead of the policy's own.
        ddim_eta: Noise that DDIM adds at every step, 0 to 1, instead of the policy's own.
        warm_start: Share of the diffusion's time at which each plan but the first starts, instead of the policy's own.
        max_steps: Steps after which an episode has failed.
        videos: Successes, and failures, to draw: so many of each.
        environments: Episodes that run at once; None runs all. Does not change the result.
        policy_batch: Episodes in each call of the policy.
        device: Where the policy runs: `cpu`, `cuda`, `mps`, or `auto` for the best there is.
        ray: Address of a Ray cluster whose workers share the episodes, cut at whole batches: `host:port`, `local`, or
            `auto` (`visuomotor.simulation.cluster.cluster`). None runs them here.
        progress: Show a bar.

    Returns:
        The content of `eval.json`: `success_rate`, `success_rate_interval` (Wilson, 95 %), `mean_max_coverage`,
        `mean_max_reward`, `episodes`, `settings`, `versions`, `seconds`.

    Raises:
        ConfigError: A setting is out of range, or the policy is not one for Push-T.
        CheckpointError: The policy cannot be loaded.
    """
    output = Path(output)
    _check(episodes, seed, env, max_steps, videos, environments, policy_batch)
    _check_output(output)
    sampler = {
        "noise_scheduler_type": noise_scheduler_type,
        "num_inference_steps": num_inference_steps,
        "n_action_steps": n_action_steps,
        "ddim_eta": ddim_eta,
        "warm_start": warm_start,
    }
    policy, told, folder = _open(policy_source, server, policy_batch, device, sampler, ray)
    began = time.perf_counter()
    rolling = partial(rollout, policy, max_steps=max_steps, environments=environments, policy_batch=policy_batch)
    seeds = range(seed, seed + episodes)
    try:
        if ray is None:
            results = rolling(seeds, progress=progress)
        else:
            results = _spread(rolling, seeds, policy_batch, ray, told["device"], progress)
    finally:
        if isinstance(policy, RemoteChunks):
            policy.close()
    seconds = time.perf_counter() - began
    settings = {
        **told,
        "env": env,
        **_sampler(policy.config),
        "max_steps": max_steps,
        "seed": seed,
        "policy_batch": policy_batch,
    }
    evaluation = summary(results) | {"settings": settings, "versions": versions(), "seconds": round(seconds, 1)}
    command = _command(
        policy_source,
        server=server,
        episodes=episodes,
        seed=seed,
        **sampler,
        max_steps=max_steps,
        policy_batch=policy_batch,
        device="auto" if server or told["device"] == "cpu" else told["device"],  # the command's own default is cpu
        output=output,
    )
    with atomic_folder(output) as draft:
        files = _write_videos(results, videos, draft / "videos")
        curves = None if folder is None else _metrics(folder)
        write_bytes(draft / "report.html", report(evaluation, command, files, curves).encode())
        write_json(draft / "eval.json", evaluation)
    return evaluation


def _open(
    policy_source: str | Path | None,
    server: str | None,
    policy_batch: int,
    device: str,
    sampler: dict[str, Any],
    ray: str | None,
) -> tuple[ChunkPolicy, dict[str, Any], Path | None]:
    """The policy, what the settings tell of it, and its folder if it lies here; `sampler` as for `with_sampler`."""
    if server is None and policy_source is not None:
        folder, device = find_policy(policy_source), choose_device(device)
        policy = load_policy(folder, device=device).with_sampler(**sampler)
        digest = weights_sha256(folder)
        told: dict[str, Any] = {"policy": str(policy_source), "weights_sha256": digest}
        if checkpoint := _checkpoint(folder):
            told["checkpoint"] = checkpoint
        told |= {"device": device, "threads": torch.get_num_threads()}
        return policy, told if ray is None else told | {"ray": ray}, folder
    if server is None or policy_source is not None:
        found = "none" if server is None else "both"
        raise ConfigError(mismatch("policy", "POLICY or --server", found, "give one of them"))
    if any(value is not None for value in sampler.values()):
        advice = "the server decides: give them to visuomotor serve"
        raise ConfigError(mismatch("--server", "no other sampler", "flags for one", advice))
    if ray is not None:
        raise ConfigError(mismatch("--ray", "no --server", "one", "a server has batches of its own: leave one out"))
    remote = RemoteChunks(server, policy_batch)
    told = {name: remote.told.get(name) for name in ("policy", "weights_sha256", "device", "threads")}
    return remote, told | {"server": server, "server_versions": remote.told.get("versions")}, None


def _spread(
    rolling: Callable[[Sequence[int]], list[Episode]],
    seeds: range,
    policy_batch: int,
    ray: str,
    device: str,
    progress: bool,
) -> list[Episode]:
    """The episodes of all seeds, in their order, rolled out by the workers of a Ray cluster."""
    done: dict[int, list[Episode]] = {}
    with cluster(ray, device) as workers:
        workers.spread(rolling, shares(seeds, workers.workers, policy_batch), done.__setitem__, progress)
    return [episode for number in sorted(done) for episode in done[number]]


def summary(results: Sequence[Episode]) -> dict[str, Any]:
    """The figures of some episodes, as they stand in `eval.json`."""
    count = len(results)
    solved = sum(episode.success for episode in results)
    return {
        "success_rate": solved / count,
        "success_rate_interval": list(wilson_interval(solved, count)),
        "mean_max_coverage": sum(episode.max_coverage for episode in results) / count,
        "mean_max_reward": sum(episode.max_reward for episode in results) / count,
        "episodes": [
            {name: getattr(episode, name) for name in ("seed", "success", "max_coverage", "max_reward", "steps")}
            for episode in results
        ],
    }


def versions() -> dict[str, str]:
    """What the figures were made with."""
    packages = ("numpy", "gym-pusht", "pymunk")
    return {
        "visuomotor": __version__,
        "torch": torch.__version__,  # with its build, which its package's metadata may leave out
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
    }


def _processor() -> str:
    """The processor's name; `platform.processor` knows it on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _sampler(config: DiffusionConfig) -> dict[str, Any]:
    return {
        "noise_scheduler_type": config.noise_scheduler_type,
        "num_inference_steps": config.num_inference_steps or config.num_train_timesteps,
        "n_action_steps": config.n_action_steps,
        "timesteps": None if config.timesteps is None else list(config.timesteps),
        "ddim_eta": config.ddim_eta,
        "warm_start": config.warm_start,
    }


def _command(policy_source: str | Path | None, **options: object) -> str:
    """What to type for the same figures; options that hold their default are left out."""
    defaults = {name: spec.default for name, spec in inspect.signature(evaluate).parameters.items()}
    always = ("episodes", "seed", "output")  # what a reader looks for first
    words = ["visuomotor", "eval", *([] if policy_source is None else [str(policy_source)])]
    for name, value in options.items():
        if name in always or value != defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _check(
    episodes: int, seed: int, env: str, max_steps: int, videos: int, environments: int | None, batch: int
) -> None:
    if env not in ENVIRONMENTS:
        advice = f"did you mean {nearest(env, ENVIRONMENTS)}?"
        raise ConfigError(mismatch("env", f"one of {list(ENVIRONMENTS)}", repr(env), advice))
    least = {
        "episodes": (episodes, 1),
        "seed": (seed, 0),
        "max_steps": (max_steps, 1),
        "videos": (videos, 0),
        "environments": (1 if environments is None else environments, 1),
        "policy_batch": (batch, 1),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ConfigError(mismatch(name, f"{lowest} or more", value, "choose a larger number"))


def _check_output(output: Path) -> None:
    """Only an earlier evaluation is replaced: nothing else of the user's."""
    if not output.exists():
        return
    found = sorted(path.name for path in output.iterdir()) if output.is_dir() else ["a file"]
    if set(found) - {"eval.json", "report.html", "videos"}:
        advice = "choose another output, or move this away"
        raise ConfigError(mismatch(str(output), "a new folder or an earlier evaluation", found[:8], advice))


def _write_videos(results: Sequence[Episode], count: int, folder: Path) -> list[Path]:
    """The first successes and the first failures, up to `count` of each."""
    chosen = [episode for episode in results if episode.success][:count]
    chosen += [episode for episode in results if not episode.success][:count]
    files = []
    for episode in chosen:
        folder.mkdir(exist_ok=True)
        files.append(folder / f"{'success' if episode.success else 'failure'}_{episode.seed}.mp4")
        write_video(files[-1], episode_frames(episode))
    return files


def _checkpoint(policy_folder: Path) -> str | None:
    """Which of a run's checkpoints a policy lies in, `step_000050`: the newest changes while a training goes on."""
    folder = policy_folder.resolve().parent
    return folder.name if folder.parent.name == "checkpoints" else None


def _metrics(policy_folder: Path) -> Path | None:
    """`metrics.jsonl` of the run that a checkpoint's policy lies in: RUN/checkpoints/step_000050/policy."""
    candidates = [parent / "metrics.jsonl" for parent in policy_folder.resolve().parents[:3]]
    return next((path for path in candidates if path.is_file()), None)

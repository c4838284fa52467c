"""The `visuomotor` command: one function a verb, each a thin call into the library.

What a user can mend is one line on the standard error, `error: ...`, and exit status 2; `--debug` adds the traceback.
Any other exception is a fault of ours: its traceback stays, and the status is 1.
"""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from visuomotor.config import nearest
from visuomotor.errors import ConfigError, VisuomotorError, mismatch
from visuomotor.flags import HIDDEN, parse
from visuomotor.options import (
    AlignOptions,
    CacheOptions,
    ConvertOptions,
    DemoOptions,
    DistillOptions,
    EvalOptions,
    ExportOptions,
    ImproveOptions,
    InfoOptions,
    PolicyOptions,
    RecordOptions,
    ReportOptions,
    ServeOptions,
    StudioOptions,
    TrainingOptions,
    TrainOptions,
    ValidateOptions,
)
from visuomotor.recipe import Recipe, TrainingConfig

# The library is imported inside the verbs: torch alone takes longer than `visuomotor --help` may.


def train(arguments: list[str]) -> None:
    """Train the policy of a preset on demonstrations."""
    from visuomotor.presets import PRESETS, preset

    names = ", ".join(PRESETS)
    first = arguments[0] if arguments else "nothing"
    asks_for_help = first in ("-h", "--help")
    if not arguments or (first.startswith("-") and not asks_for_help):
        raise ConfigError(mismatch("visuomotor train", f"a preset first ({names})", first, "begin with its name"))
    name, flags = ("pusht-image", arguments) if asks_for_help else (first, arguments[1:])
    recipe = preset(name)
    presets = "\n".join(f"  {known:22} {make.__doc__}" for known, make in PRESETS.items())
    about = f"{train.__doc__}\n\n{presets}\n\nThe defaults below are those of {name}."
    verb = "train PRESET" if asks_for_help else f"train {name}"
    options = parse(_train_defaults(recipe), verb, flags, about)
    if options.resume and (options.output / "config.json").is_file():
        from visuomotor.training.checkpoint import read_run

        recipe = read_run(options.output).recipe  # the flags of the first call need not be repeated
        options = parse(_train_defaults(recipe), verb, flags, about)

    from visuomotor.training.loop import train as run

    policy = dataclasses.replace(recipe.policy, **_visible(options.policy))
    training = TrainingConfig(**_visible(options.training))
    source = options.data[0] if len(options.data) == 1 else options.data
    checkpoint = run(Recipe(policy, training), source, options.output, resume=options.resume)
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process speaks for all
        return
    print(f"trained: {checkpoint}")
    _print_next(options.output, options.output)


def evaluate(arguments: list[str]) -> None:
    """Measure a policy in simulation: success with its interval, videos, a report."""
    remote = any(argument.partition("=")[0] == "--server" for argument in arguments)  # in place of POLICY
    required = EvalOptions(policy_source=None if remote else tyro.MISSING, output=tyro.MISSING)
    options = parse(required, "eval", _ray_alone(arguments), str(evaluate.__doc__))

    from visuomotor.evaluation.evaluate import evaluate as run

    _print_result(run(**dataclasses.asdict(options)), options.output)
    print(f"next:    open {options.output / 'report.html'} in a browser")


def improve(arguments: list[str]) -> None:
    """Roll a policy out, keep its quick successes, train on them too; several rounds. For simulated tasks."""
    required = ImproveOptions(policy_source=tyro.MISSING, data=tyro.MISSING, output=tyro.MISSING)
    options = parse(required, "improve", _ray_alone(arguments), str(improve.__doc__))

    from visuomotor.improvement import improve as run
    from visuomotor.improvement import table

    print(table(run(**dataclasses.asdict(options))))
    last = options.output / f"round_{options.rounds:03d}" / "run"
    print(f"next:    visuomotor eval {last} --episodes 500 --output {options.output / 'evaluation'}")


def distill(arguments: list[str]) -> None:
    """Teach a policy to act in one or two denoising steps."""
    required = DistillOptions(policy_source=tyro.MISSING, data=tyro.MISSING, output=tyro.MISSING)
    options = parse(required, "distill", arguments, str(distill.__doc__))

    from visuomotor.distillation import distill as run
    from visuomotor.distillation import table

    print(table(run(**dataclasses.asdict(options))))
    _print_next(options.output / f"stage_{options.inference_steps:02d}" / "run", options.output)


def validate(arguments: list[str]) -> None:
    """Measure a policy against recorded episodes, without a simulator: errors of each joint, drawn."""
    required = ValidateOptions(policy_source=tyro.MISSING, output=tyro.MISSING)
    options = parse(required, "validate", arguments, str(validate.__doc__))

    from visuomotor.evaluation.open_loop import as_text
    from visuomotor.evaluation.open_loop import validate as run

    print(as_text(run(**dataclasses.asdict(options))))
    print(f"report:  {options.output / 'validation.html'}")


def report(arguments: list[str]) -> None:
    """Draw a run's curves into RUN/report.html."""
    options = parse(ReportOptions(run=tyro.MISSING), "report", arguments, str(report.__doc__))

    from visuomotor.evaluation.curves import write_report

    print(f"report:  {write_report(options.run)}")


def serve(arguments: list[str]) -> None:
    """Serve a policy to robots and other clients on the network, until SIGTERM or Ctrl-C."""
    options = parse(ServeOptions(policy_source=tyro.MISSING), "serve", arguments, str(serve.__doc__))

    try:
        from visuomotor.deployment.serving import serve as run
    except ModuleNotFoundError as error:
        expected, advice = "its packages to be installed", "in a clone: pip install ./client '.[serve]'"
        raise ConfigError(mismatch("visuomotor serve", expected, f"no module {error.name}", advice)) from error

    run(**dataclasses.asdict(options))


def studio(arguments: list[str]) -> None:
    """Open a local page: watch a policy and push back, record demonstrations, train on them, compare evaluations."""
    options = parse(StudioOptions(), "studio", arguments, str(studio.__doc__))

    try:
        from visuomotor.studio.serving import studio as run
    except ModuleNotFoundError as error:
        expected, advice = "its packages to be installed", "pip install 'visuomotor[pusht,studio]'"
        raise ConfigError(mismatch("visuomotor studio", expected, f"no module {error.name}", advice)) from error

    run(**dataclasses.asdict(options))


def export(arguments: list[str]) -> None:
    """Write a policy as one folder that runs without Visuomotor, by ONNX Runtime, OpenVINO or torch."""
    required = ExportOptions(policy_source=tyro.MISSING, output=tyro.MISSING)
    options = parse(required, "export", arguments, str(export.__doc__))

    from visuomotor.deployment.export import export as run

    run(**dataclasses.asdict(options))
    print(f"exported: {options.output}")
    print(f"next:     python {options.output / 'act.py'}")


def convert(arguments: list[str]) -> None:
    """Write demonstrations as a LeRobot v3.0 data set, or a policy as LeRobot loads it."""
    required = ConvertOptions(source=tyro.MISSING, target=tyro.MISSING)
    options = parse(required, "convert", arguments, str(convert.__doc__))
    acting = {name: getattr(options, name) for name in ("noise_scheduler_type", "num_inference_steps")}
    if options.to == "lerobot":
        if options != ConvertOptions(options.source, options.target, options.to, **acting):
            advice = "leave out --episodes, --images, --video-codec and --revision: they are for demonstrations"
            raise ConfigError(mismatch("visuomotor convert --to lerobot", "a policy and TARGET alone", "more", advice))
        from visuomotor.policy.checkpoint import load_policy
        from visuomotor.policy.lerobot_export import save_lerobot

        policy = load_policy(options.source)
        if acting["noise_scheduler_type"] is not None:
            acting |= {"ddim_eta": 0.0, "warm_start": 1.0}
        policy = policy.with_sampler(**acting)
        save_lerobot(policy, options.target)
    else:
        for name, value in acting.items():
            if value is not None:
                flag, advice = f"--{name.replace('_', '-')}", "leave it out, or add --to lerobot"
                raise ConfigError(mismatch(flag, "a policy to convert", "demonstrations", advice))
        if options.images and options.video_codec:
            advice = "take one of them"
            raise ConfigError(mismatch("visuomotor convert", "--images or --video-codec", "both", advice))
        from visuomotor.data.conversion import convert as run

        video = None if options.images else options.video_codec or "auto"
        run(options.source, options.target, options.episodes, video=video, revision=options.revision)
    print(f"converted: {options.target}")


def align(arguments: list[str]) -> None:
    """Move Push-T's demonstrations so that each ends with its block on the target."""
    options = parse(AlignOptions(source=tyro.MISSING, output=tyro.MISSING), "align", arguments, str(align.__doc__))

    import numpy as np

    from visuomotor.data.pusht_alignment import align as run

    missed = run(options.source, options.output, options.episodes, options.revision)
    distance, angle = np.median(np.hypot(*missed[:, :2].T)), np.median(np.abs(missed[:, 2]))
    print(
        f"aligned: {len(missed)} episodes, moved by {distance:.1f} pixels and {np.degrees(angle):.1f} degrees (medians)"
    )
    print(f"next:    visuomotor train pusht-keypoints-aligned --data {options.output} --output outputs/aligned")


def info(arguments: list[str]) -> None:
    """Look at demonstrations: what they are, and what may be wrong with them."""
    options = parse(InfoOptions(source=tyro.MISSING), "info", arguments, str(info.__doc__))

    from rich.console import Console

    from visuomotor.data.dataset import Dataset, read
    from visuomotor.data.inspection import inspect, show

    demonstrations = read(options.source, options.episodes, options.revision)
    inspection = inspect(Dataset(demonstrations, check=False), options.frames)
    if options.json:
        print(json.dumps(inspection.to_json(), indent=2))
    else:
        show(inspection, Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    if options.strict and inspection.findings:
        raise SystemExit(1)


def demo(arguments: list[str]) -> None:
    """Train a small policy on the bundled demonstrations, measure it, write a report: some minutes."""
    options = parse(DemoOptions(), "demo", arguments, str(demo.__doc__))

    from visuomotor.evaluation.evaluate import evaluate as measure
    from visuomotor.presets import preset
    from visuomotor.training.loop import train as run

    recipe = preset("demo")
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=options.steps))
    run(recipe, "pusht-demonstrations", options.output, resume=True)
    result = measure(options.output, episodes=options.episodes, output=options.output / "evaluation")
    _print_result(result, options.output / "evaluation")
    print("next:    visuomotor eval pusht-keypoints-small --episodes 100 --output outputs/pusht-keypoints-small")


def record(arguments: list[str]) -> None:
    """Remake the bundled demonstrations: roll a policy out and keep what succeeded."""
    required = RecordOptions(policy=tyro.MISSING, output=tyro.MISSING)
    options = parse(required, "record", arguments, str(record.__doc__))

    from visuomotor.policy.checkpoint import load_policy
    from visuomotor.simulation.demonstrations import record as run

    run(load_policy(options.policy), options.episodes, options.seed, options.output, progress=True)
    print(f"recorded: {options.output}")


def cache(arguments: list[str]) -> None:
    """Show what the frame store holds, or empty it."""
    options = parse(CacheOptions(action=tyro.MISSING), "cache", arguments, str(cache.__doc__))

    from visuomotor.data.cache import clear, show

    if options.action == "list":
        show()
    else:
        count, size = clear()
        print(f"deleted: {count}, {size / 1e6:.1f} MB")


def _ray_alone(arguments: list[str]) -> list[str]:
    """With the address that `--ray` stands for where none follows it."""
    following = [*arguments, "--"][1:]
    pairs = zip(arguments, following, strict=True)
    return ["--ray=auto" if word == "--ray" and after.startswith("-") else word for word, after in pairs]


def _train_defaults(recipe: Recipe) -> TrainOptions:
    policy = PolicyOptions(**_visible(recipe.policy))
    training = TrainingOptions(**_visible(recipe.training))
    return TrainOptions(data=tyro.MISSING, output=tyro.MISSING, policy=policy, training=training)


def _visible(config: Any) -> dict[str, Any]:
    return {spec.name: getattr(config, spec.name) for spec in dataclasses.fields(config) if spec.name not in HIDDEN}


def _print_next(run: Path, output: Path) -> None:
    """How to measure a trained policy: in simulation where there is one."""
    from visuomotor.policy.checkpoint import find_policy, read_config
    from visuomotor.policy.device import choose_device

    simulated = read_config(find_policy(run)).output_features["action"].shape == (2,)  # as Push-T's
    verb, folder = ("eval", "evaluation") if simulated else ("validate", "validation")
    device = choose_device("auto") if simulated else "cpu"  # what `eval` takes unasked
    chosen = "" if device == "cpu" else f" --device {device}"
    print(f"next:    visuomotor {verb} {run} --output {output / folder}{chosen}")


def _print_result(result: dict[str, Any], output: Path) -> None:
    episodes = len(result["episodes"])
    rate, low, high = (f"{100 * share:.1f} %" for share in (result["success_rate"], *result["success_rate_interval"]))
    if checkpoint := result["settings"].get("checkpoint"):
        print(f"policy:  {checkpoint} of {result['settings']['policy']}")
    print(f"success: {rate} of {episodes} episodes (95 % interval: {low} to {high})")
    print(f"reward:  {result['mean_max_reward']:.3f}, the mean over episodes of the highest")
    print(f"report:  {output / 'report.html'}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "improve": improve,
    "distill": distill,
    "validate": validate,
    "report": report,
    "serve": serve,
    "studio": studio,
    "export": export,
    "convert": convert,
    "align": align,
    "info": info,
    "demo": demo,
    "record": record,
    "cache": cache,
}


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.__doc__}" for name, verb in VERBS.items())
    return f"""usage: visuomotor VERB [FLAGS]

Teaches robots from demonstrations with Diffusion Policy.

{verbs}

  visuomotor VERB --help      a verb's flags
  visuomotor VERB ... --debug the traceback of an error
  visuomotor --version        the version"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        return _run(given)
    except BrokenPipeError:  # whoever read the output has left: `visuomotor --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (VisuomotorError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        return 130


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(_help())
    elif verb == "--version":
        from visuomotor import __version__

        print(f"visuomotor {__version__}")
    elif verb in VERBS:
        VERBS[verb](rest)
    else:
        advice = f"did you mean {nearest(verb, VERBS)}?"
        raise ConfigError(mismatch("visuomotor", f"one of {list(VERBS)}", repr(verb), advice))
    return 0

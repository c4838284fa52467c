"""Writes `reference/state` from the shared folder: what the `state` case's tests of equality need anywhere.

It holds what LeRobot 0.6.2 (Apache-2.0) computed for two windows of Push-T's demonstrations (MIT). To remake it:
`python tests/policy/make_reference.py ../shared`.
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

# Left out to stay under 100 kB; the tests read these from the shared folder where it is.
LEFT_OUT = ("trace.", "grad_train.", "grad_eval.unet.down_modules.", "sample.ddim100.trajectory", "scheduler.")


def make_reference(source: Path, target: Path) -> None:
    """Copies a case of `policies/`, less what LEFT_OUT names and the gradients in training mode."""
    (target / "lerobot_checkpoint").mkdir(parents=True, exist_ok=True)
    for name in ("lerobot_checkpoint/config.json", "stats.safetensors"):
        shutil.copyfile(source / name, target / name)
    tensors = load_file(source / "tensors.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(LEFT_OUT)}
    save_file(kept, target / "tensors.safetensors")
    info = json.loads((source / "info.json").read_text())
    short = {
        key: {name: float(f"{v:.8g}") for name, v in info[key].items()} for key in ("grad_l2_eval", "grad_sum_eval")
    }
    (target / "info.json").write_text(json.dumps(short, separators=(",", ":")) + "\n")
    keys = json.loads((source / "state_dict_keys.json").read_text())
    (target / "state_dict_keys.json").write_text(json.dumps(keys, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    shared = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared")
    make_reference(shared / "lerobot" / "policies" / "state", Path(__file__).parent / "reference" / "state")

"""What LeRobot does with our files. Runs in LeRobot's environment and imports nothing of ours.

python lerobot_side.py read FOLDER OUTPUT DELTA_TIMESTAMPS INDEX...
python lerobot_side.py record FOLDER FRAMES
python lerobot_side.py act FOLDER INPUT OUTPUT
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file


def read(folder: str, output: str, delta_timestamps: str, *indices: str) -> None:
    """Items of a data set as `index/field`, their tasks and the statistics."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("visuomotor/test", root=folder, delta_timestamps=json.loads(delta_timestamps) or None)
    tensors, tasks = {"length": torch.tensor(len(dataset))}, {}
    for index in indices:
        item = dataset[int(index)]
        tasks[index] = item.pop("task")
        tensors |= {f"{index}/{name}": torch.as_tensor(value).contiguous() for name, value in item.items()}
    for name, values in dataset.meta.stats.items():
        tensors |= {f"stats/{name}/{key}": torch.as_tensor(value).contiguous() for key, value in values.items()}
    save_file(tensors, output, metadata=tasks)


def record(folder: str, frames: str) -> None:
    """Goes on with a data set by one episode of frames, as `safetensors` of (T, ...) tensors."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.resume("visuomotor/test", root=folder)
    columns = {name: values.numpy() for name, values in load_file(frames).items()}
    for row in range(len(columns["action"])):
        dataset.add_frame({name: values[row] for name, values in columns.items()} | {"task": "LeRobot's."})
    dataset.save_episode()
    dataset.finalize()


def act(folder: str, observation: str, output: str) -> None:
    """The chunk for a batch of raw observations and the noise that sampling starts from."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy = DiffusionPolicy.from_pretrained(folder).eval()
    before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
    batch = load_file(observation)
    noise = batch.pop("noise")
    chunk = policy.predict_action_chunk(before(batch), noise=noise)
    save_file({"chunk": after(chunk).contiguous()}, output)


if __name__ == "__main__":
    {"read": read, "record": record, "act": act}[sys.argv[1]](*sys.argv[2:])

"""Writes `reference/` from the shared folder: episodes 0 and 1 of Push-T with key points, and LeRobot's items of them.

    python tests/data/make_reference.py ../shared

The demonstrations are `lerobot/pusht_keypoints` (MIT licence).
"""

import json
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

EPISODES = 2


def make_reference(shared: Path, target: Path) -> None:
    """Cuts the data set off after two episodes, and keeps the samples that lie in them."""
    source, name = shared / "pusht/lerobot_v30_keypoints", "chunk-000/file-000.parquet"
    episodes = pq.read_table(source / "meta/episodes" / name).slice(0, EPISODES)
    episodes = episodes.select([column for column in episodes.column_names if not column.startswith("stats/")])
    frames = pq.read_table(source / "data" / name)
    frames = frames.filter(pc.less(frames["episode_index"], EPISODES))
    for folder, table in (("meta/episodes", episodes), ("data", frames)):
        path = target / "keypoints" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(), path, compression="zstd")
    tasks = pq.read_table(source / "meta/tasks.parquet").replace_schema_metadata()
    pq.write_table(tasks, target / "keypoints/meta/tasks.parquet")
    info = json.loads((source / "meta/info.json").read_text())
    info |= {"total_episodes": EPISODES, "total_frames": frames.num_rows, "splits": {"train": f"0:{EPISODES}"}}
    (target / "keypoints/meta/info.json").write_text(json.dumps(info, indent=1) + "\n")

    sampled = json.loads((shared / "lerobot/samples/keypoints.json").read_text())
    sampled["indices"] = [index for index in sampled["indices"] if index < frames.num_rows]
    (target / "keypoints_samples.json").write_text(json.dumps(sampled, indent=1) + "\n")
    items = load_file(shared / "lerobot/samples/keypoints.safetensors")
    kept = {key: value for key, value in items.items() if int(key.split("/")[0]) in sampled["indices"]}
    save_file(kept, target / "keypoints_samples.safetensors")


if __name__ == "__main__":
    make_reference(Path(sys.argv[1]), Path(__file__).parent / "reference")

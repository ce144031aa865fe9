"""embed.py beside the plain loop that a user would write: the same folder, the same torchvision network and weights.

    python experiments/benchmark/embed.py PHOTOS [--arch resnet18] [--size 224] [--repeats 3]

PHOTOS: a folder of a few thousand images. Each arm is a process of its own, timed from its start to its end, and the
two take turns. Ours prepares the folder once before; that time is printed too. The loop: PIL, torchvision's Resize,
CenterCrop and ToTensor, a DataLoader with a process for each core, batches of 64, torch.save at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import tyro

from simclr_ray.config import AugmentConfig, Config, ModelConfig
from simclr_ray.evaluate.embeddings import open_embeddings
from simclr_ray.export.encoder import export_encoder, load_pretrained
from simclr_ray.methods.build import build_encoder
from simclr_ray.orchestrate.prepare import prepare_into

HERE = Path(__file__).parents[2]
LOOP = """
import sys, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision import models, transforms as T

photos, weights, out, arch, size, mean, std = sys.argv[1:6] + [eval(word) for word in sys.argv[6:8]]
size, files = int(size), sorted(Path(photos).glob("*"))
resize = round(size * 256 / 224) if size >= 96 else size
transform = T.Compose([T.Resize(resize), T.CenterCrop(size), T.ToTensor(), T.Normalize(mean, std)])

class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return len(files)
    def __getitem__(self, number):
        return transform(Image.open(files[number]).convert("RGB"))

if __name__ == "__main__":
    model = models.get_model(arch)
    model.load_state_dict(load_file(weights), strict=False)
    model.fc = torch.nn.Identity()
    model.eval()
    with torch.inference_mode():
        loader = DataLoader(Photos(), batch_size=64, num_workers=torch.get_num_threads())
        features = torch.cat([model(images) for images in loader])
    torch.save({"files": [file.name for file in files], "features": features}, out)
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    photos: tyro.conf.Positional[Path]
    arch: str = "resnet18"
    size: int = 224
    repeats: int = 3


def main(arguments: Arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        run = storage / "run"
        config = Config(model=ModelConfig(arch=arguments.arch), augment=AugmentConfig(size=arguments.size))
        export_encoder(build_encoder(config.model, seed=0, size=arguments.size), config, str(run))
        started = perf_counter()
        rows = prepare_into(str(storage), str(arguments.photos.absolute())).rows
        print(f"{rows} images; prepared in {perf_counter() - started:.1f} s")
        (storage / "loop.py").write_text(LOOP)
        ours, loop = [], []
        for turn in range(arguments.repeats):
            loop.append(seconds(loop_command(arguments, storage, config)))
            out = storage / f"out{turn}"
            ours.append(
                seconds([str(HERE / "experiments/embed.py"), str(run), str(arguments.photos.absolute()), str(out)])
            )
            print(
                f"plain loop {rows / loop[-1]:.1f} images/s, embed.py {rows / ours[-1]:.1f}, {loop[-1] / ours[-1]:.2f}"
            )
        print(f"largest difference of a feature: {difference(storage / 'loop.pt', str(out)):.2g}")
        print(f"embed.py / plain loop, median of {arguments.repeats}: {median(loop) / median(ours):.2f}")


def loop_command(arguments: Arguments, storage: Path, config: Config) -> list[str]:
    pretrained = load_pretrained(str(storage / "run"))
    words = [storage / "loop.py", arguments.photos, storage / "run/encoder.safetensors", storage / "loop.pt"]
    return [*map(str, words), arguments.arch, str(arguments.size), repr(pretrained.mean), repr(pretrained.std)]


def seconds(command: list[str]) -> float:
    started = perf_counter()
    environment = os.environ | {"PYTHONPATH": str(HERE), "RAY_ADDRESS": "local"}
    subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    return perf_counter() - started


def difference(loop: Path, out: str) -> float:
    """Between the two arms' features, relative to the largest: Pillow's and our resize differ in rounding."""
    found = torch.load(loop)
    by_name = dict(zip(found["files"], found["features"].numpy(), strict=True))
    largest = 0.0
    for columns, features in open_embeddings(out).read():
        expected = np.stack([by_name[Path(path).name] for path in columns["path"].to_pylist()])
        largest = max(largest, float(np.abs(features - expected).max() / np.abs(expected).max()))
    return largest


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

"""Decoding and two views of a JPEG on one core: ours against the pipelines that SimCLR code uses, in one run.

    python experiments/benchmark/augment.py [--folder FOLDER_OF_JPEGS] [--check]

Prints source images/s (each gives two views), the ratio to torchvision on PIL, and the memory of a process that does
only ours. `--check` compares our views with torchvision v2 in float32 instead. Without a folder it draws the JPEGs.
"""

from __future__ import annotations

import io
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as F
import tyro
from PIL import Image, ImageFilter

from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import ViewParams, augment_pair, draw_views, render
from simclr_ray.data.decode import decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MEMORY_PROBE = """
import sys, numpy as np
from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import augment_pair
from simclr_ray.data.decode import decode
config = AugmentConfig()
out = np.empty((2, config.size, config.size, 3), np.uint8)
encoded = sys.stdin.buffer.read()
for i in range(50):
    augment_pair(decode(encoded), 0, 0, i, config, out)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def main(folder: Path | None = None, images: int = 32, repeats: int = 7, check: bool = False) -> None:
    torch.set_num_threads(1)
    if folder is None:
        encoded = [synthetic_jpeg(seed) for seed in range(images)]
    else:
        encoded = [path.read_bytes() for path in sorted(folder.rglob("*.jp*g"))[:images]]
    if check:
        print_errors(encoded)
    else:
        print_rates(encoded, repeats)


def print_rates(encoded: list[bytes], repeats: int) -> None:
    pipelines = {
        "torchvision v1 on PIL, PIL blur": on_pil(v1.Lambda(pil_blur)),
        "torchvision v1 on PIL, GaussianBlur(23)": on_pil(v1.GaussianBlur(23, (0.1, 2.0))),
        "torchvision v2 on uint8 tensors": on_tensors(),
        "simclr_ray": ours(),
        "decoding alone": decode,
    }
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for pipeline in pipelines.values():
        pipeline(encoded[0])
    for _ in range(repeats):
        for name, pipeline in pipelines.items():
            start = time.perf_counter()
            for jpeg in encoded:
                pipeline(jpeg)
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(encoded) / statistics.median(times) for name, times in seconds.items()}
    baseline = next(iter(rates.values()))
    print(f"{'pipeline':42}{'images/s':>10}{'ratio':>8}")
    for name, rate in rates.items():
        print(f"{name:42}{rate:10.0f}{rate / baseline:8.2f}")
    probe = subprocess.run([sys.executable, "-c", MEMORY_PROBE], input=encoded[0], capture_output=True, check=True)
    print(f"resident memory of a process that does only ours: {int(probe.stdout) / 1024:.0f} MiB")


def print_errors(encoded: list[bytes]) -> None:
    """Our views of every image against float torchvision with the same parameters, in levels of 255."""
    config = AugmentConfig()
    means, largest = [], []
    for i, jpeg in enumerate(encoded):
        image = decode(jpeg)
        for params in draw_views(0, 0, i, image.shape[0], image.shape[1], config):
            error = np.abs(render(image, params, config.size) - reference_view(image, params, config.size))
            means.append(error.mean())
            largest.append(error.max())
    print(f"{len(means)} views: mean error {np.mean(means):.3f}, worst view's {max(means):.3f}, max {max(largest):.3f}")


def reference_view(image: np.ndarray, params: ViewParams, size: int) -> np.ndarray:
    """(size, size, 3) float32 in 0..255: `render` in torchvision v2, on floats, without the rounding."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    x = F.resized_crop(x, params.top, params.left, params.height, params.width, [size, size], antialias=True)
    if params.flip:
        x = F.horizontal_flip(x)
    if params.jitter is not None:
        jitter = params.jitter
        operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for i in jitter.order:
            x = operations[i](x, factors[i])
    if params.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if params.blur_sigma > 0:
        kernel = max(3, size // 10 | 1)
        x = F.gaussian_blur(x, [kernel, kernel], [params.blur_sigma, params.blur_sigma])
    if params.solarize:
        x = F.solarize(x, 128 / 255)
    return (x * 255).permute(1, 2, 0).numpy()


def ours() -> Callable[[bytes], object]:
    config = AugmentConfig()
    out = np.empty((2, config.size, config.size, 3), np.uint8)
    return lambda jpeg: augment_pair(decode(jpeg), 0, 0, len(jpeg), config, out)


def on_pil(blur: Callable[[Image.Image], Image.Image]) -> Callable[[bytes], object]:
    """What lightly (with PIL's blur) and solo-learn do."""
    view = v1.Compose(
        [
            v1.RandomResizedCrop(224, scale=(0.08, 1.0)),
            v1.RandomHorizontalFlip(),
            v1.RandomApply([v1.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v1.RandomGrayscale(0.2),
            v1.RandomApply([blur], p=0.5),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )

    def pipeline(jpeg: bytes) -> object:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        return view(image), view(image)

    return pipeline


def pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def on_tensors() -> Callable[[bytes], object]:
    view = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def pipeline(jpeg: bytes) -> object:
        image = torch.from_numpy(decode(jpeg)).permute(2, 0, 1)
        return view(image), view(image)

    return pipeline


def synthetic_jpeg(seed: int, height: int = 385, width: int = 465) -> bytes:
    """Smooth colours, edges and noise: it compresses to about the size of a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / height
    waves = [np.sin(2 * np.pi * (rng.uniform(1, 12) * x + rng.uniform(1, 12) * y + rng.uniform())) for _ in range(6)]
    texture = np.stack([waves[c] + np.sign(waves[c + 3]) for c in range(3)], axis=2)
    pixels = 128 + 40 * texture + 12 * rng.standard_normal((height, width, 3))
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


if __name__ == "__main__":
    tyro.cli(main)

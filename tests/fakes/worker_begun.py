"""When imported: the imports of a worker, lazy ones too, and its kernels. Three seconds that no forked worker takes."""

from __future__ import annotations

import numpy as np
import pytest  # noqa: F401
import simplejpeg
import torch
import torch._dynamo
import torch.distributed
import torch.utils.tensorboard

import small_runs  # noqa: F401
from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import augment_pair
from simclr_ray.data.decode import decode

torch.set_num_threads(1)
_image = decode(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
augment_pair(_image, 0, 0, 0, AugmentConfig(size=8), np.empty((2, 8, 8, 3), np.uint8))

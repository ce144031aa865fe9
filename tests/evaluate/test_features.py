"""Images, their views and features: what is read and left out, that the encoder is not changed; evaluation of a run."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import v2

from simclr_ray.config import AugmentConfig, BadInput, Config, ModelConfig
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.cache import open_cache
from simclr_ray.data.dataset import UNLABELLED, Dataset
from simclr_ray.data.prepare.subset import balanced_part
from simclr_ray.data.prepare.writer import CHECKED, DatasetWriter
from simclr_ray.evaluate import images
from simclr_ray.evaluate.features import Pixels, extract
from simclr_ray.evaluate.images import centered, cropped, read_images
from simclr_ray.evaluate.logistic import GRID
from simclr_ray.evaluate.results import summary
from simclr_ray.export.encoder import export_encoder, load_encoder
from simclr_ray.methods.build import build_encoder
from simclr_ray.orchestrate.evaluate import evaluate_run
from simclr_ray.storage.location import open_location

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
CPU = torch.device("cpu")
SMALL = Config(model=ModelConfig(arch="resnet18", width=0.125, stem="cifar"), augment=AugmentConfig(size=32))


def image(row: int) -> np.ndarray:
    """Noise, brightest in the channel that tells its class, row % 3."""
    noise = np.random.default_rng(row).integers(0, 100, (32, 32, 3))
    return (noise + 150 * np.eye(3, dtype=int)[row % 3]).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def dataset(path, rows=20, *, bad=(), labels=None, classes=("red", "green", "blue"), first=0) -> Dataset:
    """Slices of 8; image `row` is image(first + row), undecodable for the rows of `bad`."""
    images = [b"no image" if row in bad else png(image(first + row)) for row in range(rows)]
    labels = [(first + row) % 3 for row in range(rows)] if labels is None else labels
    nothing = [None] * rows
    with DatasetWriter(open_location(str(path)), slice_rows=8) as writer:
        writer.add(pa.table([images, labels, nothing, [3072] * rows, nothing], schema=CHECKED))
        return writer.finish(classes, {"spec": "test"})


def all_of(batches):
    batches = list(batches)
    return [np.concatenate([getattr(batch, name) for batch in batches]) for name in ("pixels", "labels", "ids")]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(300, 400, 224), (401, 233, 224), (97, 98, 96), (500, 333, 32), (20, 33, 32), (7, 900, 64), (256, 256, 224)],
)
def test_center_view_is_torchvisions_resize_and_center_crop(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shorter = {224: 256, 96: 110, 64: 64, 32: 32}[size]
    reference = v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(size)])
    expected = reference(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(center_view(image, size).astype(int) - expected).max() <= 1


def test_center_view_of_an_image_of_that_size_is_the_image():
    assert np.array_equal(center_view(image(0), 32), image(0))


def test_every_image_is_read_once_in_order_the_short_slice_too(tmp_path):
    data = dataset(tmp_path / "d", rows=20)
    for batch_slices in (1, 2, 8):
        pixels, labels, ids = all_of(read_images(data, centered(32), batch_slices=batch_slices))
        assert ids.tolist() == list(range(20))
        assert labels.tolist() == [row % 3 for row in range(20)]
        assert np.array_equal(pixels, np.stack([image(row) for row in range(20)]))


def test_workers_share_the_first_rows_between_them(tmp_path):
    data = dataset(tmp_path / "d", rows=40)
    shares = [all_of(read_images(data, centered(32), slices=range(5)[r::3], rows=29))[2] for r in range(3)]
    assert [share.tolist() for share in shares] == [[*range(8), *range(24, 29)], [*range(8, 16)], [*range(16, 24)]]


def test_bad_images_are_left_out_and_counted(tmp_path):
    data = dataset(tmp_path / "d", rows=20, bad={3, 11, 12})
    batches = list(read_images(data, centered(32), batch_slices=1))
    assert [batch.bad for batch in batches] == [1, 2, 0]
    pixels, labels, ids = all_of(batches)
    assert 3 not in ids
    assert np.array_equal(pixels[3], image(4))
    assert labels.tolist() == (ids % 3).tolist()


def test_the_decoded_cache_gives_the_same_without_decoding(tmp_path, monkeypatch):
    data = dataset(tmp_path / "d", rows=20, bad={3, 11, 12})
    cache = open_cache(data, 1.0, str(tmp_path / "cache"))
    for view in (centered(16), centered(32), cropped(32, 1, 0)):
        plain = list(read_images(data, view, batch_slices=2))
        with monkeypatch.context() as patch:
            patch.setattr(images, "decode", None)
            cached = list(read_images(data, view, batch_slices=2, threads=3, cache=cache))
        for one, other in zip(plain, cached, strict=True):
            assert np.array_equal(one.pixels, other.pixels)
            assert one.ids.tolist() == other.ids.tolist()
            assert one.labels.tolist() == other.labels.tolist()
            assert (one.paths, one.bad) == (other.paths, other.bad)


def test_a_batch_without_a_good_image_is_bad_input(tmp_path):
    data = dataset(tmp_path / "d", rows=20, bad=range(8, 16))
    with pytest.raises(BadInput, match=r"none of the images 8\.\.15"):
        list(read_images(data, centered(32), batch_slices=1))


def test_missing_labels_are_marked(tmp_path):
    data = dataset(tmp_path / "d", rows=3, labels=[1, None, 0])
    assert all_of(read_images(data, centered(32)))[1].tolist() == [1, UNLABELLED, 0]


def test_crops_depend_on_seed_copy_and_image_alone(tmp_path):
    data = dataset(tmp_path / "d")

    def crops(seed, copy, **settings):
        return all_of(read_images(data, cropped(32, seed, copy), **settings))[0]

    assert np.array_equal(crops(1, 0), crops(1, 0, batch_slices=1, threads=1))
    assert np.array_equal(crops(1, 0)[8:16], crops(1, 0, slices=[1]))
    assert not np.array_equal(crops(1, 0), crops(1, 1))
    assert not np.array_equal(crops(1, 0), crops(2, 0))


def test_features_are_the_encoders_in_eval_mode_and_leave_no_trace(tmp_path):
    data = dataset(tmp_path / "d", bad={3})
    encoder = build_encoder(SMALL.model, seed=0, size=32).train()
    encoder.layer2.eval()  # a frozen part must stay so
    modes = [part.training for part in encoder.modules()]
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random = torch.get_rng_state()
    found = extract(encoder, read_images(data, centered(32), batch_slices=1), MEAN, STD, CPU)
    assert [part.training for part in encoder.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not found.h.requires_grad
    kept = [row for row in range(20) if row != 3]
    assert (found.ids.tolist(), found.labels.tolist(), found.bad) == (kept, [row % 3 for row in kept], 1)
    pixels = np.stack([image(row) for row in kept]) / 255
    expected = torch.from_numpy((pixels - MEAN) / STD).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(found.h, encoder.eval()(expected), rtol=1e-4, atol=1e-5)


def test_the_mode_is_restored_when_reading_fails(tmp_path):
    encoder = build_encoder(SMALL.model, seed=0, size=32).train()
    with pytest.raises(BadInput):
        extract(encoder, read_images(dataset(tmp_path / "d", bad=range(20)), centered(32)), MEAN, STD, CPU)
    assert encoder.training


def test_a_worker_without_slices_has_no_rows(tmp_path):
    data = dataset(tmp_path / "d")
    found = extract(Pixels(32), read_images(data, centered(32), slices=[]), MEAN, STD, CPU)
    assert found.h.shape == (0, 3072)
    assert len(found.labels) == 0


def test_a_float64_encoder_computes_in_float64(tmp_path):
    encoder = build_encoder(SMALL.model, seed=0, size=32).double()
    assert extract(encoder, read_images(dataset(tmp_path / "d"), centered(32)), MEAN, STD, CPU).h.isfinite().all()


@pytest.fixture
def run(tmp_path):
    export_encoder(build_encoder(SMALL.model, seed=1, size=32), SMALL, str(tmp_path / "runs" / "r1"))
    return tmp_path / "runs" / "r1"


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_a_run_is_scored_beside_its_baselines(run, tmp_path, method):
    train = dataset(tmp_path / "train", rows=60, bad={1})
    test = dataset(tmp_path / "test", rows=30, bad={2, 9}, first=60)
    first = evaluate_run(str(run), method, train.uri, test.uri, neighbours=10)
    file = str(run / "encoder.safetensors")
    row = evaluate_run(file, method, train.uri, test.uri, neighbours=10, baselines=True, crops=2)
    assert list(row["results"]) == ["pretrained", "untrained", "pixels"]
    assert (row["train_rows"], row["test_rows"], row["bad"]) == (59, 28, 3)
    assert row["results"]["pixels"]["top1"] > 90  # the colour alone tells the classes
    assert row["results"]["pretrained"]["top1"] > 60
    written = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert written == [first, row]
    assert summary(row).splitlines()[-1].startswith("pixels ")
    sha256 = hashlib.sha256((run / "encoder.safetensors").read_bytes()).hexdigest()
    assert (row["encoder"], row["encoder_sha256"]) == ("encoder.safetensors", sha256)


def test_transfer_is_scikit_learns_regression_of_the_strength_chosen_on_a_fifth_of_the_training_images(run, tmp_path):
    train, test = dataset(tmp_path / "train", rows=60), dataset(tmp_path / "test", rows=30, first=60)
    images, scale = (read_images(data, centered(32)) for data in (train, test)), (SMALL.data.mean, SMALL.data.std)
    bank, queries = (extract(load_encoder(str(run)), batches, *scale, CPU) for batches in images)
    held_out = np.isin(np.arange(60), balanced_part(bank.labels.numpy(), 0.2, seed=3))
    assert np.bincount(bank.labels[held_out]).tolist() == [4, 4, 4]
    x, y = bank.h.double().numpy(), bank.labels.numpy()

    def fitted(l2, rows):
        newton = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-9, max_iter=300)
        return newton.fit(x[rows], y[rows])

    scores = {l2: fitted(l2, ~held_out).score(x[held_out], y[held_out]) for l2 in GRID}
    chosen = max(l2 for l2 in GRID if scores[l2] == max(scores.values()))
    expected = 100 * fitted(chosen, slice(None)).score(queries.h.double().numpy(), queries.labels.numpy())
    found = evaluate_run(str(run), "transfer", train.uri, test.uri, seed=3)["results"]["pretrained"]
    assert (found["l2"], found["top1"]) == (chosen, pytest.approx(expected, abs=1e-3))


def test_the_mean_over_classes_is_shown_where_they_differ_in_size(run, tmp_path):
    row = evaluate_run(str(run), "knn", dataset(tmp_path / "train").uri, dataset(tmp_path / "test", rows=9).uri)
    row["results"]["pretrained"] |= {"top1": 70.0, "mean_per_class": 70.1}
    assert "per class" not in summary(row)
    row["results"]["pretrained"]["mean_per_class"] = 61.5
    assert summary(row).splitlines()[2:] == [
        f"{'':<12}{'top-1 %':>13}{'top-5 %':>13}{'per class %':>13}",
        f"{'pretrained':<12}{70.0:>13.2f}{100.0:>13.2f}{61.5:>13.2f}",
    ]


def test_what_cannot_be_scored_is_bad_input(run, tmp_path):
    train = dataset(tmp_path / "train").uri
    unlabelled = dataset(tmp_path / "unlabelled", rows=3, labels=[1, None, 0]).uri
    four = dataset(tmp_path / "four", classes=("a", "b", "c", "d")).uri
    unnamed = dataset(tmp_path / "unnamed", rows=3, labels=[0, 1, 7], classes=None).uri
    for test, said in ((unlabelled, "without labels"), (four, "3 classes .* 4 of"), (unnamed, "labels up to 7")):
        with pytest.raises(BadInput, match=said):
            evaluate_run(str(run), "knn", train, test)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(BadInput, match=r"unfinished has no encoder\.safetensors"):
        evaluate_run(str(tmp_path / "unfinished"), "knn", train, train)
    for settings in ({"neighbours": 0}, {"temperature": 0.0}, {"crops": -1}, {"seed": -1}):
        with pytest.raises(BadInput, match=next(iter(settings))):
            evaluate_run(str(run), "linear", train, train, **settings)
    assert not (run / "evaluation.jsonl").exists()


def test_a_result_that_cannot_be_written_is_not_lost(run, tmp_path):
    data = dataset(tmp_path / "d").uri
    (run / "evaluation.jsonl").mkdir()
    with pytest.raises(BadInput, match=r"cannot write .*the result is .*\"top1\""):
        evaluate_run(str(run), "knn", data, data)

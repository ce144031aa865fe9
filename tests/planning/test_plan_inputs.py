"""What a plan rests on: the recipe in numbers, a model's cost, machines; a run beside it; the command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from plans import FLEET, GPU_NODE, JOB
from simclr_ray.cli.plan import main
from simclr_ray.config import BadInput, BYOLConfig, Config, ModelConfig
from simclr_ray.planning import cost as plan_cost
from simclr_ray.planning.cost import gpu_images_per_s, model_cost, pass_gib
from simclr_ray.planning.estimate import plan
from simclr_ray.planning.figures import Figure, default_figures
from simclr_ray.planning.fleet import nodes_for
from simclr_ray.planning.job import Images, images_of, job_of, memory_warning, share_warning
from simclr_ray.planning.machines import A100_80, H100, H100_NVL, H200, INSTANCES, Gpu, instance, kind_of
from simclr_ray.planning.measure import measure, this_machine
from simclr_ray.report.plan import table
from small_runs import TINY, synthetic_dataset

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RESNET50 = ModelConfig(head_hidden=2048)
CIFAR = ModelConfig(arch="resnet18", stem="cifar", head_hidden=512, head_batchnorm=True)


# The recipe in numbers


def test_more_workers_take_as_many_samples() -> None:
    cost, images = model_cost(CIFAR, 32), Images(count=50_000, kb=2.0, cached=True)
    config = Config().with_overrides({"train.global_batch": 512, "train.epochs": 10})
    jobs = {workers: job_of(config, cost, images, workers, threads=1) for workers in (1, 2, 3, 16)}
    assert {job.steps for job in jobs.values()} == {10 * (50_000 // 512)}
    assert {workers: job.busiest_rows for workers, job in jobs.items()} == {1: 512, 2: 256, 3: 192, 16: 32}
    with pytest.raises(BadInput, match="more than the 16 slices"):
        job_of(config, cost, images, 17, threads=1)
    split = job_of(config.with_overrides({"train.pass_size": 128}), cost, images, 3, threads=1)
    assert (split.passes, split.busiest_rows) == (4, 4 * 64)


def test_images_are_counted_where_they_are(tmp_path: Path) -> None:
    data = synthetic_dataset(tmp_path, 100)
    config = Config().with_overrides({"resources.cache_gib": 2.0})
    assert images_of(config.with_overrides({"data.train": data.uri}), None, None).count == 100
    assert images_of(config.with_overrides({"data.train": data.uri}), None, None).prepared
    drawn = images_of(config.with_overrides({"data.train": "synthetic:4096:64px"}), None, None)
    assert drawn == Images(count=4096, kb=(700 + 9 * 64 * 64 // 5) / 1000, cached=True)
    assert images_of(config, 1_281_167, None) == Images(count=1_281_167, kb=pytest.approx(110), cached=False)
    assert images_of(config, 1000, 8.0) == Images(count=1000, kb=8.0, cached=True)
    for train in ("torchvision:CIFAR10", str(tmp_path / "none")):
        with pytest.raises(BadInput, match="--images"):
            images_of(config.with_overrides({"data.train": train}), None, None)


def test_workers_are_packed_onto_as_few_nodes_as_hold_them() -> None:
    settings = Config().resources
    assert [nodes_for(workers, instance("p5.48xlarge"), settings) for workers in (1, 8, 9)] == [1, 1, 2]
    assert nodes_for(4, instance("g6.xlarge"), settings) == 4
    threaded = replace(settings, cpus_per_worker=3.0, data_cpus=1.0)
    assert nodes_for(5, instance("c7a.4xlarge"), threaded) == 2
    shared = replace(settings, gpus_per_worker=0.2)
    assert [nodes_for(n, instance("p5.48xlarge"), shared) for n in (40, 41)] == [1, 2], "floats would make it 39"
    with pytest.raises(BadInput, match="holds 0 of 1 workers"):
        nodes_for(1, instance("g6.xlarge"), replace(settings, cpus_per_worker=5.0))


def test_a_pass_that_does_not_fit_is_reported_with_what_does() -> None:
    config = Config(model=RESNET50)
    cost, images = model_cost(RESNET50, 224), Images(count=1_281_167, kb=110.0, cached=False)
    for workers, fewest, machine, says in (
        (8, 8, "p5.48xlarge", None),
        (8, 1, "p5.48xlarge", "about 329 GiB on each GPU, with the fewest workers that the run goes on with (1)"),
        (8, 1, "p5.48xlarge", "--train.pass-size 512, or --resources.min-workers 5"),
        (4, 4, "g6e.xlarge", "to spare: --train.pass-size 1024"),
        (4, 1, "g6e.xlarge", "to spare: --train.pass-size 256"),
    ):
        config = config.with_overrides({"resources.min_workers": fewest, "resources.max_workers": workers})
        fleet = replace(FLEET, workers=workers, machine=instance(machine))
        job = job_of(config, cost, images, workers, threads=1)
        warning = memory_warning(config, cost, job, fleet)
        assert warning is None if says is None else says in (warning or "")
    assert pass_gib(cost, 512) == pytest.approx(41, rel=0.02)


@pytest.mark.parametrize(
    ("pass_size", "fewest", "workers", "says"),
    [
        (256, 1, 8, "8 slices of 32: 7 workers are no faster than 4 and idle for 43% of it: --train.pass-size 1024"),
        (256, 5, 5, "5 workers are no faster than 4"),
        (256, 8, 8, None),
        (1024, 3, 8, None),
        (4096, 7, 100, "100 workers are no faster than 64 and idle for 36% of it: another number"),
    ],
)
def test_slices_that_divide_badly_are_reported_with_a_pass_that_does_not(
    pass_size: int, fewest: int, workers: int, says: str | None
) -> None:
    config = Config().with_overrides(
        {"train.global_batch": 4096, "train.pass_size": pass_size, "resources.min_workers": fewest}
    )
    images = Images(count=50_000, kb=2.0, cached=True)
    job = job_of(config, model_cost(CIFAR, 32), images, workers, threads=1)
    warning = share_warning(config, job, replace(FLEET, workers=workers))
    assert warning is None if says is None else says in (warning or "")


# What a model costs


def test_the_cost_of_a_model_is_counted() -> None:
    found = model_cost(RESNET50, 224)
    assert found.flop == pytest.approx(plan_cost.RESNET50.flop, rel=1e-3)
    assert found.activations == pytest.approx(plan_cost.RESNET50.activations, rel=2e-3)
    assert found.trained_parameters == found.parameters
    taught = model_cost(RESNET50, 224, BYOLConfig())
    assert taught.trained_parameters < taught.parameters < 2 * taught.trained_parameters
    assert (found.parameters, found.batchnorms) == (plan_cost.RESNET50.parameters, plan_cost.RESNET50.batchnorms)
    wide = model_cost(replace(RESNET50, width=4.0, head_hidden=None), 224)
    assert wide.activations == pytest.approx(4 * found.activations, rel=0.01)
    assert wide.flop == pytest.approx(16 * found.flop, rel=0.05)
    assert model_cost(RESNET50, 448).flop == pytest.approx(4 * found.flop, rel=0.02)


def test_a_linear_layer_costs_what_it_must() -> None:
    """The head alone, by hand: two views, one product forward and two backward, two operations a weight."""
    none, linear = (model_cost(replace(CIFAR, head=head, head_dim=96), 32) for head in ("none", "linear"))
    assert linear.flop - none.flop == 2 * 3 * 2 * 512 * 96
    assert linear.activations - none.activations == 2 * 96
    assert linear.parameters - none.parameters == 512 * 96 + 96


def test_gpu_rates_meet_both_that_were_measured() -> None:
    assert gpu_images_per_s(model_cost(RESNET50, 224), H200) == pytest.approx(3641, rel=0.01)
    assert gpu_images_per_s(model_cost(CIFAR, 32), H200) == pytest.approx(50_000 / 1.2, rel=0.05)


def test_a_gpu_is_as_fast_as_its_memory_and_arithmetic() -> None:
    cost = model_cost(RESNET50, 224)
    half = Gpu(name="half", memory_gb=1, bandwidth_tb_s=2.4, bf16_tflops=989 / 2, link_gb_s=1)
    assert gpu_images_per_s(cost, half) == pytest.approx(gpu_images_per_s(cost, H200) / 2)
    rates = [gpu_images_per_s(cost, gpu) for gpu in (H200, H100, A100_80)]
    assert rates == sorted(rates, reverse=True)


# Machines and figures


def test_an_instance_is_looked_up_or_the_known_ones_are_listed() -> None:
    assert instance("p5.48xlarge").gpus == 8
    with pytest.raises(BadInput, match="is called 'p9.large': take one of local, g5.xlarge"):
        instance("p9.large")
    for name, row in INSTANCES.items():
        assert row.name == name
        assert (row.gpus > 0) == (row.gpu is not None)
        assert min(row.vcpus, row.memory_gib, row.network_gbit_s, row.usd_per_hour) > 0


def test_a_device_is_known_by_its_name() -> None:
    assert kind_of("NVIDIA H200") is H200
    assert kind_of("NVIDIA H100 80GB HBM3") is H100
    assert kind_of("NVIDIA H100 NVL") is H100_NVL
    assert kind_of("NVIDIA A100-SXM4-80GB") is A100_80
    assert kind_of("Tesla T4") is None


def test_every_figure_says_where_it_comes_from_and_a_given_one_says_so() -> None:
    cost = model_cost(RESNET50, 224)
    job = replace(JOB, size=224, view_pixels=2 * 224**2, image_kb=110.0, cached=False)
    h200, aws = (replace(FLEET, machine=machine) for machine in (GPU_NODE, instance("g6.xlarge")))
    figures = default_figures(job, cost, h200)
    assert figures.step_images_per_s.value == pytest.approx(3641, rel=0.01)
    assert figures.core_images_per_s.value == pytest.approx(923)
    assert not figures.core_images_per_s.source.startswith("assumed")
    other = default_figures(job, cost, aws)
    assert other.step_images_per_s.source.startswith("assumed")
    assert other.usd_per_hour == Figure(value=0.35, source="assumed: typical of US regions in 2025")
    given = other.given(usd_per_hour=0.5, step_images_per_s=None)
    assert given.usd_per_hour == Figure(value=0.5, source="given")
    assert given.step_images_per_s == other.step_images_per_s
    text = table(plan(job, aws, given), job, aws, given)
    for name, figure in given.rows():
        assert figure.source
        assert any(line.startswith(name) and line.endswith(figure.source) for line in text.splitlines())


def test_this_machine_trains_and_feeds_what_is_measured() -> None:
    machine = this_machine()
    assert machine.vcpus >= 1
    config = TINY.with_overrides({"data.train": "synthetic:64", "train.global_batch": 64})
    job = job_of(config, model_cost(config.model, 16), images_of(config, None, None), 1, threads=1)
    found = measure(config, job, seconds=0.1)
    assert found.step_images_per_s > 1
    assert found.core_images_per_s > 1
    assert found.images == "synthetic:512:16px"


# The command


def test_the_command_answers_and_overrides_count(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--instance", "g6e.2xlarge", "--workers", "8", "--cpu-instance", "c7a.8xlarge", "--cpu-workers", "2"]
    main(["imagenet_rn50_100ep", *flags, "--images", "1281167", "--spot-price", "0.9", "--train.epochs", "10"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 workers on 8 x g6e.2xlarge and 2 x c7a.8xlarge, 14 CPUs")
    assert lines[0].endswith("3,120 steps of 4,096 images")
    for start in ("time  ", "price  ", "bottleneck  ", "goodput  "):
        assert any(line.startswith(start) for line in lines)
    assert any(line.split() == ["usd_per_hour", "0.9", "given"] for line in lines)
    assert lines[-1].startswith("warning: a pass takes about")


def test_a_thousand_gpus_and_400_million_images_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--instance", "p5.48xlarge", "--workers", "1024", "--images", "400000000", "--model.arch", "resnet18"]
    main(["imagenet_rn50_100ep", *flags, "--train.global-batch", "32768"])
    lines = capsys.readouterr().out.splitlines()
    found = {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words}
    assert found["bottleneck"] == "store"
    assert found["sync_ms"].startswith("1.05 ")
    hours = 400e6 * 0.11 / float(found["prepare_mb_per_s"].split()[0]) / 3600
    assert found["prepare"].startswith(f"{hours:.1f} h")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--instance", "g6.xlarge", "--cpu-workers", "2"], "--cpu-instance"),
        (["--instance", "g6.xlarge", "--cpu-instance", "p9.large"], "take one of local, g5.xlarge"),
        (["--instance", "g6.xlarge", "--data.train", "torchvision:CIFAR10"], "--images"),
        (["--instance", "g6.xlarge", "--workers", "17"], "more than the 8 slices"),
        (["--instance", "g6.xlarge", "--resources.cpus-per-worker", "4"], "leave 0 of 4 CPUs"),
        (["--workers", "9999"], "of 9,999 workers"),
        (["--instance", "g6.xlarge", "--against", "nowhere"], "there is no run nowhere"),
        (["--wrokers", "2"], "--workers"),
    ],
)
def test_what_cannot_be_planned_is_bad_input(arguments: list[str], says: str) -> None:
    with pytest.raises(BadInput) as raised:
        main(["quickstart", *arguments])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_instance_is_one_line_and_exit_2() -> None:
    line = [sys.executable, str(EXPERIMENTS / "plan.py"), "quickstart", "--instance", "p9.large"]
    done = subprocess.run(line, cwd=EXPERIMENTS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "take one of local, g5.xlarge" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

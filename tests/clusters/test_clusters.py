"""The cluster files: Ray and KubeRay accept them, they agree with each other and with their documentation."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from commands import ROOT
from simclr_ray.planning.machines import INSTANCES

CLUSTERS = ROOT / "clusters"
LAUNCHED = ("aws", "gcp", "azure", "local")


def cluster(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


def kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    """The RayCluster and the RayJob."""
    ray_cluster, ray_job = yaml.safe_load_all((CLUSTERS / "kuberay.yaml").read_text())
    return ray_cluster, ray_job


def versions() -> dict[str, str]:
    """Of versions.env, and Ray's of constraints.txt."""
    lines = (CLUSTERS / "versions.env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    [ray] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return found | {"RAY": ray}


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name: str) -> None:
    prepared = prepare_config(cluster(name))
    validate_config(prepared)
    commands = [*prepared["setup_commands"], *prepared["head_setup_commands"], *prepared["worker_setup_commands"]]
    assert not [command for command in commands if "setup-node.sh" not in command]  # none of Ray's defaults is left


def test_kuberay_accepts_the_file_and_rejects_a_misspelt_one() -> None:
    schema = yaml.safe_load((ROOT / "tests" / "kuberay_schema.yaml").read_text())
    ray_cluster, ray_job = kuberay()
    for document in (ray_cluster, ray_job):
        jsonschema.validate(document, schema)
    ray_cluster["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(ray_cluster, schema)


def test_versions_equal_those_of_versions_env() -> None:
    pinned = versions()
    short = "py" + pinned["PYTHON"].replace(".", "")
    assert pinned["KUBERAY_BASE_IMAGE"] == f"rayproject/ray:{pinned['RAY']}-{short}"
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    assert re.findall("^FROM (.*)$", dockerfile, re.MULTILINE) == [pinned["KUBERAY_BASE_IMAGE"]]
    ray_cluster, _ = kuberay()
    assert ray_cluster["spec"]["rayVersion"] == pinned["RAY"]
    images = re.findall(r"simclr_ray:(\S+)", dockerfile + (CLUSTERS / "kuberay.yaml").read_text())
    assert set(images) == {f"{pinned['RAY']}-{short}"}
    for node_type in cluster("gcp")["available_node_types"].values():
        [disk] = node_type["node_config"]["disks"]
        assert disk["initializeParams"]["sourceImage"] == pinned["GCP_IMAGE"]
    for node_type in cluster("azure")["available_node_types"].values():
        image = node_type["node_config"]["azure_arm_parameters"]
        names = [image[key] for key in ("imagePublisher", "imageOffer", "imageSku", "imageVersion")]
        assert ":".join(names) == pinned["AZURE_IMAGE"]
    for file in CLUSTERS.iterdir():
        assert set(re.findall(r"ray(?:/ray)?[:=]+(\d+\.\d+\.\d+)", file.read_text())) <= {pinned["RAY"]}, file


def test_the_image_has_a_compiler_and_runs_as_ray() -> None:
    """Triton compiles at the first step on a GPU: without gcc every pod fails there."""
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    [installed] = re.findall(r"apt-get install .*--no-install-recommends (.*?) &&", dockerfile)
    assert set(installed.split()) >= {"gcc", "libc6-dev"}
    assert re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)[-1] == "ray"


def test_every_worker_starts_ray_with_its_watcher_and_the_head_never_trains() -> None:
    for name in LAUNCHED:
        config = cluster(name)
        [start] = config["worker_start_ray_commands"]
        assert start.split()[1:5] == ["none" if name == "local" else name, "ray", "start", "--block"]
        [head] = config["head_start_ray_commands"]
        assert {"--block", "--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1"} <= set(head.split())
        if name != "local":
            assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    ray_cluster, _ = kuberay()
    spec = ray_cluster["spec"]
    assert ray_cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["args"] == [
            "exec /home/ray/simclr_ray/clusters/start-node.sh --foreground none $KUBERAY_GEN_RAY_START_CMD"
        ]
        grace = {variable["name"]: variable["value"] for variable in container["env"]}["GRACE_S"]
        assert pod["terminationGracePeriodSeconds"] >= int(grace) + 45  # Ray drains for 30 s of its own


def test_pods_are_not_root_and_have_limits() -> None:
    ray_cluster, _ = kuberay()
    spec = ray_cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert spec["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", ["aws", "gcp", "azure"])
def test_the_planner_knows_what_is_started_to_train_and_to_augment(name: str) -> None:
    types = cluster(name)["available_node_types"]
    text = json.dumps({key: value for key, value in types.items() if key != cluster(name)["head_node_type"]})
    found = re.findall(r'"(?:InstanceType|machineType|vmSize)": "([^"]+)"', text)
    assert len(found) >= 3
    assert set(found) <= INSTANCES.keys()


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_command_that_trains_asks_for_gpus(name: str) -> None:
    """Else a cluster whose machines with GPUs are still on their way trains on what is there."""
    [command] = re.findall(r"#   train .*?(?=#   watch)", (CLUSTERS / f"{name}.yaml").read_text(), re.DOTALL)
    assert "--resources.gpus-per-worker 1 --resources.max-workers 8" in command


def test_an_azure_head_may_give_its_identity_to_workers() -> None:
    """It lies in a group that Ray's own role assignment does not cover."""
    provider = cluster("azure")["provider"]
    assert provider["msi_resource_group"] != provider["resource_group"]
    assert "Managed Identity Operator" in (CLUSTERS / "azure.yaml").read_text()

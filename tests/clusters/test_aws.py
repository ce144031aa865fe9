"""clusters/aws.yaml and its stack against moto: permissions, machine types, and that every machine is terminated.

Moto starts no machine: what `ray up` would do on one over SSH is written down instead, so no address is ever dialled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import boto3
import pytest
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from commands import ROOT
from moto_server import CREDENTIALS, moto_server

CLUSTERS = ROOT / "clusters"
RAY = Path(sys.executable).parent / "ray"
# In the place of ssh and rsync. What the head's autoscaler is sent lands in the home folder, as on the head.
STUBS = {
    "ssh": '#!/bin/bash\nprintf "%s\\n" "${*: -1}" >>"$STUBS/ssh.log"\n',
    "rsync": '#!/bin/bash\nprintf "%s\\n" "$*" >>"$STUBS/rsync.log"\nsource=${*: -2:1} target=${*: -1}\n'
    'if [[ $target == *:~/ray_bootstrap_* ]]; then cp "$source" "$HOME/${target##*/}"; fi\n',
}


class Account:
    """An empty AWS account at moto, the stack of aws-account.yaml in it, and aws.yaml filled in for both."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.home, self.stubs, self.endpoint = folder, folder / "stubs", endpoint
        self.environment = os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint, "RAY_ADDRESS": ""}
        self.environment |= {"HOME": str(folder), "TMPDIR": str(folder)}  # Ray's key, and its memory of earlier calls
        self.environment |= {"STUBS": str(self.stubs), "PATH": f"{self.stubs}:{os.environ['PATH']}"}
        self.ec2, cloudformation = self.client("ec2"), self.client("cloudformation")
        vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        cloudformation.create_stack(
            StackName="simclr",
            TemplateBody=(CLUSTERS / "aws-account.yaml").read_text(),
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in {"Bucket": "simclr-test", "Vpc": vpc, "SshFrom": "203.0.113.7/32"}.items()
            ],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        [stack] = cloudformation.describe_stacks()["Stacks"]
        self.outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        self.config = folder / "aws.yaml"
        text = (CLUSTERS / "aws.yaml").read_text()
        text = text.replace("ami-0123456789abcdef0", self.ec2.describe_images()["Images"][0]["ImageId"])
        self.config.write_text(text.replace("sg-0123456789abcdef0", self.outputs["SecurityGroup"]))

    def client(self, service: str) -> Any:
        key, secret = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
        where = {"endpoint_url": self.endpoint, "region_name": CREDENTIALS["AWS_DEFAULT_REGION"]}
        return boto3.client(service, aws_access_key_id=key, aws_secret_access_key=secret, **where)

    def ray(self, command: str) -> None:
        done = subprocess.run(
            [RAY, command, "--yes", str(self.config)],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def running(self, node_type: str) -> list[dict[str, Any]]:
        filters = [
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
            {"Name": "tag:ray-user-node-type", "Values": [node_type]},
        ]
        found = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]

    def sent(self, log: str) -> str:
        return (self.stubs / log).read_text()


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("aws")
    (folder / "stubs").mkdir()
    for name, text in STUBS.items():
        (folder / "stubs" / name).write_text(text)
        (folder / "stubs" / name).chmod(0o755)
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("ab" * 16)
    with moto_server() as endpoint:
        yield Account(endpoint, folder)


def test_the_group_lets_in_its_own_nodes_and_one_range_for_ssh(account: Account) -> None:
    [group] = account.ec2.describe_security_groups(GroupIds=[account.outputs["SecurityGroup"]])["SecurityGroups"]
    among, ssh = sorted(group["IpPermissions"], key=lambda rule: rule["IpProtocol"])
    assert (among["IpProtocol"], among["IpRanges"]) == ("-1", [])
    assert [pair["GroupId"] for pair in among["UserIdGroupPairs"]] == [group["GroupId"]]
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [found["CidrIp"] for found in ssh["IpRanges"]] == ["203.0.113.7/32"]


def test_the_roles_have_only_the_permissions_they_need(account: Account) -> None:
    iam = account.client("iam")
    worker = iam.get_instance_profile(InstanceProfileName="simclr-worker")["InstanceProfile"]["Roles"][0]["RoleName"]
    head = iam.get_instance_profile(InstanceProfileName="simclr-head")["InstanceProfile"]["Roles"][0]["RoleName"]
    assert iam.list_role_policies(RoleName=worker)["PolicyNames"] == []
    for role in (worker, head):
        [attached] = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        arn = attached["PolicyArn"]
        document = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
        names, objects = document["Statement"]
        assert names["Resource"] == "arn:aws:s3:::simclr-test"
        assert names["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["simclr", "simclr/*"]}}
        assert objects["Resource"] == "arn:aws:s3:::simclr-test/simclr/*"
    [policy] = iam.list_role_policies(RoleName=head)["PolicyNames"]
    statements = iam.get_role_policy(RoleName=head, PolicyName=policy)["PolicyDocument"]["Statement"]
    for statement in statements:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if "*" in action]
        assert statement["Resource"] != "*" or all(action.startswith("ec2:Describe") for action in actions)
    by_sid = {statement["Sid"]: statement for statement in statements}
    assert by_sid["GiveRole"]["Resource"].endswith(":role/simclr-worker")
    for sid, key in (("StartTagged", "aws:RequestTag/ray-cluster-name"), ("Ours", "aws:ResourceTag/ray-cluster-name")):
        assert by_sid[sid]["Condition"] == {"StringEquals": {key: "simclr"}}


def test_up_scale_out_and_down_start_the_right_machines_and_terminate_all(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.ray("up")
    [head] = account.running("head")
    _check_machine(account, head, "m7i.xlarge", "simclr-head", spot=False)
    assert "start-node.sh head ray start --block --head" in account.sent("ssh.log")
    assert ".ray/auth_token" in account.sent("rsync.log")

    # The rest as the head's autoscaler does it, with the configuration that it was sent.
    for key, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": account.endpoint, "HOME": str(account.home)}).items():
        monkeypatch.setenv(key, value)
    reader = FileConfigReader(str(account.home / "ray_bootstrap_config.yaml"))
    config = reader.get_cached_autoscaling_config()
    training = {"gpu_spot": 8, "gpu_on_demand": 1, "gpu_spot_wide": 1}
    assert _asked_for(config, {"CPU": 1, "GPU": 1}, 10) == training
    assert _asked_for(config, {"CPU": 1}, 100) == {"gpu_spot": 1, "cpu_spot": 3}
    shape = training | {"cpu_spot": 3}
    raw = config.get_raw_config_mutable()
    launcher = _get_node_provider(raw["provider"], raw["cluster_name"])
    provider = NodeProviderAdapter(
        launcher, reader, max_launch_batch_per_type=1
    )  # moto starts only MinCount of a batch
    provider.launch(shape, "a-request")
    _wait_for(lambda: {name: len(account.running(name)) for name in shape} == shape)
    assert provider.poll_errors() == []
    types = {"gpu_spot": "g6e.4xlarge", "gpu_on_demand": "g6e.4xlarge", "gpu_spot_wide": "g6e.8xlarge"}
    for node_type, instance_type in (types | {"cpu_spot": "c7i.8xlarge"}).items():
        for instance in account.running(node_type):
            _check_machine(account, instance, instance_type, "simclr-worker", spot="spot" in node_type)

    account.ray("down")
    assert not [name for name in ("head", *shape) if account.running(name)]


def _asked_for(config: Any, resources: dict[str, float], count: int) -> dict[str, int]:
    """The machines that Ray's autoscaler starts where `count` actors want `resources` each."""
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(resources)] * count),
    )
    launches = ResourceDemandScheduler(None).schedule(request).to_launch
    return {launch.instance_type: launch.count for launch in launches}


def _check_machine(account: Account, instance: dict[str, Any], instance_type: str, profile: str, spot: bool) -> None:
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert instance["InstanceType"] == instance_type
    assert instance.get("InstanceLifecycle") == ("spot" if spot else None)
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{profile}")
    assert (tags["project"], tags["ray-cluster-name"]) == ("simclr_ray", "simclr")
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [account.outputs["SecurityGroup"]]
    [disk] = instance["BlockDeviceMappings"]
    [volume] = account.ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (150, "gp3", True)


def _wait_for(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    until = monotonic() + seconds
    while not happened():
        assert monotonic() < until
        sleep(0.2)

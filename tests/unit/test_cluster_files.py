"""The cluster definitions, against the schemas of those who will read them: Ray's, Kubernetes', Docker's."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import fillout_defaults, validate_config

from lion_ray.actors.resources import ROLES
from tests.unit.kuberay import RESOURCES

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.34"
CLOUDS = ("aws", "gcp")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def cluster_spec(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents(f"kuberay/{name}.yaml")[0]["spec"]
    return spec["rayClusterSpec"] if name == "rayjob" else spec


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_up_takes_it(cloud: str) -> None:
    config = documents(f"{cloud}.yaml")[0]
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert not set(config) - set(schema["properties"])
    validate_config(fillout_defaults(config))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_clouds_start_without_gpus_on_spot_machines(cloud: str) -> None:
    config = documents(f"{cloud}.yaml")[0]
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert (types["gpu"]["min_workers"], types["roles"]["min_workers"]) == (0, 1)
    assert "spot" in json.dumps(types["gpu"]["node_config"]).lower()
    assert "spot" not in json.dumps(types["roles"]["node_config"]).lower()
    assert [name for name, one in types.items() if one["resources"].get(ROLES)] == ["roles"]
    for command in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in config[command][1]
        assert "--force" not in " ".join(config[command])


@pytest.mark.parametrize(("cloud", "key"), [("aws", "IamInstanceProfile"), ("gcp", "serviceAccounts")])
def test_every_machine_of_a_cloud_may_write_to_the_bucket(cloud: str, key: str) -> None:
    types = documents(f"{cloud}.yaml")[0]["available_node_types"]
    assert {json.dumps(one["node_config"].get(key)) for one in types.values()} == {
        json.dumps(types["head"]["node_config"][key])
    }
    if cloud == "aws":
        assert all(one["node_config"]["ImageId"] for one in types.values()), "Ray's own default has an old driver"


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_autoscaler_reads_the_kubernetes_cluster(name: str) -> None:
    resource = {"metadata": {"name": "lion-ray", "namespace": "default"}, "spec": cluster_spec(name)}
    config = _derive_autoscaling_config_from_ray_cr(resource)  # validates against ray-schema.json
    types = config["available_node_types"]
    head = types[config["head_node_type"]]["resources"]
    assert head["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"] > 0) == (0, True)
    assert "GPU" not in {key for key, count in types["roles"]["resources"].items() if count}
    assert [name for name, one in types.items() if one["resources"].get(ROLES)] == ["roles"], "where the keys are"


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_knows_every_field(name: str) -> None:
    (document,) = documents(f"kuberay/{name}.yaml")
    jsonschema.validate(document, RESOURCES[name])
    misspelt = json.loads(json.dumps(document).replace("minReplicas", "minreplicas"))
    with pytest.raises(jsonschema.ValidationError, match="minreplicas"):
        jsonschema.validate(misspelt, RESOURCES[name])


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kubernetes_takes_every_pod(name: str) -> None:
    for group in groups(cluster_spec(name)):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            # A mount of a volume that is not there is valid on paper.
            assert {m["name"] for m in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_takes_the_storage() -> None:
    claim = documents("kuberay/storage.yaml")[0]
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    claimed = [
        volume["persistentVolumeClaim"]["claimName"]
        for group in groups(cluster_spec("raycluster"))
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert set(claimed) == {claim["metadata"]["name"]}


def test_a_job_of_its_own_gets_the_cluster_that_stays() -> None:
    assert cluster_spec("rayjob") == cluster_spec("raycluster")


def test_only_pods_that_call_endpoints_hold_keys() -> None:
    head, *workers = groups(cluster_spec("raycluster"))
    assert "envFrom" not in head["template"]["spec"]["containers"][0]
    for worker in workers:
        assert worker["template"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "lion-ray-keys"}}]


def test_versions_agree_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    pinned = re.search(r"ray\[default,train\]==([\d.]+)", project)
    version = re.search(r'^version = "([\d.]+)"', project, re.MULTILINE)
    assert pinned
    assert version
    assert {cluster_spec(name)["rayVersion"] for name in ("raycluster", "rayjob")} == {pinned[1], ray.__version__}
    texts = [path.read_text() for path in [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml")]]
    assert set(re.findall(r"/lion-ray:([\w.]+)-gpu", "".join(texts))) == {version[1]}

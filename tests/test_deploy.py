"""compose.yaml and the Kubernetes manifests: valid, and all that they name exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from conftest import ROOT
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema

from ssl_core import launch, preemption
from ssl_core.config import Pretrain

DEPLOY = ROOT / "pipelines/deploy"
MANIFESTS = sorted([*DEPLOY.glob("kubernetes/*.yaml"), DEPLOY / "train.yaml"])
KUBERNETES = "1.33"
# Read by others than our own code.
OTHERS = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGDATA", "DAGSTER_HOME"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def objects() -> list[dict[str, Any]]:
    return [d for path in MANIFESTS for d in documents(path)]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [o for o in objects() if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for o in objects():
        if "template" in o.get("spec", {}):
            yield o["metadata"]["name"], o["spec"]["template"]["spec"]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


# ---- commands and variables --------------------------------------------------------------------


def commands() -> Iterator[list[str]]:
    for service in compose()["services"].values():
        yield from (service[k] for k in ("command",) if k in service)
        yield service["healthcheck"]["test"][1:]
    for _, pod in pods():
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            probes = [container.get(k, {}).get("exec") for k in ("readinessProbe", "livenessProbe")]
            yield from (p["command"] for p in probes if p)
            yield from (container[k] for k in ("command",) if k in container)


def program(name: str) -> click.Command:
    from dagster._cli import create_dagster_cli
    from dagster._daemon.cli import create_dagster_daemon_cli
    from dagster_webserver.cli import dagster_webserver
    from typer.main import get_command

    from ssl_core.__main__ import app

    made = {
        "dagster": create_dagster_cli,
        "dagster-daemon": create_dagster_daemon_cli,
        "dagster-webserver": lambda: dagster_webserver,
        "headwater": lambda: get_command(app),
    }
    return made[name]()


def parse(words: list[str]) -> None:
    """As click does, without running anything; an unknown command or option raises."""
    command, rest = program(words[0]), words[1:]
    context = command.make_context(words[0], list(rest[:0]), resilient_parsing=True)
    while hasattr(command, "get_command"):  # typer's groups are no click.Group
        name, rest = rest[0], rest[1:]
        found = command.get_command(context, name)
        assert found is not None, f"{words}: no command {name}"
        command = found
    command.make_context(words[0], list(rest)).close()


def test_every_command_is_one_and_knows_its_options() -> None:
    seen = []
    for words in commands():
        if words[:2] == ["sh", "-c"]:
            words = shlex.split(words[2].removeprefix("until ").partition(";")[0])
        if words[:3] == ["python", "-m", "ssl_core"]:
            words = ["headwater", *words[3:]]
        if words[0] in ("pg_isready", "python"):
            continue
        parse([w.replace("/dagster/", f"{DEPLOY}/") for w in words])  # where it is mounted
        seen.append(words[0])
    assert set(seen) == {"dagster", "dagster-daemon", "dagster-webserver", "headwater"}
    assert len(seen) >= 12
    for wrong in (["dagster", "code-server", "begin"], ["headwater", "pretrain", "--nodes", "4"]):
        with pytest.raises(Exception, match=r"no command|[Nn]o such option"):
            parse(wrong)


def variables() -> set[str]:
    found = {v for s in compose()["services"].values() for v in s.get("environment", {})}
    found |= set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / "env.example").read_text(), re.M))
    found |= set(one("ConfigMap", "headwater-env")["data"])
    for _, pod in pods():
        found |= {e["name"] for c in pod["containers"] for e in c.get("env", ())}
    return found


def test_every_variable_is_read_by_somebody() -> None:
    code = "".join(
        p.read_text() for d in ("ssl_core", "pipelines", "assets") for p in (ROOT / d).rglob("*.py")
    )
    settings = (DEPLOY / "dagster.yaml").read_text()
    for name in variables() - OTHERS:
        # botocore reads the AWS_* variables
        assert name.startswith("AWS_") or name in code or f"env: {name}" in settings, name


def test_no_secret_stands_in_a_file() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name != ".env":
            for key, value in re.findall(
                r"(\w*(?:PASSWORD|SECRET|TOKEN|KEY)\w*) *[:=] *(\S+)", path.read_text()
            ):
                ok = value.startswith(('"${', "{env:", "$")) or key == "secretKeyRef"
                assert ok, f"{path.name}: {key} is {value}"
    assert "pipelines/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


# ---- one meaning in all of them ----------------------------------------------------------------


def instance(text: str) -> dict[str, Any]:
    config = dict(yaml.safe_load(text))
    assert validate_config(dagster_instance_config_schema(), config).success
    return config


def test_dagster_is_set_up_alike_on_a_cluster_but_for_its_launcher() -> None:
    here = instance((DEPLOY / "dagster.yaml").read_text())
    there = instance(one("ConfigMap", "headwater-instance")["data"]["dagster.yaml"])
    mine, other = here.pop("run_launcher"), there.pop("run_launcher")
    assert here.pop("run_monitoring") == there.pop("run_monitoring") | {
        "start_timeout_seconds": 300  # an image may have to be pulled there
    }
    assert here == there
    from dagster_k8s import K8sRunLauncher
    from dagster_postgres import DagsterPostgresStorage

    from pipelines.launcher import Local

    assert mine == {"module": Local.__module__, "class": Local.__name__}
    assert validate_config(K8sRunLauncher.config_type(), other["config"]).success
    storage = here["storage"]["postgres"]
    assert validate_config(DagsterPostgresStorage.config_type(), storage).success


def test_workspace_is_one() -> None:
    cluster = one("ConfigMap", "headwater-instance")["data"]["workspace.yaml"]
    assert yaml.safe_load(cluster) == yaml.safe_load((DEPLOY / "workspace.yaml").read_text())


# ---- Kubernetes --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_fit_the_schema_of_kubernetes(path: Path) -> None:
    import kubernetes_validate

    for document in documents(path):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        assert document["metadata"].get("namespace", "headwater") == "headwater"
    broken = documents(path)[0] | {"specification": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_names_within_manifests_lead_somewhere() -> None:
    known = {(o["kind"], o["metadata"]["name"]) for o in objects()} | {("Secret", "headwater")}
    labels = {
        tuple(o["spec"]["template"]["metadata"]["labels"].items())
        for o in objects()
        if "template" in o.get("spec", {})
    }
    for o in objects():
        if o["kind"] == "Service":
            assert tuple(o["spec"]["selector"].items()) in labels, o["metadata"]["name"]
    for name, pod in pods():
        volumes = {v["name"]: v for v in pod.get("volumes", ())}
        volumes |= {c["metadata"]["name"]: {} for c in claims(name)}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in known
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in known
        for container in pod["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} <= set(volumes)
            for source in container.get("envFrom", ()):
                ((key, value),) = source.items()
                kind = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[key]
                assert (kind, value["name"]) in known
            assert "memory" in container["resources"]["limits"]
        if "serviceAccountName" in pod:
            assert ("ServiceAccount", pod["serviceAccountName"]) in known


def claims(name: str) -> list[dict[str, Any]]:
    (spec,) = [
        o["spec"]
        for o in objects()
        if o["metadata"]["name"] == name and "template" in o.get("spec", {})
    ]
    return list(spec.get("volumeClaimTemplates", ()))


def test_the_training_job_meets_at_its_first_pod(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job, service = one("Job", "train")["spec"], one("Service", "train")
    pod = job["template"]["spec"]
    env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    shown = re.search(r"pretrain: (\{.*\})", (DEPLOY / "train.yaml").read_text())
    assert shown
    p = Pretrain.model_validate(yaml.safe_load(shown[1]))
    words = launch.command(p, tmp_path / "work", tmp_path)
    assert f"--nnodes={job['completions']}" in words
    assert "--rdzv-endpoint=train-0.train:29400" in words
    gpus = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in words
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert pod["subdomain"] == service["metadata"]["name"] == "train"
    assert service["spec"]["clusterIP"] == "None"
    assert pod["terminationGracePeriodSeconds"] > launch.GRACE
    # A preempted pod must not count as done: what it exits with is what the Job ignores.
    (codes,) = [
        r["onExitCodes"]["values"] for r in job["podFailurePolicy"]["rules"] if "onExitCodes" in r
    ]
    assert preemption.Preempted(15).code in codes
    monkeypatch.delenv(preemption.EXIT)
    assert preemption.Preempted(15).code == 0


# ---- Docker ------------------------------------------------------------------------------------


def test_compose_builds_from_files_that_exist_and_watches_its_services() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped"
        for other in service.get("depends_on", {}):
            assert other in services
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / service["build"]["dockerfile"]).exists()
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).exists(), volume
    assert services["daemon"]["pid"] == "service:code"
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert set(gpu) <= set(services)


def test_the_image_copies_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (ROOT / source).exists()
    assert re.search(r"^USER headwater$", text, re.M)

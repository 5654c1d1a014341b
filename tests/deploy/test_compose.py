"""docker-compose.yml: valid, complete, and as durable as the embedded server."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from itertools import pairwise
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from everlens.bus.acl import users
from everlens.bus.durability import REQUIRED
from everlens.launch.environment import learner_environment
from everlens.settings import PREFIX, Settings
from tests.deploy.compose import ROOT, load, variables

HALVES = ("worker", "service", "worker-gpu", "service-gpu")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as a plain `docker compose up` sees them, without a .env."""
    found: dict[str, Any] = load()["services"]
    return found


def test_the_file_follows_the_specification() -> None:
    """A strict reader of the compose specification accepts the file and all its references."""
    PyCompose.from_json(json.dumps(load())).validate()


def test_the_strict_reader_is_strict() -> None:
    """The reader refuses an unknown key, so that its silence means something."""
    broken = load()
    broken["services"]["worker"]["helthcheck"] = {}

    with pytest.raises(ValueError, match="helthcheck"):
        PyCompose.from_json(json.dumps(broken))


def _has_docker_compose() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    asked = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
    return asked.returncode == 0


@pytest.mark.skipif(not _has_docker_compose(), reason="no `docker compose` on this machine")
def test_docker_compose_itself_accepts_the_file() -> None:
    """`docker compose config` reads the file with all profiles."""
    said = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (said.returncode, said.stderr) == (0, "")


def started_by(services: dict[str, Any], profiles: str) -> set[str]:
    """Return what COMPOSE_PROFILES starts."""
    wanted = set(profiles.split(","))
    return {
        name
        for name, about in services.items()
        if not about.get("profiles") or wanted & set(about["profiles"])
    }


def test_profiles_start_what_they_say(services: dict[str, Any]) -> None:
    """The example starts the CPU's two halves; the GPU's are others, and figures come beside."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    (example,) = [line.split("=")[1] for line in lines if line.startswith("COMPOSE_PROFILES=")]

    assert started_by(services, example) == {"valkey", "worker", "service"}
    assert started_by(services, "gpu,observability") == {
        "valkey",
        "worker-gpu",
        "service-gpu",
        "prometheus",
        "grafana",
    }
    assert started_by(services, "backup") == {"valkey", "backup"}


def test_every_container_is_bounded(services: dict[str, Any]) -> None:
    """Memory, processes and the log of each have an end, and none may gain rights."""
    for name, about in services.items():
        if name != "backup":  # ends by itself
            limits = about["deploy"]["resources"]["limits"]
            assert {"memory", "pids"} <= set(limits), name
            assert about["restart"] == "unless-stopped"
        assert about["logging"]["options"]["max-size"], name
        assert about["security_opt"] == ["no-new-privileges:true"], name


def test_the_images_of_others_are_pinned(services: dict[str, Any]) -> None:
    """Each names a version, by Docker Hub's own name."""
    images = {about["image"] for about in services.values()} - {"everlens:cpu", "everlens:gpu"}

    assert all(re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+[\w.-]*", image) for image in images)
    assert {image.split(":")[0] for image in images} == {
        "valkey/valkey",
        "prom/prometheus",
        "grafana/grafana",
    }


def test_no_password_is_in_an_environment() -> None:
    """What `docker inspect` and a child process see holds none of them."""
    names = ("LOG_SERVICE_PASSWORD", "LOG_WORKER_PASSWORD", "GRAFANA_PASSWORD")
    services = load({name: f"secret-{name}" for name in names})["services"]
    for name, about in services.items():
        assert "secret-" not in json.dumps(about), name
        if "env_file" in about:
            assert {about["environment"][word] for word in names} == {""}, name


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    """Files of the repo that a container reads exist, and lead where its settings look."""
    mounted = {
        name: dict(
            reversed(volume.removesuffix(":ro").split(":"))
            for volume in about.get("volumes", [])
            if volume.startswith("./deploy")
        )
        for name, about in services.items()
    }
    for places in mounted.values():
        assert all((ROOT / source).exists() for source in places.values())

    assert mounted["prometheus"]["/etc/prometheus/alerts.yml"] == "./deploy/prometheus/alerts.yml"
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert set(prometheus["rule_files"]) <= set(mounted["prometheus"])
    (job,) = prometheus["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) <= set(services)
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics-key"
    assert services["prometheus"]["secrets"] == ["metrics-key"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, file = home.rpartition("/")
    assert (ROOT / mounted["grafana"][folder] / file).exists()
    provider = ROOT / "deploy/grafana/provisioning/dashboards/everlens.yml"
    (source,) = yaml.safe_load(provider.read_text())["providers"]
    assert source["options"]["path"] == folder
    datasource = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    (prom,) = yaml.safe_load(datasource.read_text())["datasources"]
    assert prom["url"] == "http://prometheus:9090"


def test_the_backup_sees_what_must_survive_and_nobody_else(services: dict[str, Any]) -> None:
    """State, log and keys are mounted where the command looks; it has no network."""
    about = services["backup"]
    mounts = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in about["volumes"])
    words = about["entrypoint"]
    assert words[:2] == ["everlens", "backup"]
    assert mounts[about["environment"]["EVERLENS_DATA_DIR"]] == "state"
    assert mounts[words[words.index("--log") + 1]] == "log"
    assert mounts[words[words.index("--serving") + 1]] == "serving"
    assert about["network_mode"] == "none"


def test_every_variable_is_explained() -> None:
    """Each variable of the compose file stands in .env.example below a comment."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    explained = set()
    for before, line in pairwise(lines):
        found = re.match(r"(?:# )?([A-Z_]+)=", line)
        if found and (before.startswith("#") or re.match(r"(?:# )?[A-Z_]+=", before)):
            explained.add(found[1])

    assert variables() - explained == set()


def test_example_has_the_defaults() -> None:
    """Copying .env.example to .env changes nothing."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert load(example) == load()


def test_settings_of_the_containers_exist(services: dict[str, Any]) -> None:
    """Each EVERLENS_* variable that a container gets is a setting; another refuses the start."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = {name for half in HALVES for name in services[half]["environment"]}

    assert {name for name in given if name.startswith(PREFIX)} - known == set()


def test_the_log_is_as_durable_as_the_embedded_one(services: dict[str, Any]) -> None:
    """The container's command line holds every setting that an acknowledged write rests on."""
    command = services["valkey"]["command"]
    options = {
        name.removeprefix("--"): value
        for name, value in pairwise(command[1:])
        if name.startswith("--")
    }

    assert {name: options.get(name) for name in REQUIRED} == REQUIRED


def test_each_half_logs_in_as_its_own_user() -> None:
    """The log's users are those of the code, in the namespace and with the passwords of .env."""
    given = {
        "LOG_SERVICE_PASSWORD": "one",
        "LOG_WORKER_PASSWORD": "two",
        "EVERLENS_NAMESPACE": "herons",
    }
    for environment, ours in (
        ({}, users("everlens", ">service", ">worker")),
        (
            given,
            users("herons", ">one", ">two"),
        ),
    ):
        whole = load(environment)
        (mounted,) = whole["services"]["valkey"]["configs"]
        command = whole["services"]["valkey"]["command"]

        assert whole["configs"][mounted["source"]]["content"] == ours
        assert command[command.index("--aclfile") + 1] == mounted["target"]
        for half in HALVES:
            word = ours.split(f"{half.removesuffix('-gpu')} reset on >")[1].split()[0]
            user = f"everlens-{half.removesuffix('-gpu')}"
            assert address_of(whole, half) == f"redis://{user}:{word}@valkey:6379/0"


def address_of(whole: dict[str, Any], half: str) -> str:
    """Return what a half finds in the file that is its setting of the log's address."""
    (mounted,) = whole["services"][half]["configs"]
    assert mounted["target"] == "/run/secrets/everlens_redis_url"
    address: str = whole["configs"][mounted["source"]]["content"]
    return address


def test_no_half_knows_the_others_password() -> None:
    """Each has the file with its own address of the log, and no other."""
    whole = load()
    for half in HALVES:
        assert f"everlens-{half.removesuffix('-gpu')}" in address_of(whole, half)


def test_the_log_is_not_published(services: dict[str, Any]) -> None:
    """Only who speaks HTTP has a port, on loopback; the log's network leads nowhere else."""
    ports = {name: about.get("ports", []) for name, about in services.items()}

    assert ports == {
        "valkey": [],
        "worker": [],
        "service": ["127.0.0.1:8000:8000"],
        "worker-gpu": [],
        "service-gpu": ["127.0.0.1:8000:8000"],
        "backup": [],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert services["valkey"]["networks"] == ["log"]
    assert load()["networks"]["log"]["internal"] is True


def test_every_service_has_a_health_check_that_exists(services: dict[str, Any]) -> None:
    """The checks call programs of their images; ours is a module that takes the half's name."""
    for name, about in services.items():
        if name == "backup":
            continue
        kind, program, *rest = about["healthcheck"]["test"]
        assert kind == "CMD"
        if name == "valkey":
            assert [program, *rest] == ["valkey-cli", "ping"]
        elif name in {"prometheus", "grafana"}:
            assert program == "wget"
            assert rest[-1].startswith("http://127.0.0.1:")
        else:
            assert [program, *rest] == [
                "python",
                "-m",
                "everlens.launch.health",
                name.split("-")[0],
            ]
            assert hasattr(importlib.import_module("everlens.launch.health"), "main")


def test_dependencies_wait_for_the_log(services: dict[str, Any]) -> None:
    """Both halves start when the log answers; the service does not wait for learning."""
    conditions = {
        half: {on: about["condition"] for on, about in services[half]["depends_on"].items()}
        for half in HALVES
    }

    assert conditions == {
        "worker": {"valkey": "service_healthy"},
        "service": {"valkey": "service_healthy", "worker": "service_started"},
        "worker-gpu": {"valkey": "service_healthy"},
        "service-gpu": {"valkey": "service_healthy", "worker-gpu": "service_started"},
    }


def test_what_must_survive_lies_in_named_volumes(services: dict[str, Any]) -> None:
    """Log, state, keys and fetched models lie in volumes of the file, at the paths the programs use."""
    mounts = {
        name: dict(reversed(volume.split(":")) for volume in about.get("volumes", []))
        for name, about in services.items()
        if name in {"valkey", *HALVES}
    }
    environment = services["worker"]["environment"]

    assert mounts["valkey"] == {"/data": "log"}
    assert mounts["worker"][environment["EVERLENS_DATA_DIR"]] == "state"
    assert mounts["worker"][environment["HF_HOME"]] == "models"
    assert mounts["service"][environment["HF_HOME"]] == "models"
    assert mounts["service"][services["service"]["environment"]["EVERLENS_DATA_DIR"]] == "serving"


def test_gpu_containers_reserve_a_device(services: dict[str, Any]) -> None:
    """The profile `gpu` asks the engine for an NVIDIA device and runs an image of its own."""
    for half in ("worker-gpu", "service-gpu"):
        about = services[half]
        (device,) = about["deploy"]["resources"]["reservations"]["devices"]
        assert about["profiles"] == ["gpu"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert about["image"] == "everlens:gpu"


def test_the_worker_leaves_the_processor_to_answers(services: dict[str, Any]) -> None:
    """The learner has a small share of the processor, and one thread as `everlens up` starts it."""
    worker = services["worker"]

    assert worker["cpu_shares"] == 87
    told = learner_environment(1)
    assert {name: worker["environment"][name] for name in told} == told
    assert worker["environment"]["OMP_NUM_THREADS"] == "1"

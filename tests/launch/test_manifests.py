"""Every manifest against the schemas of Kubernetes, JobSet and Kueue, without a cluster."""

from __future__ import annotations

import copy
import math
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch.gke import submit
from launch.gke.manifests import HOPELESS, Run, jobset, mounted, queues
from launch.gke.topologies import names, nodes
from nas_jax.utils import errors
from tests.launch.schemas import JOBSET, QUEUES
from tests.launch.stand_ins import ROOT, calls, install

KUBERNETES = "1.33"
ACCELERATORS = [name.replace(":N", ":4") for name in names()]
ARGUMENTS = (
    "--config=configs/demo.py",
    "--config.data.train=('gs://pictures-1/a',)",
    "--workdir=gs://runs/nas",
)


def job_of(manifest):
    """The Job that JobSet makes of its only template."""
    (group,) = manifest["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}} | group["template"]


def validate(manifest):
    """Raises ValidationError of jsonschema or of kubernetes_validate, which are siblings."""
    jsonschema.validate(manifest, JOBSET)
    kubernetes_validate.validate(job_of(manifest), KUBERNETES, strict=True)


def dump(manifest):
    """As kubectl would read it."""
    return yaml.safe_load(yaml.safe_dump(manifest))


def test_every_jobset_validates():
    assert len(ACCELERATORS) > 20
    for number, accelerator in enumerate(ACCELERATORS):
        run = Run("nas-1", nodes(accelerator), "image:1", ARGUMENTS, queue="")
        if number % 5 == 0:  # each validation takes a twentieth of a second
            there = ("--workdir=/shared/a",)
            run = replace(
                run, arguments=there, queue="q", claim="disk", spot=True, service_account="b"
            )
        validate(dump(jobset(run)))


# What a careless change could do -> the field behind which it is done.
DAMAGE = {
    "typo in JobSet": lambda m: m["spec"].update(replicatedJob=[]),
    "rule without a name": lambda m: m["spec"]["failurePolicy"]["rules"][0].pop("name"),
    "unknown action": lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
    "name with a capital": lambda m: m["metadata"].update(name="NAS"),
    "label that is no text": lambda m: m["metadata"].update(labels={"a": 1}),
    "typo in Job": lambda m: spec_of(m).update(backofLimit=0),
    "number as text": lambda m: spec_of(m).update(completions="4"),
    "typo in container": lambda m: pod_of(m)["containers"][0].update(arg=[]),
    "number in environment": lambda m: pod_of(m)["containers"][0]["env"][0].update(value=1),
    "typo in toleration": lambda m: pod_of(m)["tolerations"][0].update(operater="Exists"),
    "volume without a driver": lambda m: pod_of(m)["volumes"][1]["csi"].pop("driver"),
}


def spec_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest):
    return spec_of(manifest)["template"]["spec"]


@pytest.fixture(scope="module")
def manifest():
    return dump(jobset(Run("nas", nodes("v5e:4x4"), "image:1", ARGUMENTS)))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_jobset_does_not(manifest, name):
    damaged = copy.deepcopy(manifest)
    DAMAGE[name](damaged)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(damaged)


def test_every_queue_validates_and_has_room_for_a_run():
    for accelerator in ACCELERATORS:
        machines = nodes(accelerator)
        objects = {made["kind"]: dump(made) for made in queues(machines, slices=3)}
        assert objects.keys() == QUEUES.keys()
        for kind, made in objects.items():
            jsonschema.validate(made, QUEUES[kind])
        job = spec_of(jobset(Run("a", machines, "i", ARGUMENTS)))
        (container,) = job["template"]["spec"]["containers"]
        (group,) = objects["ClusterQueue"]["spec"]["resourceGroups"]
        (quota,) = group["flavors"][0]["resources"]
        asked = container["resources"]["limits"][quota["name"]] * job["completions"]
        assert quota["nominalQuota"] == 3 * asked
        # Kueue lets in only what asks for resources that the queue covers.
        assert list(container["resources"]["requests"]) == group["coveredResources"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(objects["LocalQueue"] | {"spec": {"queue": "a"}}, QUEUES["LocalQueue"])


def test_all_chips_of_a_slice_are_asked_for_once():
    for accelerator in ACCELERATORS:
        name, _, size = accelerator.partition(":")
        machines = nodes(accelerator)
        job = spec_of(jobset(Run("a", machines, "i", ARGUMENTS)))
        assert job["completions"] == job["parallelism"] == machines.count >= 1
        if machines.hardware != "gpu":
            assert machines.chips * machines.count == math.prod(map(int, size.split("x")))
            assert dict(machines.selector)["cloud.google.com/gke-tpu-topology"] == size
    assert nodes("v5p:4x4x4").xpk == ("--tpu-type=v5p-128",)  # cores, two a chip
    assert nodes("h100:2").xpk == ("--device-type=h100-80gb-8", "--num-nodes=2")


def test_a_pod_learns_who_it_is(manifest):
    (container,) = pod_of(manifest)["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    variables = os.environ | environment | {"JOB_COMPLETION_INDEX": "3"}
    done = subprocess.run(
        [*container["command"], "--dry-run", *container["args"]],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[-4:-1] == [
        "--coordinator=nas-worker-0-0.nas:8476",
        "--num_processes=4",
        "--process_id=3",
    ]
    assert (
        "--config.data.train=('/gcs/pictures-1/a',)" in words and "--workdir=/gcs/runs/nas" in words
    )
    assert any(word.startswith("LIBTPU_INIT_ARGS=--xla_tpu") for word in words)
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in pod_of(manifest)["volumes"]:
        if "csi" in volume:
            assert (
                places[volume["name"]] == "/gcs/" + volume["csi"]["volumeAttributes"]["bucketName"]
            )
    assert places.keys() == {volume["name"] for volume in pod_of(manifest)["volumes"]}


def test_the_hopeless_exit_codes_are_those_of_the_errors():
    hopeless = {errors.ConfigError, errors.DataError, errors.CheckpointError, errors.DivergedError}
    assert set(HOPELESS) == {error.exit_code for error in hopeless}
    assert errors.HostError.exit_code not in HOPELESS  # a host may come yet


JOB = ("job", "--name=nas", "--accelerator=v6e:4x4", "--image=i")
WORDS = ("--", "--config=c.py", "--workdir=gs://b-1/a")


def test_submitting_hands_to_kubectl_what_a_dry_run_prints(tmp_path):
    environment = install(tmp_path)
    for command in ([*JOB], ["queues", "--accelerator=h100:2"]):
        words = WORDS if command[0] == "job" else ()
        texts = [
            subprocess.run(
                [sys.executable, "-m", "launch.gke.submit", *command, *extra, *words],
                cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
            ).stdout
            for extra in (["--dry-run"], [])
        ]  # fmt: skip
        assert list(yaml.safe_load_all(texts[0])) == list(yaml.safe_load_all(texts[1])) != []
    assert calls(environment, "kubectl") == ["apply --filename=-"] * 2


def test_xpk_gets_a_command(capsys):
    words = ["--name=nas", "--image=i", "--cluster=c", "--storage=s", "--dry-run", *WORDS]
    assert submit.main(["xpk", "--accelerator=v5e:4x4", *words]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[:3] == ["xpk", "workload", "create"] and "--tpu-type=v5litepod-16" in command
    inner = dict(word.partition("=")[::2] for word in command)["--command"]
    assert inner == "HARDWARE=v5e bash launch/worker.sh --config=c.py --workdir=/gcs/b-1/a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*JOB[:2], "--accelerator=v5e:3x3", "--image=i", *WORDS), "v5e:4x4"),
        ((*JOB[:2], "--accelerator=h100:0", "--image=i", *WORDS), "h100:N"),
        ((*JOB, "--", "--workdir=runs/a"), "a place that outlives a node"),
        ((*JOB, "--", "--workdir=/shared/a"), "--claim"),
        (("job", "--name=NAS_1", *JOB[2:], *WORDS), "lower case"),
        (
            ("xpk", "--name=n", "--accelerator=h100:2", "--image=i", "--cluster=c", *WORDS),
            "use `job` for several",
        ),
    ],
)
def test_a_wrong_run_is_one_line(capsys, words, message):
    assert submit.main(words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and message in text and text.count("\n") == 1


def test_what_is_in_a_bucket_is_read_where_it_is_mounted():
    assert mounted("--x=('gs://a-b/c', 'gs://d.e/f')") == "--x=('/gcs/a-b/c', '/gcs/d.e/f')"
    assert mounted("--workdir=/shared/a") == "--workdir=/shared/a"

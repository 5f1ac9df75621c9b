"""Kubernetes objects of a run, as plain dicts: a JobSet, and the queues of Kueue that let it in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.gke.topologies import GPU_RESOURCE, TPU_RESOURCE, Nodes
from nas_jax.utils.errors import ConfigError

PORT = 8476  # of the coordinator; the roll call takes the next one
# exit codes after which another start would end the same way (nas_jax/utils/errors.py)
HOPELESS = (2, 3, 4, 5)
GRACE_SECONDS = 300  # between SIGTERM and SIGKILL; nodes that are taken away grant less
BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]+[a-z0-9])")
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
JOB = "worker"


@dataclass(frozen=True)
class Run:
    """One run, and where it takes place."""

    name: str
    nodes: Nodes
    image: str
    # of main.py; gs://BUCKET/... is mounted, and read and written as /gcs/BUCKET/...
    arguments: tuple[str, ...]
    namespace: str = "default"
    queue: str = "nas-jax"  # LocalQueue of Kueue; "" = start without one
    # of Kubernetes, which may read and write the buckets; "" = the namespace's default
    service_account: str = ""
    claim: str = ""  # PersistentVolumeClaim, mounted at /shared; "" = none
    spot: bool = False  # nodes that may be taken away
    restarts: int = 100  # of all processes, after one of them ended with an error

    def validate(self) -> None:
        """Raises ConfigError on what Kubernetes or the run would refuse later."""
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name={self.name}", "lower case letters, digits and -, at most 40", "use nas-1"
            )
        workdir = next((word[10:] for word in self.arguments if word.startswith("--workdir=")), "")
        if not workdir.startswith(("gs://", "/shared/")) or (
            workdir.startswith("/shared/") and not self.claim
        ):
            raise ConfigError(
                f"--workdir={workdir}",
                "a place that outlives a node",
                "pass gs://BUCKET/FOLDER, or --claim and /shared/...",
            )


def buckets(arguments: Sequence[str]) -> list[str]:
    """The buckets that the arguments name."""
    return sorted({match[1] for word in arguments for match in BUCKET.finditer(word)})


def mounted(argument: str) -> str:
    """gs://BUCKET/a -> /gcs/BUCKET/a."""
    return BUCKET.sub(r"/gcs/\1", argument)


def jobset(run: Run) -> dict[str, Any]:
    """The JobSet: one pod a node; if one fails, all start again from the newest checkpoint."""
    run.validate()
    metadata: dict[str, Any] = {"name": run.name, "namespace": run.namespace}
    if run.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": run.queue}
    if run.nodes.resource == TPU_RESOURCE:
        # All pods of the run on one slice, which is one node pool.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": run.restarts,
                "rules": [
                    # The pods' own policy below fails the job on these exit codes, and on nothing
                    # else.
                    {
                        "name": "hopeless",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": _job(run)}}],
        },
    }


def _job(run: Run) -> dict[str, Any]:
    codes = {"operator": "In", "values": list(HOPELESS)}
    return {
        "completionMode": "Indexed",  # each pod learns its number, which is that of the process
        "completions": run.nodes.count,
        "parallelism": run.nodes.count,
        "backoffLimit": 0,  # one pod alone cannot be started again
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
        "template": _pod(run),
    }


def _pod(run: Run) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": dict(run.nodes.selector)
        | ({"cloud.google.com/gke-spot": "true"} if run.spot else {}),
        "tolerations": [{"key": run.nodes.resource, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [_container(run)],
        "volumes": _volumes(run),
    }
    if run.spot:
        spec["tolerations"].append(
            {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}
        )
    if run.service_account:
        spec["serviceAccountName"] = run.service_account
    metadata = {"annotations": {"gke-gcsfuse/volumes": "true"}} if buckets(run.arguments) else {}
    return {"metadata": metadata, "spec": spec}


def _container(run: Run) -> dict[str, Any]:
    environment = {
        "HARDWARE": run.nodes.hardware,
        # The name that JobSet gives to its first pod.
        "COORDINATOR": f"{run.name}-{JOB}-0-0.{run.name}:{PORT}",
        "NUM_PROCESSES": str(run.nodes.count),
        "START_TIMEOUT": "1200",  # nodes of a large slice may come minutes after each other
    }
    if run.nodes.resource == GPU_RESOURCE:
        environment["GPUS"] = str(run.nodes.chips)
    chips = {run.nodes.resource: run.nodes.chips}
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    mounts += [
        {"name": _volume(bucket), "mountPath": f"/gcs/{bucket}"}
        for bucket in buckets(run.arguments)
    ]
    if run.claim:
        mounts.append({"name": "claim", "mountPath": "/shared"})
    return {
        "name": JOB,
        "image": run.image,
        "command": ["bash", "launch/worker.sh"],
        "args": [mounted(argument) for argument in run.arguments],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"containerPort": PORT}, {"containerPort": PORT + 1}],
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": mounts,
    }


def _volumes(run: Run) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    for bucket in buckets(run.arguments):
        # A checkpoint is complete once its folder has its final name, so folders must be renamed.
        attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs,rename-dir-limit=100000"}
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": _volume(bucket), "csi": csi})
    if run.claim:
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": run.claim}})
    return volumes


def _volume(bucket: str) -> str:
    return "bucket-" + re.sub(r"[^a-z0-9]+", "-", bucket)[:50].strip("-")


def queues(
    machines: Nodes, name: str = "nas-jax", namespace: str = "default", slices: int = 1
) -> list[dict[str, Any]]:
    """Kueue's objects for so many runs of that size at a time; the others wait in their order."""
    version = "kueue.x-k8s.io/v1beta1"  # old and new releases serve it; newer ones warn
    quota = {"name": machines.resource, "nominalQuota": machines.chips * machines.count * slices}
    group = {
        "coveredResources": [machines.resource],
        "flavors": [{"name": name, "resources": [quota]}],
    }
    return [
        {
            "apiVersion": version,
            "kind": "ResourceFlavor",
            "metadata": {"name": name},
            "spec": {"nodeLabels": dict(machines.selector)},
        },
        {
            "apiVersion": version,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "queueingStrategy": "StrictFIFO",
                "resourceGroups": [group],
            },
        },
        {
            "apiVersion": version,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": name},
        },
    ]

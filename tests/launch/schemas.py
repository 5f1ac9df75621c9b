"""What JobSet and Kueue say about the fields that launch/gke uses, written down for the tests;
closed, so that a field that is not here is an error.

JobSet v1alpha2: jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2
Kueue v1beta1: kueue.sigs.k8s.io/docs/reference/kueue.v1beta1
"""

from __future__ import annotations

from typing import Any

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 63}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def some(item: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    """A list of at least one."""
    return {"type": "array", "items": item, "minItems": 1} | ({"maxItems": most} if most else {})


def whole(version: str, kind: str, spec: dict[str, Any], namespaced: bool = True) -> dict[str, Any]:
    """An object of the cluster."""
    place = {"namespace": NAME} if namespaced else {}
    metadata = closed(("name",), name=NAME, labels=TEXTS, annotations=TEXTS, **place)
    return closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version}, kind={"const": kind}, metadata=metadata, spec=spec,
    )  # fmt: skip


RULE = closed(
    ("name", "action"),
    name={
        "type": "string",
        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        "maxLength": 128,
    },
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=some(
        {
            "enum": [
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "FailedIndexes",
                "MaxFailedIndexesExceeded",
                "PodFailurePolicy",
            ]
        }
    ),
    targetReplicatedJobs=some(NAME),
)
JOBSET = whole(
    "jobset.x-k8s.io/v1alpha2",
    "JobSet",
    closed(
        ("replicatedJobs",),
        network=closed(
            (), enableDNSHostnames={"type": "boolean"}, publishNotReadyAddresses={"type": "boolean"}
        ),
        failurePolicy=closed((), maxRestarts=COUNT, rules=some(RULE, 20)),
        replicatedJobs=some(
            # What is in the template is a Job of Kubernetes, which has a schema of its own.
            closed(
                ("name", "template"),
                name=NAME,
                replicas=COUNT,
                template=closed(("spec",), spec={"type": "object"}),
            )
        ),
    ),
)
QUOTA = closed(
    ("name", "nominalQuota"), name={"type": "string"}, nominalQuota={"type": ["integer", "string"]}
)
GROUP = closed(
    ("coveredResources", "flavors"),
    coveredResources=some({"type": "string"}, 64),
    flavors=some(closed(("name", "resources"), name=NAME, resources=some(QUOTA, 64)), 64),
)
KUEUE = "kueue.x-k8s.io/v1beta1"
QUEUES = {
    "ResourceFlavor": whole(
        KUEUE, "ResourceFlavor", closed((), nodeLabels=TEXTS | {"maxProperties": 8}), False
    ),
    "ClusterQueue": whole(
        KUEUE,
        "ClusterQueue",
        closed(
            (),
            namespaceSelector={"const": {}},
            queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
            resourceGroups=some(GROUP, 16),
        ),
        False,
    ),
    "LocalQueue": whole(KUEUE, "LocalQueue", closed(("clusterQueue",), clusterQueue=NAME)),
}

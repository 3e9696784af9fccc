"""What the tests of this suite share: a client for each node, a namespace for each test, and waiting with a deadline.

SWARM_KUBECONFIGS names the kubeconfig of each node, separated by colons, the first node's first.
"""

import json
import os
import time
import unittest
import uuid

from kubernetes import client, config

KUBECONFIGS = os.environ["SWARM_KUBECONFIGS"].split(":")
DEADLINE_S = 30


def api_client(node=0):
    """Returns a client of one node's API."""
    return config.new_client_from_config(KUBECONFIGS[node])


def wait_for(what, condition, deadline_s=DEADLINE_S):
    """Returns the first value of `condition` that counts as true; fails with the last one at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s} s for {what}; last seen: {seen!r}")
        time.sleep(0.05)


def config_map(name, data=None, labels=None):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data=data)


def deployment(name, replicas=1):
    """Returns a deployment of the image that every host of the tests has."""
    labels = {"app": name}
    container = client.V1Container(
        name="web",
        image="localhost/podman-swarm-hello:1",
        ports=[client.V1ContainerPort(container_port=8080)],
    )
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=1),
    )
    return client.V1Deployment(
        metadata=client.V1ObjectMeta(name=name, labels=labels),
        spec=client.V1DeploymentSpec(
            replicas=replicas, selector=client.V1LabelSelector(match_labels=labels), template=template
        ),
    )


class SwarmTest(unittest.TestCase):
    """A test with a namespace of its own, which goes with it."""

    def setUp(self):
        self.client = api_client()
        self.core = client.CoreV1Api(self.client)
        self.apps = client.AppsV1Api(self.client)
        self.namespace = f"python-{uuid.uuid4().hex[:8]}"
        self.core.create_namespace(
            client.V1Namespace(metadata=client.V1ObjectMeta(name=self.namespace))
        )
        self.addCleanup(self.remove_namespace)
        # What every namespace has comes a moment later.
        own = {"field_selector": "metadata.name=kube-root-ca.crt"}
        wait_for(
            "the namespace's own config map",
            lambda: self.core.list_namespaced_config_map(self.namespace, **own).items,
        )

    def remove_namespace(self):
        self.core.delete_namespace(self.namespace)
        self.client.close()

    def refused(self, code, reason, call, *arguments, **options):
        """Calls, which must fail with this code and reason; returns the Status that was answered."""
        with self.assertRaises(client.ApiException) as caught:
            call(*arguments, **options)
        status = json.loads(caught.exception.body)
        seen = (caught.exception.status, status["code"], status["reason"], status["kind"], status["status"])
        self.assertEqual(seen, (code, code, reason, "Status", "Failure"), status)
        return status

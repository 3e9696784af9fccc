"""The dynamic client: kinds by discovery, server-side apply with its conflicts, patches, and deletion."""

import unittest

from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    ResourceNotFoundError,
    UnprocessibleEntityError,
)

from swarm import SwarmTest, deployment


def settings(data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data}


class Dynamic(SwarmTest):
    def setUp(self):
        super().setUp()
        self.dynamic = DynamicClient(self.client)
        self.config_maps = self.dynamic.resources.get(api_version="v1", kind="ConfigMap")

    def test_kinds_are_found_by_discovery(self):
        found = self.dynamic.resources.get(api_version="apps/v1", kind="Deployment")
        self.assertEqual((found.name, found.namespaced, found.short_names), ("deployments", True, ["deploy"]))
        for verb in ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]:
            self.assertIn(verb, found.verbs)
        self.assertFalse(self.dynamic.resources.get(api_version="v1", kind="Namespace").namespaced)
        with self.assertRaises(ResourceNotFoundError):
            self.dynamic.resources.get(api_version="example.com/v1", kind="Widget")
        self.assertIn("gitVersion", self.dynamic.version["kubernetes"])

    def test_an_object_is_made_read_listed_replaced_and_deleted(self):
        made = self.config_maps.create(body=settings({"a": "1"}), namespace=self.namespace)
        read = self.config_maps.get(name="settings", namespace=self.namespace)
        self.assertEqual((read.data.a, read.metadata.uid), ("1", made.metadata.uid))
        body = read.to_dict() | {"data": {"b": "2"}}
        replaced = self.config_maps.replace(body=body, namespace=self.namespace)
        self.assertEqual(replaced.data.to_dict(), {"b": "2"})
        with self.assertRaises(ConflictError):
            self.config_maps.replace(body=body, namespace=self.namespace)
        listed = self.config_maps.get(namespace=self.namespace, field_selector="metadata.name=settings")
        self.assertEqual((listed.kind, len(listed.items)), ("ConfigMapList", 1))
        self.config_maps.delete(name="settings", namespace=self.namespace)
        with self.assertRaises(NotFoundError):
            self.config_maps.get(name="settings", namespace=self.namespace)

    def test_server_side_apply_makes_changes_and_takes_back(self):
        apply = self.config_maps.server_side_apply
        made = apply(body=settings({"a": "1", "b": "1"}), namespace=self.namespace, field_manager="one")
        self.assertEqual(made.data.to_dict(), {"a": "1", "b": "1"})
        # What another manager says of other fields stands beside it.
        both = apply(body=settings({"c": "1"}), namespace=self.namespace, field_manager="two")
        self.assertEqual(both.data.to_dict(), {"a": "1", "b": "1", "c": "1"})
        # What a manager no longer says goes.
        less = apply(body=settings({"a": "1"}), namespace=self.namespace, field_manager="one")
        self.assertEqual(less.data.to_dict(), {"a": "1", "c": "1"})

        with self.assertRaises(ConflictError) as caught:
            apply(body=settings({"a": "2"}), namespace=self.namespace, field_manager="two")
        self.assertIn('conflict with "one": .data.a', caught.exception.summary())
        forced = apply(
            body=settings({"a": "2"}), namespace=self.namespace, field_manager="two", force_conflicts=True
        )
        self.assertEqual(forced.data.to_dict(), {"a": "2"})

    def test_the_types_of_patches_differ_in_lists(self):
        deployments = self.dynamic.resources.get(api_version="apps/v1", kind="Deployment")
        body = self.client.sanitize_for_serialization(deployment("web", 0))
        deployments.create(body=body, namespace=self.namespace)
        sidecar = {"name": "sidecar", "image": "localhost/podman-swarm-hello:2"}
        patch = {"spec": {"template": {"spec": {"containers": [sidecar]}}}}
        for media, names in [
            ("application/strategic-merge-patch+json", {"web", "sidecar"}),
            ("application/merge-patch+json", {"sidecar"}),
        ]:
            patched = deployments.patch(
                name="web", namespace=self.namespace, body=patch, content_type=media
            )
            containers = patched.spec.template.spec.containers
            self.assertEqual({container.name for container in containers}, names, media)
        with self.assertRaises(UnprocessibleEntityError):
            deployments.patch(
                name="web",
                namespace=self.namespace,
                body=[{"op": "remove", "path": "/spec/template/spec/containers/0/name"}],
                content_type="application/json-patch+json",
            )

    def test_a_field_that_is_none_is_refused_where_the_client_is_strict(self):
        body = settings({}) | {"colour": "red"}
        strict = [("fieldValidation", "Strict")]
        with self.assertRaises(BadRequestError) as caught:
            self.config_maps.create(body=body, namespace=self.namespace, query_params=strict)
        self.assertIn('strict decoding error: unknown field "colour"', caught.exception.summary())

    def test_a_status_is_written_apart(self):
        deployments = self.dynamic.resources.get(api_version="apps/v1", kind="Deployment")
        body = self.client.sanitize_for_serialization(deployment("web", 0))
        body["status"] = {"replicas": 9}
        made = deployments.create(body=body, namespace=self.namespace)
        self.assertNotEqual(made.to_dict().get("status", {}).get("replicas"), 9)
        read = deployments.status.get(name="web", namespace=self.namespace)
        self.assertEqual(read.spec.replicas, 0)


if __name__ == "__main__":
    unittest.main()

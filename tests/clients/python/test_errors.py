"""What the client raises when something is refused: Kubernetes' code, reason, words and details."""

import unittest

from kubernetes import client

from swarm import SwarmTest, api_client, config_map, deployment


class Errors(SwarmTest):
    def test_not_found_names_what_was_looked_for(self):
        status = self.refused(404, "NotFound", self.core.read_namespaced_secret, "none", self.namespace)
        self.assertEqual(status["message"], 'secrets "none" not found')
        self.assertEqual(status["details"], {"name": "none", "kind": "secrets"})
        status = self.refused(404, "NotFound", self.apps.delete_namespaced_deployment, "none", self.namespace)
        self.assertEqual(status["message"], 'deployments.apps "none" not found')
        self.assertEqual(status["details"], {"name": "none", "group": "apps", "kind": "deployments"})

    def test_a_name_that_is_taken(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("settings"))
        status = self.refused(
            409, "AlreadyExists", self.core.create_namespaced_config_map, self.namespace, config_map("settings")
        )
        self.assertEqual(status["message"], 'configmaps "settings" already exists')

    def test_a_namespace_that_is_not_there(self):
        status = self.refused(
            404, "NotFound", self.core.create_namespaced_config_map, "nowhere", config_map("settings")
        )
        self.assertEqual(status["message"], 'namespaces "nowhere" not found')
        self.assertEqual(self.core.list_namespaced_config_map("nowhere").items, [])

    def test_every_wrong_field_has_a_cause(self):
        body = deployment("web").to_dict()
        body["spec"]["replicas"] = -1
        body["spec"]["template"]["spec"]["containers"][0]["name"] = "Not A Name"
        status = self.refused(
            422, "Invalid", self.apps.create_namespaced_deployment, self.namespace, body
        )
        self.assertTrue(status["message"].startswith('Deployment.apps "web" is invalid: '), status)
        self.assertEqual(
            {cause["field"]: cause["reason"] for cause in status["details"]["causes"]},
            {
                "spec.replicas": "FieldValueInvalid",
                "spec.template.spec.containers[0].name": "FieldValueInvalid",
            },
        )

    def test_a_selector_stays_as_it_was_made(self):
        made = self.apps.create_namespaced_deployment(self.namespace, deployment("web", 0))
        made.metadata.resource_version = None
        made.spec.selector.match_labels = {"app": "other"}
        made.spec.template.metadata.labels = {"app": "other"}
        status = self.refused(
            422, "Invalid", self.apps.replace_namespaced_deployment, "web", self.namespace, made
        )
        self.assertIn("spec.selector", status["message"])
        self.assertIn("field is immutable", status["message"])

    def test_an_immutable_config_map_stays_as_it_is(self):
        body = config_map("frozen", {"a": "1"})
        body.immutable = True
        self.core.create_namespaced_config_map(self.namespace, body)
        status = self.refused(
            422,
            "Invalid",
            self.core.patch_namespaced_config_map,
            "frozen",
            self.namespace,
            {"data": {"a": "2"}},
        )
        self.assertEqual(
            status["message"],
            'ConfigMap "frozen" is invalid: data: Forbidden: field is immutable when `immutable` is set',
        )

    def test_what_is_forbidden(self):
        status = self.refused(403, "Forbidden", self.core.delete_namespace, "default")
        self.assertEqual(
            status["message"], 'namespaces "default" is forbidden: this namespace may not be deleted'
        )

    def test_a_wrong_token(self):
        stranger = api_client()
        stranger.configuration.api_key = {"BearerToken": "Bearer wrong"}
        stranger.configuration.refresh_api_key_hook = None
        status = self.refused(401, "Unauthorized", client.CoreV1Api(stranger).list_namespace)
        self.assertEqual(status["message"], "Unauthorized")

    def test_a_selector_that_is_none(self):
        self.refused(
            400, "BadRequest", self.core.list_namespaced_config_map, self.namespace, label_selector="a in ("
        )

    def test_a_field_selector_of_a_field_that_none_selects_by(self):
        self.refused(
            400, "BadRequest", self.core.list_namespaced_config_map, self.namespace, field_selector="data.a=1"
        )

    def test_a_patch_of_an_unknown_type(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("settings"))
        self.refused(
            415,
            "UnsupportedMediaType",
            self.core.patch_namespaced_config_map,
            "settings",
            self.namespace,
            {},
            _content_type="application/fancy-patch+json",
        )

    def test_a_failed_test_of_a_json_patch_changes_nothing(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("settings", {"a": "1"}))
        self.refused(
            422,
            "Invalid",
            self.core.patch_namespaced_config_map,
            "settings",
            self.namespace,
            [{"op": "remove", "path": "/data/a"}, {"op": "test", "path": "/data/b", "value": "1"}],
            _content_type="application/json-patch+json",
        )
        read = self.core.read_namespaced_config_map("settings", self.namespace)
        self.assertEqual(read.data, {"a": "1"})

    def test_more_than_fits(self):
        body = config_map("large", {"a": "x" * (4 << 20)})
        self.refused(
            413, "RequestEntityTooLarge", self.core.create_namespaced_config_map, self.namespace, body
        )

    def test_a_token_of_pages_that_is_none(self):
        self.refused(
            400, "BadRequest", self.core.list_namespaced_config_map, self.namespace, limit=1, _continue="none"
        )


if __name__ == "__main__":
    unittest.main()

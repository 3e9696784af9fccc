"""The typed client: what a script does with namespaces, config maps, secrets and deployments."""

import base64
import threading
import unittest

from kubernetes import client

from swarm import SwarmTest, api_client, config_map, deployment, wait_for


class Namespaces(SwarmTest):
    def test_a_namespace_is_listed_labelled_and_deleted_with_what_is_in_it(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("settings", {"a": "b"}))
        patched = self.core.patch_namespace(self.namespace, {"metadata": {"labels": {"team": "shop"}}})
        self.assertEqual(patched.metadata.labels["team"], "shop")
        self.assertEqual(patched.metadata.labels["kubernetes.io/metadata.name"], self.namespace)
        listed = self.core.list_namespace(label_selector="team=shop")
        self.assertIn(self.namespace, [item.metadata.name for item in listed.items])

        other = f"{self.namespace}-other"
        self.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=other)))
        self.core.create_namespaced_config_map(other, config_map("settings"))
        self.core.delete_namespace(other)
        wait_for("the namespace to be gone", lambda: not self.exists(other))
        self.core.read_namespaced_config_map("settings", self.namespace)

    def exists(self, name):
        items = self.core.list_namespace(field_selector=f"metadata.name={name}").items
        return bool(items)


class ConfigMapsAndSecrets(SwarmTest):
    def test_a_config_map_is_made_read_changed_and_deleted(self):
        made = self.core.create_namespaced_config_map(self.namespace, config_map("settings", {"a": "1"}))
        self.assertTrue(made.metadata.uid and made.metadata.resource_version and made.metadata.creation_timestamp)
        read = self.core.read_namespaced_config_map("settings", self.namespace)
        self.assertEqual(read.to_dict(), made.to_dict())

        read.data = {"b": "2"}
        replaced = self.core.replace_namespaced_config_map("settings", self.namespace, read)
        self.assertEqual(replaced.data, {"b": "2"}, "a replacement leaves nothing of before")
        self.assertEqual(replaced.metadata.uid, made.metadata.uid)
        self.assertNotEqual(replaced.metadata.resource_version, made.metadata.resource_version)

        listed = self.core.list_namespaced_config_map(self.namespace, field_selector="metadata.name=settings")
        self.assertEqual([item.metadata.name for item in listed.items], ["settings"])
        deleted = self.core.delete_namespaced_config_map("settings", self.namespace)
        self.assertEqual((deleted["kind"], deleted["status"]), ("Status", "Success"))
        self.refused(404, "NotFound", self.core.read_namespaced_config_map, "settings", self.namespace)

    def test_each_type_of_patch_does_what_its_name_says(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("settings", {"a": "1", "b": "2"}))
        for media, body, expected in [
            ("application/merge-patch+json", {"data": {"a": None, "c": "3"}}, {"b": "2", "c": "3"}),
            ("application/strategic-merge-patch+json", {"data": {"d": "4"}}, {"b": "2", "c": "3", "d": "4"}),
            (
                "application/json-patch+json",
                [
                    {"op": "test", "path": "/data/b", "value": "2"},
                    {"op": "remove", "path": "/data/c"},
                    {"op": "replace", "path": "/data/d", "value": "5"},
                ],
                {"b": "2", "d": "5"},
            ),
        ]:
            patched = self.core.patch_namespaced_config_map(
                "settings", self.namespace, body, _content_type=media
            )
            self.assertEqual(patched.data, expected, media)

    def test_a_dry_run_changes_nothing(self):
        dry = self.core.create_namespaced_config_map(self.namespace, config_map("dry"), dry_run="All")
        self.assertEqual(dry.metadata.name, "dry")
        self.refused(404, "NotFound", self.core.read_namespaced_config_map, "dry", self.namespace)

    def test_a_generated_name_is_its_own_each_time(self):
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="run-"))
        names = {
            self.core.create_namespaced_config_map(self.namespace, body).metadata.name for _ in range(5)
        }
        self.assertEqual(len(names), 5)
        self.assertTrue(all(name.startswith("run-") for name in names), names)

    def test_a_secret_keeps_bytes_and_takes_strings(self):
        value = bytes(range(256))
        body = client.V1Secret(
            metadata=client.V1ObjectMeta(name="login"),
            data={"key": base64.b64encode(value).decode()},
            string_data={"password": "hunter2"},
        )
        made = self.core.create_namespaced_secret(self.namespace, body)
        self.assertEqual((made.type, made.string_data), ("Opaque", None))
        read = self.core.read_namespaced_secret("login", self.namespace).data
        self.assertEqual(base64.b64decode(read["key"]), value)
        self.assertEqual(base64.b64decode(read["password"]), b"hunter2")

    def test_a_collection_is_deleted_by_label(self):
        for name, tier in [("a", "front"), ("b", "front"), ("c", "back")]:
            self.core.create_namespaced_config_map(self.namespace, config_map(name, labels={"tier": tier}))
        self.core.delete_collection_namespaced_config_map(self.namespace, label_selector="tier=front")
        left = self.core.list_namespaced_config_map(self.namespace, label_selector="tier")
        self.assertEqual([item.metadata.name for item in left.items], ["c"])

    def test_the_pages_of_a_list_are_one_state(self):
        names = [f"page-{number}" for number in range(7)]
        for name in names:
            self.core.create_namespaced_config_map(self.namespace, config_map(name, labels={"page": "yes"}))
        seen, token, remaining = [], None, []
        while True:
            page = self.core.list_namespaced_config_map(
                self.namespace, limit=3, _continue=token, label_selector="page=yes"
            )
            seen += [item.metadata.name for item in page.items]
            if token is None:
                # What comes after the first page is not in the pages that follow.
                self.core.create_namespaced_config_map(
                    self.namespace, config_map("page-9", labels={"page": "yes"})
                )
            remaining.append(len(page.items))
            token = page.metadata._continue
            if not token:
                break
        self.assertEqual((seen, remaining), (names, [3, 3, 1]))


class Deployments(SwarmTest):
    def test_a_deployment_runs_scales_rolls_and_goes_with_its_pods(self):
        self.apps.create_namespaced_deployment(self.namespace, deployment("web", 2))
        self.available(2)
        pods = self.pods()
        self.assertEqual(len(pods), 2)
        log = self.core.read_namespaced_pod_log(pods[0], self.namespace)
        self.assertIn("listening on port 8080", log)

        self.apps.patch_namespaced_deployment_scale("web", self.namespace, {"spec": {"replicas": 3}})
        self.available(3)
        scale = self.apps.read_namespaced_deployment_scale("web", self.namespace)
        self.assertEqual((scale.spec.replicas, scale.status.selector), (3, "app=web"))

        # A strategic merge patch finds the container by its name.
        container = {"name": "web", "env": [{"name": "MESSAGE", "value": "hello"}]}
        patched = self.apps.patch_namespaced_deployment(
            "web",
            self.namespace,
            {"spec": {"template": {"spec": {"containers": [container]}}}},
            _content_type="application/strategic-merge-patch+json",
        )
        self.assertEqual(
            [(each.name, each.image) for each in patched.spec.template.spec.containers],
            [("web", "localhost/podman-swarm-hello:1")],
        )
        self.available(3, patched.metadata.generation)
        wait_for("only pods of the new template", lambda: not set(pods) & set(self.pods()))

        self.apps.delete_namespaced_deployment("web", self.namespace, propagation_policy="Background")
        wait_for("its pods to go", lambda: not self.pods())
        sets = self.apps.list_namespaced_replica_set(self.namespace).items
        self.assertEqual(sets, [])

    def available(self, replicas, generation=0):
        def seen():
            status = self.apps.read_namespaced_deployment_status("web", self.namespace).status
            current = (status.observed_generation or 0) >= generation
            numbers = (status.replicas, status.updated_replicas, status.available_replicas)
            return current and numbers == (replicas,) * 3

        wait_for(f"{replicas} replicas", seen)

    def pods(self):
        listed = self.core.list_namespaced_pod(self.namespace, label_selector="app=web")
        return [pod.metadata.name for pod in listed.items]


class Conflicts(SwarmTest):
    def test_of_two_who_read_the_same_version_one_wins(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("settings", {"by": "nobody"}))
        first = self.core.read_namespaced_config_map("settings", self.namespace)
        second = self.core.read_namespaced_config_map("settings", self.namespace)
        first.data, second.data = {"by": "first"}, {"by": "second"}
        self.core.replace_namespaced_config_map("settings", self.namespace, first)
        status = self.refused(
            409, "Conflict", self.core.replace_namespaced_config_map, "settings", self.namespace, second
        )
        self.assertEqual(
            status["message"],
            'Operation cannot be fulfilled on configmaps "settings": the object has been modified; '
            "please apply your changes to the latest version and try again",
        )
        read = self.core.read_namespaced_config_map("settings", self.namespace)
        self.assertEqual(read.data, {"by": "first"})

    def test_those_who_try_again_lose_no_write(self):
        writers, turns = 4, 10
        self.core.create_namespaced_config_map(self.namespace, config_map("counter", {"n": "0"}))
        conflicts = []

        def count():
            core = client.CoreV1Api(api_client())
            for _ in range(turns):
                while True:
                    read = core.read_namespaced_config_map("counter", self.namespace)
                    read.data["n"] = str(int(read.data["n"]) + 1)
                    try:
                        core.replace_namespaced_config_map("counter", self.namespace, read)
                        break
                    except client.ApiException as error:
                        if error.status != 409:
                            raise
                        conflicts.append(error)

        threads = [threading.Thread(target=count) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        read = self.core.read_namespaced_config_map("counter", self.namespace)
        self.assertEqual(read.data["n"], str(writers * turns), f"after {len(conflicts)} conflicts")

    def test_a_version_of_one_node_holds_on_the_other(self):
        other = client.CoreV1Api(api_client(1))
        self.core.create_namespaced_config_map(self.namespace, config_map("settings", {"n": "0"}))
        read = wait_for("the config map on the other node", lambda: self.read(other))
        read.data = {"n": "1"}
        # Read on the second node, written on the first.
        written = self.core.replace_namespaced_config_map("settings", self.namespace, read)
        self.assertEqual(written.data, {"n": "1"})
        self.refused(
            409, "Conflict", self.core.replace_namespaced_config_map, "settings", self.namespace, read
        )

    def read(self, core):
        listed = core.list_namespaced_config_map(self.namespace, field_selector="metadata.name=settings")
        return next(iter(listed.items), None)


if __name__ == "__main__":
    unittest.main()

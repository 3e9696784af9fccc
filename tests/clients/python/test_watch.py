"""Watches: from a version, for a time, by label, over two nodes, and the library's own informer."""

import logging
import threading
import time
import unittest

from kubernetes import client, informer, watch
from kubernetes.dynamic import DynamicClient

from swarm import DEADLINE_S, SwarmTest, api_client, config_map, wait_for


class Watches(SwarmTest):
    def version(self, core=None):
        listed = (core or self.core).list_namespaced_config_map(self.namespace)
        return listed.metadata.resource_version

    def events(self, core, enough, **options):
        """Reads events until there are `enough`: type, name and data of each."""
        watcher, seen = watch.Watch(), []
        options.setdefault("timeout_seconds", DEADLINE_S)
        for event in watcher.stream(core.list_namespaced_config_map, self.namespace, **options):
            item = event["object"]
            seen.append((event["type"], item.metadata.name, item.data))
            if len(seen) == enough:
                watcher.stop()
        return seen

    def change(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("a", {"n": "1"}))
        self.core.patch_namespaced_config_map("a", self.namespace, {"data": {"n": "2"}})
        self.core.delete_namespaced_config_map("a", self.namespace)

    CHANGES = [("ADDED", "a", {"n": "1"}), ("MODIFIED", "a", {"n": "2"}), ("DELETED", "a", {"n": "2"})]

    def test_a_watch_from_a_version_shows_every_change_since(self):
        since = self.version()
        self.change()
        self.assertEqual(self.events(self.core, 3, resource_version=since), self.CHANGES)

    def test_a_watch_without_a_version_begins_with_what_is_there(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("a", {"n": "1"}, {"x": "y"}))
        seen = self.events(self.core, 1, label_selector="x=y")
        self.assertEqual(seen, [("ADDED", "a", {"n": "1"})])

    def test_a_watch_ends_when_its_time_is_over(self):
        start = time.monotonic()
        seen = self.events(self.core, 1, resource_version=self.version(), timeout_seconds=2)
        took_s = time.monotonic() - start
        self.assertEqual(seen, [])
        self.assertTrue(1.5 < took_s < 10, f"{took_s} s")

    def test_a_change_of_labels_moves_an_object_into_a_watch_and_out(self):
        self.core.create_namespaced_config_map(self.namespace, config_map("a"))
        since = self.version()
        for tier in ["front", "back"]:
            self.core.patch_namespaced_config_map(
                "a", self.namespace, {"metadata": {"labels": {"tier": tier}}}
            )
        seen = self.events(self.core, 2, resource_version=since, label_selector="tier=front")
        self.assertEqual([(kind, name) for kind, name, _ in seen], [("ADDED", "a"), ("DELETED", "a")])

    def test_a_watch_on_one_node_sees_what_is_written_on_the_other(self):
        other = client.CoreV1Api(api_client(1))
        names = [f"made-{number}" for number in range(10)]
        # The namespace itself may still be under way to the other node; a list of it is not.
        since = self.version(other)

        def write():
            for name in names:
                self.core.create_namespaced_config_map(self.namespace, config_map(name, labels={"x": "y"}))

        writer = threading.Thread(target=write)
        writer.start()
        seen = self.events(other, len(names), resource_version=since, label_selector="x=y")
        writer.join()
        self.assertEqual(sorted(name for _, name, _ in seen), names)

    def test_a_version_of_one_node_is_gone_on_the_other(self):
        other = client.CoreV1Api(api_client(1))
        with self.assertRaises(client.ApiException) as caught:
            self.events(other, 1, resource_version=self.version())
        self.assertEqual(caught.exception.status, 410)
        self.assertEqual(self.events(other, 1, resource_version=self.version(other), timeout_seconds=1), [])

    def test_bookmarks_tell_how_far_a_watch_is(self):
        stream = watch.Watch().stream(
            self.core.list_namespaced_config_map,
            self.namespace,
            resource_version=self.version(),
            allow_watch_bookmarks=True,
            timeout_seconds=1,
        )
        seen = [event for event in stream if event["type"] == "BOOKMARK"]
        self.assertTrue(seen, "a watch whose time is over ends with a bookmark")
        self.assertTrue(seen[-1]["raw_object"]["metadata"]["resourceVersion"])
        self.assertEqual(seen[-1]["raw_object"]["kind"], "ConfigMap")

    def test_the_dynamic_client_watches_one_object_by_name(self):
        resource = DynamicClient(self.client).resources.get(api_version="v1", kind="ConfigMap")
        for name in ["a", "b"]:
            self.core.create_namespaced_config_map(self.namespace, config_map(name))
        seen = [
            (event["type"], event["object"].metadata.name)
            for event in resource.watch(namespace=self.namespace, name="b", timeout=1)
        ]
        self.assertEqual(seen, [("ADDED", "b")])


class Informer(SwarmTest):
    def test_the_informer_keeps_what_is_there(self):
        for name in ["kept", "removed"]:
            self.core.create_namespaced_config_map(self.namespace, config_map(name, {"n": "0"}, {"x": "y"}))
        informed = informer.SharedInformer(
            self.core.list_namespaced_config_map, self.namespace, label_selector="x=y"
        )
        events = []
        for kind in [informer.ADDED, informer.MODIFIED, informer.DELETED]:
            informed.add_event_handler(kind, lambda item, kind=kind: events.append((kind, item.metadata.name)))
        # It tells of the connection that its own stop cuts.
        logging.getLogger("kubernetes.informer").setLevel(logging.CRITICAL)
        informed.start()
        self.addCleanup(informed.stop)
        wait_for("the first list", lambda: len(informed.cache.list()) == 2)
        self.core.delete_namespaced_config_map("removed", self.namespace)
        for number in range(1, 6):
            self.core.patch_namespaced_config_map("kept", self.namespace, {"data": {"n": str(number)}})
        self.core.create_namespaced_config_map(self.namespace, config_map("new", {}, {"x": "y"}))

        def cached():
            kept = informed.cache.get_by_key(f"{self.namespace}/kept")
            keys = sorted(informed.cache.list_keys())
            return kept.data == {"n": "5"} and keys == [f"{self.namespace}/kept", f"{self.namespace}/new"]

        wait_for("the cache to be what is there", cached)
        self.assertEqual(events.count((informer.MODIFIED, "kept")), 5, events)
        self.assertEqual(events.count((informer.DELETED, "removed")), 1, events)


if __name__ == "__main__":
    unittest.main()

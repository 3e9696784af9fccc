"""An informer over two nodes, of which one is stopped and started while objects are written: it must miss nothing.

Prints `stop N` and `start N` where the agent of host N is to be stopped and started; whoever runs it does so and answers
with a line. Ends with 0 if what the informer holds is what there is.
"""

import sys
import threading
import time

import urllib3
from kubernetes import client, watch

from swarm import KUBECONFIGS, api_client, config_map, wait_for

NAMESPACE = "failover"
# A node that is stopped refuses connections at once; one that hangs is given up after this.
TIMEOUT_S = 5
# Every namespace has it.
CLUSTERS_OWN = "kube-root-ca.crt"


class Informer(threading.Thread):
    """Lists, then watches from there; goes over to the next node when one does not answer, as clients behind a list of
    addresses do."""

    def __init__(self):
        super().__init__(daemon=True)
        retries = urllib3.Retry(connect=0, read=0)
        self.clients = []
        for number in range(len(KUBECONFIGS)):
            one = api_client(number)
            one.rest_client.pool_manager.connection_pool_kw["retries"] = retries
            self.clients.append(client.CoreV1Api(one))
        self.node = 0
        self.cache = {}
        self.gone = 0
        self.lists = 0
        # What each object was seen as, in this order.
        self.history = {}
        self.failure = None

    def run(self):
        try:
            version = None
            while True:
                version = self.turn(version)
        except Exception as error:  # Shown by the main thread.
            self.failure = error
            raise

    def turn(self, version):
        """One list or watch. Returns the version to go on from; None: list again."""
        core = self.clients[self.node]
        try:
            if version is None:
                listed = core.list_namespaced_config_map(NAMESPACE, _request_timeout=TIMEOUT_S)
                items = {item.metadata.name: item for item in listed.items}
                for name in set(self.cache) - set(items):
                    self.see(name, None)
                for name, item in items.items():
                    self.see(name, item)
                self.lists += 1
                return listed.metadata.resource_version
            watcher = watch.Watch()
            stream = watcher.stream(
                core.list_namespaced_config_map, NAMESPACE, resource_version=version, timeout_seconds=TIMEOUT_S
            )
            for event in stream:
                item = event["object"]
                self.see(item.metadata.name, None if event["type"] == "DELETED" else item)
                version = item.metadata.resource_version
            return version
        except client.ApiException as error:
            if error.status == 410:
                self.gone += 1
                return None
            if error.status < 500:
                raise
        except urllib3.exceptions.HTTPError:
            pass
        self.node = (self.node + 1) % len(self.clients)
        time.sleep(0.05)
        return version

    def see(self, name, item):
        if name == CLUSTERS_OWN:
            return
        if item is None:
            self.cache.pop(name, None)
        else:
            self.cache[name] = item
        seen = self.history.setdefault(name, [])
        number = None if item is None else int(item.data["n"])
        if not seen or seen[-1] != number:
            seen.append(number)


def order(line):
    """Has the caller do something to a host, and waits until it is done."""
    print(line, flush=True)
    if sys.stdin.readline().strip() != "done":
        sys.exit(f"{line} was not done")


def write(core, start):
    """Makes, changes and deletes: of ten objects, those that end in 0, 3, 6 and 9 go again."""
    for number in range(start, start + 10):
        name = f"object-{number}"
        core.create_namespaced_config_map(NAMESPACE, config_map(name, {"n": "0"}))
        for turn in range(1, 4):
            core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"n": str(turn)}})
        if number % 10 % 3 == 0:
            core.delete_namespaced_config_map(name, NAMESPACE)
    # Of the ten before, one changes and one goes.
    if start:
        core.patch_namespaced_config_map(f"object-{start - 9}", NAMESPACE, {"data": {"n": "4"}})
        core.delete_namespaced_config_map(f"object-{start - 8}", NAMESPACE)


def state(items):
    return {item.metadata.name: item.data["n"] for item in items if item.metadata.name != CLUSTERS_OWN}


def main():
    first, second = (client.CoreV1Api(api_client(number)) for number in range(2))
    first.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    wait_for("the namespace on the second node", lambda: second.list_namespace(
        field_selector=f"metadata.name={NAMESPACE}").items)
    informer = Informer()
    informer.start()

    def caught_up(core):
        if informer.failure:
            raise informer.failure
        there = state(core.list_namespaced_config_map(NAMESPACE).items)
        held = state(informer.cache.values())
        return there == held

    try:
        story(informer, caught_up, first, second)
    except AssertionError:
        print(f"seen: {informer.history}", file=sys.stderr)
        raise


def story(informer, caught_up, first, second):
    """Stops and starts the nodes, one after the other, beside writes."""

    def written(core, start):
        write(core, start)
        wait_for("the informer to hold what there is", lambda: caught_up(core))

    written(second, 0)
    assert (informer.node, informer.gone) == (0, 0), "it watches the first node"

    # The first node stops in the middle of writes.
    writer = threading.Thread(target=write, args=(second, 10))
    writer.start()
    order("stop 1")
    writer.join()
    wait_for("the informer to go over", lambda: caught_up(second) and informer.node == 1)
    assert informer.gone == 1, "the version of the first node was answered with 410 by the second"
    written(second, 20)

    # And back, to a node that was away and has to learn what happened.
    order("start 1")
    writer = threading.Thread(target=write, args=(first, 30))
    writer.start()
    order("stop 2")
    writer.join()
    wait_for("the informer to go back", lambda: caught_up(first) and informer.node == 0)
    assert informer.gone >= 2, "a version of the second node was answered with 410 by the first"
    written(first, 40)
    order("start 2")

    for name, seen in informer.history.items():
        # What came while no watch was open may be seen late, in one step; never backwards.
        numbers = [number for number in seen if number is not None]
        assert numbers == sorted(numbers), f"{name} went back: {seen}"
        assert None not in seen[:-1], f"{name} was deleted and came back: {seen}"
    kept = [name for name in informer.cache if name.startswith("object-")]
    assert len(kept) == 5 * 6 - 4, sorted(kept)
    print(f"ok: {informer.lists} lists, {informer.gone} times 410", file=sys.stderr)


if __name__ == "__main__":
    main()

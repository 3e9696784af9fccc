"""Commands in a pod on the other node, as `kubernetes.stream` runs them."""

import unittest

from kubernetes import client
from kubernetes.stream import stream

from swarm import DEADLINE_S, SwarmTest, wait_for


class Exec(SwarmTest):
    def setUp(self):
        super().setUp()
        container = client.V1Container(
            name="box", image="localhost/busybox:test", command=["/bin/sh", "-c", "sleep 100000"]
        )
        spec = client.V1PodSpec(containers=[container], node_name="node2", termination_grace_period_seconds=0)
        self.core.create_namespaced_pod(
            self.namespace, client.V1Pod(metadata=client.V1ObjectMeta(name="box"), spec=spec)
        )
        wait_for("the pod runs", self.runs)

    def runs(self):
        return self.core.read_namespaced_pod("box", self.namespace).status.phase == "Running"

    def exec(self, command, pod="box", **options):
        """Runs a line in a shell; returns all it printed, or its session if `_preload_content` is false."""
        options = {"stdin": False, "stdout": True, "stderr": True, "tty": False, **options}
        call = self.core.connect_get_namespaced_pod_exec
        return stream(call, pod, self.namespace, command=["/bin/sh", "-c", command], **options)

    def open(self, command, **options):
        session = self.exec(command, _preload_content=False, **options)
        self.addCleanup(session.close)
        return session

    def test_what_a_command_prints_is_returned(self):
        printed = self.exec("echo out; echo err >&2")
        self.assertEqual(sorted(printed.splitlines()), ["err", "out"])

    def test_output_errors_and_exit_code_are_apart(self):
        session = self.open("echo out; echo err >&2; exit 3")
        session.run_forever(timeout=DEADLINE_S)
        self.assertEqual((session.read_stdout(), session.read_stderr()), ("out\n", "err\n"))
        self.assertEqual(session.returncode, 3)
        session = self.open("true")
        session.run_forever(timeout=DEADLINE_S)
        self.assertEqual(session.returncode, 0)

    def test_a_command_reads_what_is_written(self):
        session = self.open('read line; echo "got $line"; read line; echo "and $line"', stdin=True)
        session.write_stdin("one\n")
        self.assertEqual(session.readline_stdout(timeout=DEADLINE_S), "got one")
        session.write_stdin("two\n")
        self.assertEqual(session.readline_stdout(timeout=DEADLINE_S), "and two")
        session.run_forever(timeout=DEADLINE_S)
        self.assertEqual(session.returncode, 0)

    def test_a_terminal_is_one(self):
        printed = self.exec("test -t 0 && test -t 1 && echo a terminal", stdin=True, tty=True)
        self.assertEqual(printed, "a terminal\r\n")

    def test_a_pod_that_is_not_there(self):
        with self.assertRaises(client.ApiException) as caught:
            self.exec("true", pod="none")
        self.assertIn("404", f"{caught.exception.status} {caught.exception.reason}")


if __name__ == "__main__":
    unittest.main()

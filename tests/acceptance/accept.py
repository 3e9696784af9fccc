#!/usr/bin/env python3
"""Acceptance suite of Podman Swarm, written from the issue's text alone.

It makes pretend hosts (network namespaces with a real Podman each, `tests/cluster/hosts.sh`), runs the release
programs on them, and checks from outside, line by line, what the issue says a user gets. Nothing of the product's
source is used. Needs root, Debian's podman, git, openssl, busybox-static, and kubectl.

    accept.py                         everything (seven minutes on two cores)
    accept.py --only '5.*,dns'        ids that match a pattern, or begin with it
    accept.py --list                  ids and titles
    accept.py --bin DIR               the folder of podman-swarm-agent and psctl
    accept.py --logs DIR              where to keep the agents' logs

An id names the line of the issue: `5.2` is of story 5, `agent.*`, `api.*`, `schemas.*`, … are of "The parts". One
scenario sets something up and makes several checks, so `--only` may run more than it was asked for.

It cleans up after itself, also after Ctrl-C, and ends with `N passed, N failed`; the exit code is 0 if none failed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import dataclasses
import fnmatch
import gzip
import hashlib
import http.client
import http.server
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import socketserver
import ssl
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import urllib.parse

NAME = "acc"  # hosts are acc1…, the LAN is the namespace accsw
LAN = NAME + "sw"
DESK = "10.231.0.254"  # the operator's desk, on the LAN
HELLO = "localhost/podman-swarm-hello"
HELLO1, HELLO2 = HELLO + ":1", HELLO + ":2"
BUSYBOX = "localhost/busybox:test"
FILES_PORT, REGISTRY_PORT = 8000, 5000  # our own servers at the desk
DEFAULT_DATA = "/var/lib/podman-swarm"
SECRET_FILES = ("join.token", "api.token", "admin.kubeconfig", "encryption.key")


# ------------------------------------------------------------------------------------------- failing and waiting


class Failed(Exception):
    """What was seen is not what the issue says."""


def expect(condition, message):
    if not condition:
        raise Failed(message)


def equal(seen, wanted, what):
    expect(seen == wanted, f"{what}: {brief(seen)}, expected {brief(wanted)}")


def brief(value, limit=600):
    text = value if isinstance(value, str) else repr(value)
    text = text.strip().replace("\n", " ⏎ ")
    return text if len(text) <= limit else text[:limit] + " …"


def wait_for(what, probe, seconds=30.0, every=0.03):
    """Polls until `probe` answers something true, and returns it. A probe may raise Failed to say what it saw."""
    end, last = time.monotonic() + seconds, None
    while True:
        try:
            last = probe()
            if last:
                return last
        except (Failed, OSError, http.client.HTTPException) as error:
            last = error
        if time.monotonic() >= end:
            raise Failed(f"after {seconds:g} s still not: {what}; last seen: {brief(str(last))}")
        time.sleep(every)


class Sampler:
    """Calls `probe` over and over in a thread while the block runs; keeps (time, value or exception)."""

    def __init__(self, probe, every=0.02):
        self.probe, self.every, self.samples = probe, every, []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.ended.is_set():
            begun = time.monotonic()
            try:
                value = self.probe()
            except Exception as error:  # kept, and judged by who looks at the samples
                value = error
            self.samples.append((begun, time.monotonic() - begun, value))
            self.ended.wait(self.every)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join(30)

    def values(self):
        return [value for _, _, value in self.samples if not isinstance(value, Exception)]

    def errors(self):
        return [(begun, value) for begun, _, value in self.samples if isinstance(value, Exception)]


# ------------------------------------------------------------------------------------------- network namespaces

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def inside(namespace):
    """Sockets that this thread opens in the block belong to that network namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    except OSError:
        os.close(own)
        raise
    try:
        if LIBC.setns(there, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        LIBC.setns(own, CLONE_NEWNET)
        os.close(own)
        os.close(there)


def connect(namespace, address, timeout=5.0):
    with inside(namespace):
        return socket.create_connection(address, timeout)


def listen(namespace, address, kind=socket.SOCK_STREAM):
    with inside(namespace):
        sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen(64)
    return sock


# ------------------------------------------------------------------------------------------- HTTP


@dataclasses.dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"not JSON ({self.status}): {brief(self.text)}") from None

    def warnings(self):
        return self.headers.get_all("Warning") or []


class Connection(http.client.HTTPConnection):
    def __init__(self, namespace, host, port, tls=None, timeout=10.0, server_name=None):
        super().__init__(host, port, timeout=timeout)
        self.namespace, self.tls, self.server_name = namespace, tls, server_name or host

    def connect(self):
        self.sock = connect(self.namespace, (self.host, self.port), self.timeout)
        if self.tls:
            self.sock = self.tls.wrap_socket(self.sock, server_hostname=self.server_name)


def http_request(namespace, host, port, method, path, *, body=None, headers=None, tls=None, timeout=10.0):
    begun = time.monotonic()
    connection = Connection(namespace, host, port, tls, timeout)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read(), time.monotonic() - begun)
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------- DNS

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "TXT": 16, "AAAA": 28, "SRV": 33}
TYPE_NAMES = {number: name for name, number in TYPES.items()}
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


@dataclasses.dataclass
class Record:
    name: str
    type: str
    ttl: int
    data: object


@dataclasses.dataclass
class DnsAnswer:
    rcode: str
    records: list

    def addresses(self):
        return sorted(record.data for record in self.records if record.type == "A")


def dns_name(name):
    labels = [label.encode() for label in name.strip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def dns_read_name(packet, at):
    labels, jumped, end = [], False, at
    while True:
        length = packet[at]
        if length & 0xC0:
            if not jumped:
                end = at + 2
            at, jumped = (length & 0x3F) << 8 | packet[at + 1], True
            continue
        at += 1
        if not length:
            return ".".join(labels), (end if jumped else at)
        labels.append(packet[at : at + length].decode())
        at += length


def dns_parse(packet):
    _, flags, questions, answers, _, _ = struct.unpack("!6H", packet[:12])
    at, records = 12, []
    for _ in range(questions):
        _, at = dns_read_name(packet, at)
        at += 4
    for _ in range(answers):
        name, at = dns_read_name(packet, at)
        kind, _, ttl, length = struct.unpack("!HHIH", packet[at : at + 10])
        at += 10
        raw, kind = packet[at : at + length], TYPE_NAMES.get(kind, str(kind))
        if kind == "A":
            data = socket.inet_ntoa(raw)
        elif kind in ("CNAME", "PTR"):
            data = dns_read_name(packet, at)[0]
        elif kind == "SRV":
            data = (*struct.unpack("!3H", raw[:6]), dns_read_name(packet, at + 6)[0])
        else:
            data = raw
        records.append(Record(name, kind, ttl, data))
        at += length
    return DnsAnswer(RCODES.get(flags & 15, str(flags & 15)), records)


def dns(namespace, server, name, kind="A", tcp=False, timeout=3.0, port=53):
    query = struct.pack("!6H", secrets.randbelow(65536), 0x0100, 1, 0, 0, 0) + dns_name(name) + struct.pack("!2H", TYPES[kind], 1)
    if tcp:
        with connect(namespace, (server, port), timeout) as sock:
            sock.sendall(struct.pack("!H", len(query)) + query)
            stream = sock.makefile("rb")
            length = stream.read(2)
            expect(len(length) == 2, f"{server}:{port}/tcp closed the connection without an answer")
            return dns_parse(stream.read(struct.unpack("!H", length)[0]))
    with inside(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(timeout)
        sock.connect((server, port))
        sock.send(query)
        return dns_parse(sock.recv(65535))


class Upstream(threading.Thread):
    """The DNS of the world outside: a few names, everything else NXDOMAIN. Remembers what it was asked."""

    NAMES = {
        "allowed.net": [("A", "192.0.2.1")],
        "sub.allowed.net": [("A", "192.0.2.2")],
        "forbidden.net": [("A", "192.0.2.3")],
        "evilallowed.net": [("A", "192.0.2.4")],
        "alias.allowed.net": [("CNAME", "target.other.org")],
        "target.other.org": [("A", "192.0.2.5")],
        "inner.allowed.net": [("CNAME", "sub.allowed.net")],
    }

    def __init__(self):
        super().__init__(daemon=True)
        self.udp = listen(LAN, (DESK, 53), socket.SOCK_DGRAM)
        self.tcp = listen(LAN, (DESK, 53))
        self.asked = []
        threading.Thread(target=self._serve_tcp, daemon=True).start()

    def run(self):
        while True:
            try:
                packet, peer = self.udp.recvfrom(4096)
                self.udp.sendto(self._answer(packet), peer)
            except OSError:
                return
            except (IndexError, struct.error):
                continue

    def _serve_tcp(self):
        while True:
            try:
                sock, _ = self.tcp.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError, struct.error, IndexError):
                sock.settimeout(2)
                stream = sock.makefile("rb")
                packet = stream.read(struct.unpack("!H", stream.read(2))[0])
                answer = self._answer(packet)
                sock.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, packet):
        name, end = dns_read_name(packet, 12)
        kind = TYPE_NAMES.get(struct.unpack("!H", packet[end : end + 2])[0], "?")
        self.asked.append(name.lower())
        answers, at = [], name.lower()
        known = at in self.NAMES
        while at in self.NAMES:
            (record, data), owner = self.NAMES[at][0], at
            if record == "CNAME":
                raw = dns_name(data)
                answers.append(dns_name(owner) + struct.pack("!HHIH", 5, 1, 60, len(raw)) + raw)
                at = data
                continue
            if kind == "A":
                answers.append(dns_name(owner) + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(data))
            break
        soa = dns_name("a.root") + dns_name("b.root") + struct.pack("!5I", 1, 2, 3, 4, 5)
        authority = b"" if answers else b"\0" + struct.pack("!HHIH", 6, 1, 60, len(soa)) + soa
        header = packet[:2] + struct.pack("!5H", 0x8180 | (0 if known else 3), 1, len(answers), 0 if answers else 1, 0)
        return header + packet[12 : end + 4] + b"".join(answers) + authority

    def close(self):
        # A thread that waits in recvfrom does not see close; a shutdown wakes it.
        for sock in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


# ------------------------------------------------------------------------------------------- images, registry, Git


def scratch_layer(files, links=(), folders=()):
    """A layer as a tar: {path: (content, mode)}, [(path, target)], [path]."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path in folders:
            info = tarfile.TarInfo(path)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if path == "tmp" else 0o755
            tar.addfile(info)
        for path, (content, mode) in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
        for path, target in links:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return raw.getvalue()


def image_config(layer, config):
    digest = "sha256:" + hashlib.sha256(layer).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    return json.dumps(
        {
            "architecture": machine,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created_by": "accept.py"}],
        }
    ).encode()


def save_archive(path, images):
    """`podman load`'s docker-archive: [(tags, layer, config)]."""
    manifest = []
    with tarfile.open(path, "w") as tar:

        def add(name, content):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for number, (tags, layer, config) in enumerate(images):
            raw = image_config(layer, config)
            config_name, layer_name = hashlib.sha256(raw).hexdigest() + ".json", f"layer{number}.tar"
            add(config_name, raw)
            add(layer_name, layer)
            manifest.append({"Config": config_name, "RepoTags": tags, "Layers": [layer_name]})
        add("manifest.json", json.dumps(manifest).encode())


def busybox_layer():
    binary = pathlib.Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    whoami = b'#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s\\n" "$REMOTE_ADDR"\n'
    return scratch_layer(
        {
            "bin/busybox": (binary, 0o755),
            "www/index.html": (b"hello\n", 0o644),
            "www/cgi-bin/whoami": (whoami, 0o755),
            "etc/passwd": (b"root:x:0:0:root:/:/bin/sh\n", 0o644),
        },
        [(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"],
        ["bin", "tmp", "www", "www/cgi-bin", "work", "etc"],
    )


class DeskServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """An HTTP server at the desk. `seen` has (client, method, path) of every request."""

    daemon_threads = True

    def __init__(self, port, handler, tls=None):
        super().__init__((DESK, port), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen(LAN, (DESK, port))
        self.server_name, self.server_port = DESK, port
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.seen, self.files, self.git_root = [], {}, None
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass


class FilesAndGit(http.server.BaseHTTPRequestHandler):
    """/files/NAME from memory, /git/REPOSITORY through `git http-backend`."""

    def do_GET(self):
        self.server.seen.append((time.monotonic(), self.client_address[0], self.command, self.path))
        if self.path.startswith("/git/"):
            return self.git()
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    do_POST = do_GET

    def git(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.server.git_root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path[len("/git") :],
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "REMOTE_ADDR": self.client_address[0],
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "HOME": str(self.server.git_root),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.send_response(status)
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Registry(http.server.BaseHTTPRequestHandler):
    """Enough of a container registry for `podman pull`: the busybox image under any name and tag but `absent`."""

    protocol_version = "HTTP/1.1"
    blobs: dict = {}
    manifest = b""

    @classmethod
    def fill(cls, layer, config):
        raw_config, packed = image_config(layer, config), gzip.compress(layer, 1)
        digest = lambda content: "sha256:" + hashlib.sha256(content).hexdigest()
        cls.blobs = {digest(raw_config): raw_config, digest(packed): packed}
        kind = "application/vnd.docker."
        cls.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": kind + "distribution.manifest.v2+json",
                "config": {"mediaType": kind + "container.image.v1+json", "size": len(raw_config), "digest": digest(raw_config)},
                "layers": [{"mediaType": kind + "image.rootfs.diff.tar.gzip", "size": len(packed), "digest": digest(packed)}],
            }
        ).encode()

    def do_GET(self):
        self.server.seen.append((time.monotonic(), self.client_address[0], self.command, self.path))
        status, kind, content = 404, "application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}'
        if self.path.rstrip("/") == "/v2":
            status, content = 200, b"{}"
        elif "/manifests/" in self.path and "absent" not in self.path:
            status, kind, content = 200, "application/vnd.docker.distribution.manifest.v2+json", self.manifest
        elif "/blobs/" in self.path and (blob := self.blobs.get(self.path.rsplit("/", 1)[1])) is not None:
            status, kind, content = 200, "application/octet-stream", blob
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if "/manifests/" in self.path and status == 200:
            self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(self.manifest).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


class Branch:
    """A bare repository that the desk serves, and a work tree to commit from."""

    def __init__(self, root, name):
        self.bare, self.tree = root / f"{name}.git", root / f"{name}-tree"
        self.url = f"http://{DESK}:{FILES_PORT}/git/{name}.git"
        self.git(None, "init", "-q", "--bare", "-b", "main", str(self.bare))
        self.git(None, "clone", "-q", str(self.bare), str(self.tree))
        self.git(self.tree, "checkout", "-q", "-B", "main")

    @staticmethod
    def git(where, *arguments):
        env = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b.c",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b.c",
        }
        done = subprocess.run(["git", *arguments], cwd=where, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"git {arguments}: {done.stderr}")
        return done.stdout.strip()

    def commit(self, files):
        """Writes, or removes where the content is None, and pushes. Returns the commit."""
        for path, content in files.items():
            target = self.tree / path
            if content is None:
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        self.git(self.tree, "add", "-A")
        self.git(self.tree, "commit", "-q", "--allow-empty", "-m", "change")
        self.git(self.tree, "push", "-q", "origin", "main")
        return self.git(self.tree, "rev-parse", "HEAD")


# ------------------------------------------------------------------------------------------- manifests


def object_of(api_version, kind, namespace, name, labels=None, **rest):
    metadata = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def field_ref(name, path):
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def hello_container(image=HELLO1, version="1", env=()):
    return {
        "name": "web",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": "VERSION", "value": version}, field_ref("POD_NAME", "metadata.name"), field_ref("NODE_NAME", "spec.nodeName"), *env],
    }


def deployment(namespace, name, replicas=None, *, containers=None, node=None, strategy=None, labels=None, **pod):
    spec = {"terminationGracePeriodSeconds": 1, "containers": containers or [hello_container()], **pod}
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    body = {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}
    if replicas is not None:
        body["replicas"] = replicas
    if strategy:
        body["strategy"] = strategy
    return object_of("apps/v1", "Deployment", namespace, name, labels, spec=body)


def service(namespace, name, app=None, port=80, target="http", **spec):
    return object_of(
        "v1",
        "Service",
        namespace,
        name,
        spec={"selector": {"app": app or name}, "ports": [{"name": "http", "port": port, "targetPort": target}], **spec},
    )


def ingress(namespace, name, *rules):
    """Rules: (host or None, path, type, service, port number or name)."""
    by_host = {}
    for host, path, kind, backend, port in rules:
        by_host.setdefault(host, []).append(
            {
                "path": path,
                "pathType": kind,
                "backend": {"service": {"name": backend, "port": {"number": port} if isinstance(port, int) else {"name": port}}},
            }
        )
    return object_of(
        "networking.k8s.io/v1",
        "Ingress",
        namespace,
        name,
        spec={"rules": [{**({"host": host} if host else {}), "http": {"paths": paths}} for host, paths in by_host.items()]},
    )


def shell(script, name="main", **rest):
    """A busybox container that runs a script; Debian's static busybox wants /bin/busybox APPLET."""
    return {"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["/bin/busybox", "sh", "-c", script], **rest}


def sleeper(name="main", **rest):
    return shell("trap 'exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait $!; done", name, **rest)


def pod(namespace, name, *containers, node=None, labels=None, annotations=None, **spec):
    made = object_of(
        "v1",
        "Pod",
        namespace,
        name,
        labels or {"app": name},
        spec={"terminationGracePeriodSeconds": 1, "containers": list(containers or [sleeper()]), **spec},
    )
    if node:
        made["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
    if annotations:
        made["metadata"]["annotations"] = annotations
    return made


def namespace_object(name):
    return object_of("v1", "Namespace", None, name)


PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/{ns}/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/{ns}/replicasets",
    "Pod": "/api/v1/namespaces/{ns}/pods",
    "Service": "/api/v1/namespaces/{ns}/services",
    "Namespace": "/api/v1/namespaces",
    "Ingress": "/apis/networking.k8s.io/v1/namespaces/{ns}/ingresses",
    "Node": "/api/v1/nodes",
    "Event": "/api/v1/namespaces/{ns}/events",
}


def condition(item, kind):
    return next((c for c in item.get("status", {}).get("conditions", []) if c["type"] == kind), {})


def is_ready(item):
    return condition(item, "Ready").get("status") == "True"


def is_going(item):
    return "deletionTimestamp" in item["metadata"]


def name_of(item):
    return item["metadata"]["name"]


def results(answer):
    """What an apply did: {(kind, name): result}."""
    found = {}
    for item in answer.json().get("items", []):
        metadata = item.get("metadata") or item.get("object", {}).get("metadata") or item
        found[item.get("kind"), metadata.get("name")] = item.get("result")
    return found


# ------------------------------------------------------------------------------------------- hosts and agents


class Hosts:
    """The pretend machines: a thin wrapper of tests/cluster/hosts.sh."""

    def __init__(self, script, work):
        self.script, self.work = str(script), work
        self.folder = work / "hosts"
        self.env = {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": str(work / "home"),
            "LANG": "C.UTF-8",
            "PS_NAME": NAME,
            "PS_DIR": str(self.folder),
            "PS_IMAGE_TAR": str(work / "images.tar"),
            "TMPDIR": str(work / "tmp"),
        }

    def __call__(self, *arguments, check=True, timeout=180):
        done = subprocess.run(
            [self.script, *map(str, arguments)],
            env=self.env,
            cwd=self.work,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise RuntimeError(f"hosts.sh {arguments}: {done.stderr.strip()}")
        return done


@dataclasses.dataclass
class Done:
    code: int
    out: str
    err: str
    seconds: float

    @property
    def all(self):
        return self.out + self.err


class Machine:
    """A place to run commands: a host, or the desk (number 0)."""

    def __init__(self, suite, number):
        self.suite, self.number = suite, number
        self.namespace = f"{NAME}{number}" if number else LAN
        self.home = suite.work / f"home{number}"
        self.home.mkdir(exist_ok=True)

    def command(self, *arguments, env=None):
        full = {**self.suite.hosts.env, "HOME": str(self.home), **(env or {})}
        return [self.suite.hosts.script, "exec", str(self.number), *map(str, arguments)], full

    def run(self, *arguments, env=None, stdin=None, timeout=60):
        line, full = self.command(*arguments, env=env)
        begun = time.monotonic()
        try:
            done = subprocess.run(
                line,
                env=full,
                cwd=self.suite.work,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                **({} if stdin is not None else {"stdin": subprocess.DEVNULL}),
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"`{' '.join(map(str, arguments))}` still ran after {timeout} s: {brief(error.stdout or b'')}") from None
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)

    def start(self, *arguments, env=None, stdout, stderr=subprocess.STDOUT):
        line, full = self.command(*arguments, env=env)
        job = subprocess.Popen(line, env=full, cwd=self.suite.work, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        self.suite.jobs.append(job)
        return job

    def psctl(self, *arguments, **rest):
        return self.run(self.suite.bin / "psctl", *arguments, **rest)

    def kubectl(self, *arguments, node=None, **rest):
        config = (node or self.suite.nodes[0]).data / "admin.kubeconfig"
        return self.run("kubectl", "--kubeconfig", config, *arguments, **rest)


class Node(Machine):
    """A host with its agent."""

    def __init__(self, suite, number):
        super().__init__(suite, number)
        self.name, self.ip = f"node{number}", f"10.231.0.{number}"
        self.data = suite.work / f"data{number}"
        self.log = suite.work / f"agent{number}.log"
        self.sock = suite.hosts.folder / f"{NAME}{number}/sock/podman.sock"
        self.job = self.pid = self.flags = self.wanted = None
        self.joins = False
        self.off = False

    # --- the machine
    def mount_data(self):
        """The default data directory, as on a real machine: this host's own."""
        self.data.mkdir(mode=0o755, exist_ok=True)
        done = self.run("mount", "--bind", self.data, DEFAULT_DATA)
        if done.code:
            raise RuntimeError(done.err)

    def power_off(self):
        self.off = True
        self.suite.hosts("crash", self.number)
        self.gone()

    def boot(self):
        self.suite.hosts("boot", self.number)
        self.mount_data()
        self.off = False

    # --- the agent
    def launch(self, *flags, env=None, program="podman-swarm-agent"):
        """Starts the agent and waits until the process is there (not until it is ready)."""
        self.flags = list(flags)
        with open(self.log, "ab") as log:
            log.write(f"--- {time.strftime('%H:%M:%S')} {flags}\n".encode())
            self.job = self.start(self.suite.bin / program, *flags, env=env, stdout=log)
        self.pid = wait_for("the agent's process", self._find, 10, every=0.002)
        return self

    def _find(self):
        if self.job.poll() is not None:
            raise Failed(f"the agent ended with {self.job.returncode}: {brief(self.log_tail())}")
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == self.job.pid and os.readlink(f"/proc/{entry}/exe").endswith("podman-swarm-agent"):
                    return int(entry)
        return None

    def log_tail(self, lines=6):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def log_of_this_start(self):
        return re.split(r"(?m)^--- .*\n", self.log.read_text(errors="replace"))[-1]

    def running(self):
        return self.job is not None and self.job.poll() is None

    def memory(self):
        """Resident memory of the agent, kB."""
        return int(re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{self.pid}/status").read_text())[1])

    def wait_healthy(self, seconds=30):
        def probe():
            if not self.running():
                raise RuntimeError(f"{self.name}'s agent ended with {self.job.returncode}: {brief(self.log_tail())}")
            return self.get("/api/v1/health", token=None, timeout=2).status == 200

        wait_for(f"{self.name} healthy", probe, seconds)
        return self

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """kill -9, and the process is gone."""
        self.send(signal.SIGKILL)
        self.gone()

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Sends a signal; returns (exit code, seconds)."""
        begun = time.monotonic()
        self.send(number)
        try:
            code = self.job.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name}'s agent still ran {seconds} s after the signal") from None
        self.pid = self.job = None
        return code, time.monotonic() - begun

    def gone(self):
        if self.job:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.job.wait(10)
        self.job = self.pid = None

    def try_agent(self, *flags, env=None, timeout=20):
        """Runs an agent that is expected to end by itself."""
        return self.run("timeout", "-k", "2", timeout, self.suite.bin / "podman-swarm-agent", *flags, env=env, timeout=timeout + 10)

    # --- the API
    @property
    def token(self):
        return (self.data / "api.token").read_text().strip()

    def request(self, method, path, body=None, *, token=True, headers=None, kind="application/json", timeout=10.0, port=8080):
        """Plain HTTP over this host's loopback."""
        head = dict(headers or {})
        if token:
            head["Authorization"] = f"Bearer {self.token if token is True else token}"
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if body is not None:
            head.setdefault("Content-Type", kind)
            body = body.encode() if isinstance(body, str) else body
        return http_request(self.namespace, "127.0.0.1", port, method, path, body=body, headers=head, timeout=timeout)

    def get(self, path, **rest):
        return self.request("GET", path, **rest)

    def read(self, path, **rest):
        answer = self.get(path, **rest)
        expect(answer.status == 200, f"GET {path} on {self.name}: {answer.status} {brief(answer.text)}")
        return answer.json()

    def apply(self, *objects, text=None, kind=None, query="", status=200):
        """POST /api/v1/manifests with a List, or with text."""
        body = text if text is not None else {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        answer = self.request("POST", "/api/v1/manifests" + query, body, kind=kind or ("application/yaml" if text else "application/json"))
        expect(status is None or answer.status == status, f"apply on {self.name}: {answer.status} {brief(answer.text)}")
        return answer

    def path(self, kind, namespace=None, name=None):
        return PATHS[kind].format(ns=namespace) + (f"/{name}" if name else "")

    def object(self, kind, namespace, name):
        return self.read(self.path(kind, namespace, name))

    def find(self, kind, namespace, name):
        answer = self.get(self.path(kind, namespace, name))
        if answer.status == 404:
            return None
        expect(answer.status == 200, f"{kind} {name} on {self.name}: {answer.status} {brief(answer.text)}")
        return answer.json()

    def items(self, kind, namespace=None, selector=None):
        query = "?labelSelector=" + urllib.parse.quote(selector) if selector else ""
        return self.read(self.path(kind, namespace) + query)["items"]

    def pods(self, namespace, selector=None):
        return self.items("Pod", namespace, selector)

    def patch(self, kind, namespace, name, change, subresource="", how="merge"):
        path = self.path(kind, namespace, name) + subresource
        answer = self.request("PATCH", path, change, kind=f"application/{how}-patch+json")
        expect(answer.status == 200, f"PATCH {path} on {self.name}: {answer.status} {brief(answer.text)}")
        return answer.json()

    def scale(self, namespace, name, replicas):
        return self.patch("Deployment", namespace, name, {"spec": {"replicas": replicas}}, "/scale")

    def delete(self, kind, namespace, name):
        return self.request("DELETE", self.path(kind, namespace, name))

    def endpoints(self, namespace, name):
        return self.read(f"/api/v1/services/{namespace}/{name}/endpoints")

    def ready_nodes(self):
        return sorted(name_of(node) for node in self.items("Node") if is_ready(node))

    def events(self, namespace=None):
        return self.read(f"/api/v1/namespaces/{namespace}/events" if namespace else "/api/v1/events")["items"]

    def ingress(self, host, path="/", port=80, timeout=10.0, method="GET", headers=None, body=None):
        """As a client on the LAN."""
        return http_request(LAN, self.ip, port, method, path, headers={"Host": host, **(headers or {})}, body=body, timeout=timeout)

    def dns(self, name, kind="A", server="127.0.0.1", **rest):
        return dns(self.namespace, server, name, kind, **rest)

    # --- Podman
    def podman_get(self, path):
        status, text = self.podman(path)
        return status, json.loads(text or "null")

    def podman_text(self, path):
        return self.podman(path)[1]

    def podman(self, path):
        connection = http.client.HTTPConnection("podman", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        try:
            connection.sock.connect(str(self.sock))
            connection.request("GET", "/v4.0.0/libpod" + path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def containers(self, namespace=None, *, running=False):
        """The product's containers of pods of a namespace, by their labels."""
        if self.off:
            return []
        filters = {"label": [f"podman-swarm.pod-namespace={namespace}"] if namespace else ["podman-swarm.pod-uid"]}
        _, found = self.podman_get("/containers/json?all=true&filters=" + urllib.parse.quote(json.dumps(filters)))
        return [c for c in found or [] if c["Labels"].get("podman-swarm.container-name") and (not running or c["State"] == "running")]

    def inspect(self, container):
        return self.podman_get(f"/containers/{container['Id']}/json")[1]

    def container(self, namespace, pod_name, name=None):
        found = [
            c
            for c in self.containers(namespace, running=True)
            if c["Labels"]["podman-swarm.pod-name"] == pod_name and (name is None or c["Labels"]["podman-swarm.container-name"] == name)
        ]
        return found[0] if found else None

    def exec(self, container, script, timeout=20):
        return self.run("podman", "exec", container["Id"], "/bin/busybox", "sh", "-c", script, timeout=timeout)


# ------------------------------------------------------------------------------------------- the suite

SCENARIOS = []


@dataclasses.dataclass
class Scenario:
    ids: list
    run: object
    name: str


def scenario(*ids):
    def register(function):
        SCENARIOS.append(Scenario(list(ids), function, function.__name__))
        return function

    return register


class Seen(list):
    def __call__(self, text):
        self.append(str(text))


class Suite:
    BASE_FLAGS = [f"--upstream-dns={DESK}:53"]

    def __init__(self, options):
        self.options, self.bin = options, pathlib.Path(options.bin).resolve()
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="accept-", dir="/tmp"))
        os.chmod(self.work, 0o755)
        (self.work / "tmp").mkdir()
        (self.work / "home").mkdir()
        self.hosts = Hosts(options.hosts, self.work)
        self.jobs, self.verdicts, self.measures = [], [], []
        self.made_data_mount = False
        self.nodes, self.spares = [], []
        self.desk = self.files = self.registry = self.upstream = None
        self.extra_flags = {}
        self.counter = 0
        self.namespaces = []

    # --- set-up and clean-up
    def set_up(self):
        for program in ("podman-swarm-agent", "psctl"):
            if not os.access(self.bin / program, os.X_OK):
                sys.exit(f"accept.py: {self.bin / program} is not there; build it, or name its folder with --bin")
        self.hosts("down")
        busybox, config = busybox_layer(), {"Env": ["PATH=/bin"], "Cmd": ["/bin/busybox", "sh"]}
        hello = scratch_layer({"hello": (find_hello(self.options).read_bytes(), 0o755)})
        save_archive(self.work / "images.tar", [([HELLO1, HELLO2], hello, {"Entrypoint": ["/hello"]}), ([BUSYBOX], busybox, config)])
        if not os.path.isdir(DEFAULT_DATA):
            os.mkdir(DEFAULT_DATA)
            self.made_data_mount = True
        self.hosts("up", 5)
        self.desk = Machine(self, 0)
        self.nodes = [Node(self, number) for number in (1, 2, 3)]
        self.spares = [Node(self, number) for number in (4, 5)]
        self.certificates()
        Registry.fill(busybox, config)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.work / "desk.crt", self.work / "desk.key")
        for node in self.nodes + self.spares:
            node.mount_data()
            trusted = self.hosts.folder / f"{NAME}{node.number}/etc/certs.d/{DESK}:{REGISTRY_PORT}"
            trusted.mkdir(parents=True)
            shutil.copy(self.work / "own-ca.crt", trusted / "ca.crt")
        self.files = DeskServer(FILES_PORT, FilesAndGit)
        self.registry = DeskServer(REGISTRY_PORT, Registry, tls)
        self.files.git_root = self.work / "git"
        self.files.git_root.mkdir()
        self.upstream = Upstream()
        self.upstream.start()

    def certificates(self):
        """A CA of our own, with certificates for the desk and the spare hosts."""

        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=self.work, check=True, capture_output=True)

        openssl(
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=own CA",
            "-keyout",
            "own-ca.key",
            "-out",
            "own-ca.crt",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        )
        for name, address in (("desk", DESK), ("own4", "10.231.0.4"), ("own5", "10.231.0.5"), ("odd5", "192.0.2.9")):
            openssl(
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                f"/CN={name}" if name != "odd5" else "/CN=elsewhere",
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.csr",
            )
            (self.work / f"{name}.ext").write_text(
                f"subjectAltName=IP:{address},{'DNS:elsewhere.test' if name == 'odd5' else f'DNS:{name},DNS:localhost,IP:127.0.0.1'}\nextendedKeyUsage=serverAuth,clientAuth\n"
                "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n"
            )
            openssl(
                "x509",
                "-req",
                "-in",
                f"{name}.csr",
                "-CA",
                "own-ca.crt",
                "-CAkey",
                "own-ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                f"{name}.ext",
                "-out",
                f"{name}.crt",
            )

    def tear_down(self):
        for node in self.nodes + self.spares:
            if self.options.logs and node.log.exists():
                pathlib.Path(self.options.logs).mkdir(parents=True, exist_ok=True)
                shutil.copy(node.log, self.options.logs)
        for server in (self.files, self.registry):
            if server:
                threading.Thread(target=server.shutdown, daemon=True).start()
                server.server_close()
        if self.upstream:
            self.upstream.close()
        for job in self.jobs:
            if job.poll() is None:
                job.terminate()
        self.hosts("down", check=False)
        for job in self.jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(5)
        if self.made_data_mount:
            with contextlib.suppress(OSError):
                os.rmdir(DEFAULT_DATA)
        shutil.rmtree(self.work, ignore_errors=True)

    # --- the cluster
    def set_flags(self, *flags, nodes=None):
        """Flags that the agents of the cluster have beside the usual ones, until the scenario ends."""
        for node in nodes or self.nodes:
            self.extra_flags[node.number] = list(flags)

    def flags_of(self, node):
        return [*self.BASE_FLAGS, *self.extra_flags.get(node.number, [])]

    def cluster(self, quiet=False):
        """Three nodes, all Ready, nothing cut, nothing else running; made at the first call, mended at later ones."""
        self.hosts("heal")
        first = self.nodes[0]
        for node in self.nodes:
            if node.off:
                node.boot()
        for node in self.nodes:
            if node.running() and node.wanted != self.flags_of(node):
                node.send(signal.SIGTERM)
        for node in self.nodes:
            if node.running() and node.wanted != self.flags_of(node):
                node.job.wait(30)
            if node.running():
                continue
            self.start_node(node)
            if node is first and not first.joins:
                first.wait_healthy()
                first.joins = True
        for node in self.nodes:
            node.wait_healthy()
            wait_for(f"{node.name} sees three Ready nodes", lambda node=node: node.ready_nodes() == ["node1", "node2", "node3"], 30)
        if quiet:
            wait_for("no containers of earlier checks", lambda: not any(node.containers() for node in self.nodes), 60)
        return self.nodes

    def leave(self, node, *flags):
        """Takes a spare host's agent out of its cluster, so that nothing of it is left on the host."""
        done = node.run(self.bin / "podman-swarm-agent", *flags, "leave", timeout=60)
        expect(done.code == 0, f"leave on {node.name}: {done.code} {brief(done.all)}")
        wait_for(f"{node.name}'s agent ends after leave", lambda: not node.running(), 20)
        node.gone()

    def start_node(self, node):
        """With --join the first time, without it ever after."""
        node.wanted = self.flags_of(node)
        flags = [f"--node-name={node.name}", f"--advertise-addr={node.ip}", *node.wanted]
        if node is not self.nodes[0] and not node.joins:
            token = (self.nodes[0].data / "join.token").read_text().strip()
            flags += [f"--join={self.nodes[0].ip}:7946", f"--join-token={token}"]
            node.joins = True
        node.launch(*flags)

    def namespace(self):
        """A new namespace, for the objects of one scenario."""
        self.counter += 1
        name = f"acc-{self.counter}"
        self.nodes[0].apply(namespace_object(name))
        for node in self.nodes[1:]:
            wait_for(f"namespace {name} on {node.name}", lambda node=node: node.find("Namespace", None, name), 10)
        self.namespaces.append(name)
        return name

    def wait_pods(self, namespace, count, selector=None, seconds=45, node=None):
        """So many pods, all ready, none going; returns them."""

        def probe():
            pods = (node or self.nodes[0]).pods(namespace, selector)
            if len(pods) == count and all(is_ready(p) and not is_going(p) for p in pods):
                return pods or True
            raise Failed(
                ", ".join(
                    f"{name_of(p)} on {p['spec'].get('nodeName')} {p.get('status', {}).get('phase')}"
                    f"{'' if is_ready(p) else ' not ready'}{' going' if is_going(p) else ''}"
                    for p in pods
                )
                or "no pods"
            )

        return wait_for(f"{count} ready pods in {namespace}", probe, seconds)

    def find_container(self, namespace, pod_name, name=None, seconds=20):
        def probe():
            for node in self.nodes:
                found = node.container(namespace, pod_name, name)
                if found:
                    return node, found
            return None

        return wait_for(f"a running container of {pod_name}", probe, seconds)

    # --- checks
    @contextlib.contextmanager
    def check(self, ident, title):
        seen, begun, verdict, detail = Seen(), time.monotonic(), "PASS", ""
        try:
            yield seen
        except Failed as error:
            verdict, detail = "FAIL", str(error)
        except Exception as error:  # the suite did not expect it: a failure, with the line
            where = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in where if f.filename == __file__ and f.name not in ("check",)), 0)
            verdict, detail = "FAIL", f"{type(error).__name__}: {error} (line {line})"
        self.record(ident, title, verdict, "; ".join([detail, *seen] if detail else seen), time.monotonic() - begun)

    def record(self, ident, title, verdict, detail, seconds):
        self.verdicts.append((ident, title, verdict, detail, seconds))
        print(f"{verdict} {ident:<24} {title} ({seconds:.2f} s)" + (f"\n       {brief(detail, 1500)}" if detail else ""), flush=True)

    def measure(self, what, value):
        self.measures.append((what, value))

    def run(self, chosen):
        for entry in chosen:
            self.namespaces, before = [], len(self.verdicts)
            trouble = None
            try:
                entry.run(self)
            except Exception as error:  # the other scenarios go on
                where = traceback.extract_tb(error.__traceback__)
                lines = [str(f.lineno) for f in where if f.filename == __file__]
                trouble = f"{type(error).__name__}: {error} (lines {', '.join(lines)})"
            done = {ident for ident, *_ in self.verdicts[before:]}
            for ident in entry.ids:
                if ident not in done:
                    self.record(ident, f"(not reached in {entry.name})", "FAIL", trouble or "the scenario did not make this check", 0)
            if trouble and all(ident in done for ident in entry.ids):
                self.record(entry.ids[-1] + "+", f"the rest of {entry.name}", "FAIL", trouble, 0)
            self.extra_flags = {}
            for spare in self.spares:  # one that a failed scenario left in a cluster would trouble all later ones
                if spare.running():
                    with contextlib.suppress(Failed):
                        self.leave(spare)
                    if spare.running():
                        spare.kill()
            for name in self.namespaces:
                for node in self.nodes:
                    if node.running():
                        with contextlib.suppress(OSError, Failed, http.client.HTTPException):
                            node.delete("Namespace", None, name)
                            break


def find_hello(options):
    """The example's web server, linked statically: built by `make demo`, or now."""
    repository = pathlib.Path(options.hosts).resolve().parents[2]
    if options.hello:
        return pathlib.Path(options.hello)
    built = sorted(repository.glob("target/static/*/release/hello"))
    if built:
        return built[0]
    done = subprocess.run([repository / "scripts/build-hello.sh"], capture_output=True, text=True, check=True)
    return pathlib.Path(done.stdout.strip())


# =========================================================================================== the agent's flags

FLAGS = [  # flag, variable, default as --help must tell it (None: it depends on the machine, or there is none)
    ("node-name", "NODE_NAME", None),
    ("bind-addr", "BIND_ADDR", "0.0.0.0:7946"),
    ("advertise-addr", "ADVERTISE_ADDR", None),
    ("api-addr", "API_ADDR", "0.0.0.0:8080"),
    ("podman-socket", "PODMAN_SOCKET", "unix:///run/podman/podman.sock"),
    ("data-dir", "DATA_DIR", "/var/lib/podman-swarm"),
    ("join", "JOIN", None),
    ("join-token", "JOIN_TOKEN", None),
    ("encryption-key", "ENCRYPTION_KEY", None),
    ("tls-cert", "TLS_CERT", None),
    ("tls-key", "TLS_KEY", None),
    ("tls-ca", "TLS_CA", None),
    ("tls-skip-verify", "TLS_SKIP_VERIFY", "false"),
    ("ingress-port", "INGRESS_PORT", "80"),
    ("ingress-tls-port", "INGRESS_TLS_PORT", "443"),
    ("enable-ingress", "ENABLE_INGRESS", "true"),
    ("dns-port", "DNS_PORT", "53"),
    ("cluster-domain", "CLUSTER_DOMAIN", "cluster.local"),
    ("upstream-dns", "UPSTREAM_DNS", "8.8.8.8:53,8.8.4.4:53"),
    ("enable-api-auth", "ENABLE_API_AUTH", "true"),
    ("plain-http", "PLAIN_HTTP", "loopback"),
    ("restart-grace", "RESTART_GRACE", "60s"),
    ("dns-ttl", "DNS_TTL", "5"),
    ("pod-cidr", "POD_CIDR", "10.244.0.0/16"),
    ("node-labels", "NODE_LABELS", None),
    ("log-level", "LOG_LEVEL", "info"),
    ("log-format", "LOG_FORMAT", "text"),
    ("gitops-repo", None, None),
    ("gitops-branch", None, "main"),
    ("gitops-path", None, "./"),
    ("gitops-interval", None, "1m"),
]
VARIABLES = {flag: variable for flag, variable, _ in FLAGS}

# Values that do not parse. A secret must be refused without being shown.
BAD_VALUES = {
    "node-name": ["Bad_Name!", "-x", ""],
    "bind-addr": ["nonsense", "1.2.3.4:99999"],
    "advertise-addr": ["not an address"],
    "api-addr": ["0.0.0.0:port", "8080x"],
    "podman-socket": ["ftp://x"],
    "join": ["10.0.0.1:port", "a b"],
    "join-token": ["garbage"],
    "encryption-key": ["short"],
    "tls-skip-verify": ["maybe"],
    "ingress-port": ["abc", "70000", "-1"],
    "ingress-tls-port": ["abc", "70000"],
    "enable-ingress": ["perhaps"],
    "dns-port": ["abc", "65536"],
    "cluster-domain": ["bad..domain", "Bad_domain!"],
    "upstream-dns": ["8.8.8.8:dns", "x y"],
    "enable-api-auth": ["si"],
    "plain-http": ["sometimes"],
    "restart-grace": ["soon", "-5s"],
    "dns-ttl": ["abc", "-1"],
    "pod-cidr": ["10.244.0.0/33", "10.244.0.0", "ten"],
    "node-labels": ["a b=c", "=x", "novalue/"],
    "log-level": ["loud"],
    "log-format": ["xml"],
    "gitops-interval": ["often"],
}
SECRET_FLAGS = ("join-token", "encryption-key")
REMEDY = re.compile(
    r"expected|must|for instance|e\.g\.|possible values|choose|stop (it|that)|shows it|enable|\bin -?\d+\.\.|--help|podman system service|reads PSWTKN",
    re.I,
)


def error_of(done):
    """What the agent said last: its error, without the log before it."""
    at = done.all.find("error: ")
    return brief(done.all[at:] if at >= 0 else done.all, 500)


def judge_refusal(done, flag, variable, value, code):
    """One clear error naming flag, value and remedy; nothing of a panic."""
    expect(done.all.count("error: ") == 1, f"not one error: {brief(done.all, 400)}")
    text = done.all[done.all.index("error: ") :]
    expect(done.code == code, f"exit code {done.code}, expected {code}: {brief(text, 300)}")
    expect(f"--{flag}" in text or (variable and variable in text), f"does not name --{flag}: {brief(text, 300)}")
    if flag in SECRET_FLAGS:
        expect(value not in text, f"shows the secret: {brief(text, 300)}")
    else:
        expect(value in text, f"does not name the value {value!r}: {brief(text, 300)}")
    expect(REMEDY.search(text), f"names no remedy: {brief(text, 300)}")
    expect("panicked" not in text, f"panicked: {brief(text, 300)}")


@scenario("agent.help", *[f"agent.value.{flag}" for flag in BAD_VALUES], "agent.value.env", "agent.usage")
def values_that_do_not_parse(t):
    """`A value that does not parse …: one clear error naming flag, value and remedy, exit code 2 (usage)`."""
    host = t.spares[0]
    data = ["--node-name=node4", f"--advertise-addr={host.ip}", f"--data-dir={t.work}/none"]
    with t.check("agent.help", "--help names every flag with its variable and default") as seen:
        text = host.try_agent("--help").out
        wrong = []
        for flag, variable, default in FLAGS:
            part = re.search(rf"--{flag}\b(?!-).*?(?=\n\s+(?:-\w, )?--[a-z]|\Z)", text, re.S)
            if not part:
                wrong.append(f"--{flag} missing")
            elif variable and variable not in part[0]:
                wrong.append(f"--{flag}: {variable} missing")
            elif default and default not in part[0]:
                wrong.append(f"--{flag}: default {default} missing")
        expect(not wrong, ", ".join(wrong))
        seen(f"{len(FLAGS)} flags")
    for flag, values in BAD_VALUES.items():
        with t.check(f"agent.value.{flag}", f"--{flag}={'|'.join(values)} is refused with exit code 2") as seen:
            extra = ["--join=10.231.0.9:7946"] if flag == "join-token" else ["--gitops-repo=file:///x"] if flag.startswith("gitops-") else []
            extra += ["--join-token=x"] if flag == "join" else []
            for value in values:
                done = host.try_agent(*[d for d in data if not d.startswith(f"--{flag}=")], *extra, f"--{flag}={value}")
                judge_refusal(done, flag, VARIABLES[flag], value, 2)
            seen(error_of(done))
    with t.check("agent.value.env", "the same values in variables are refused too") as seen:
        wrong = []
        for flag, values in BAD_VALUES.items():
            variable = VARIABLES[flag]
            if variable and values[0]:
                env = {variable: values[0], **({"JOIN": "10.231.0.9:7946"} if flag == "join-token" else {})}
                done = host.try_agent(*[d for d in data if not d.startswith(f"--{flag}=")], env=env)
                try:
                    judge_refusal(done, flag, variable, values[0], 2)
                except Failed as error:
                    wrong.append(f"{variable}={values[0]}: {error}")
        expect(not wrong, " | ".join(wrong))
    with t.check("agent.usage", "unknown flags, half a TLS triple, --join without a token: exit code 2") as seen:
        for flags, named in (
            (["--bogus"], "--bogus"),
            (["--tls-cert=/x.crt"], "--tls-"),
            (["--join=10.231.0.9:7946"], "--join-token"),
            (["stray"], "stray"),
            (["--enable-ingress", "false"], "false"),
        ):
            done = host.try_agent(*data, *flags)
            expect(done.code == 2 and named in done.all, f"{flags}: exit code {done.code}: {brief(done.all, 300)}")
            seen(error_of(done))


@scenario(
    "agent.env.socket-missing",
    "agent.env.socket-silent",
    "agent.env.port.bind-addr",
    "agent.env.port.api-addr",
    "agent.env.port.ingress-port",
    "agent.env.port.dns-port",
    "agent.env.datadir",
    "agent.env.locked",
    "agent.env.advertise",
    "agent.env.notroot",
    "agent.env.files",
)
def faults_of_the_environment(t):
    """`a port in use, a socket that does not answer, a data directory that is not writable or is already locked …: exit code 1`."""
    host, other = t.spares
    base = ["--node-name=node4", f"--advertise-addr={host.ip}"]
    fresh = iter(range(100))

    def data():
        return f"--data-dir={t.work}/env{next(fresh)}"

    with t.check("agent.env.socket-missing", "a missing socket: exit code 1, and how to enable it") as seen:
        done = host.try_agent(*base, data(), "--podman-socket=unix:///run/nowhere.sock")
        judge_refusal(done, "podman-socket", "PODMAN_SOCKET", "/run/nowhere.sock", 1)
        expect(re.search(r"systemctl.*podman\.socket|podman system service", done.all), f"does not say how to enable it: {brief(done.all)}")
        seen(error_of(done))
    with t.check("agent.env.socket-silent", "a socket that does not answer: exit code 1 before long") as seen:
        silent = socket.socket(socket.AF_UNIX)
        path = t.work / "silent.sock"
        silent.bind(str(path))
        silent.listen(8)
        with silent:
            done = host.try_agent(*base, data(), f"--podman-socket=unix://{path}", timeout=60)
        judge_refusal(done, "podman-socket", "PODMAN_SOCKET", str(path), 1)
        expect(done.seconds < 30, f"only after {done.seconds:.1f} s")
        seen(f"{done.seconds:.1f} s: {error_of(done)}")
    for flag, port, kind in (
        ("bind-addr", 7946, socket.SOCK_STREAM),
        ("api-addr", 8080, socket.SOCK_STREAM),
        ("ingress-port", 80, socket.SOCK_STREAM),
        ("dns-port", 53, socket.SOCK_DGRAM),
    ):
        with t.check(f"agent.env.port.{flag}", f"port {port} in use: exit code 1") as seen:
            with listen(host.namespace, ("0.0.0.0", port), kind):
                done = host.try_agent(*base, data())
            judge_refusal(done, flag, VARIABLES[flag], str(port), 1)
            seen(f"{done.seconds:.1f} s: {error_of(done)}")
    with t.check("agent.env.datadir", "a data directory that is not writable: exit code 1") as seen:
        readonly = t.work / "readonly"
        readonly.mkdir()
        host.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", readonly)
        (t.work / "file").write_text("")
        for folder in (readonly, readonly / "below", t.work / "file"):
            done = host.try_agent(*base, f"--data-dir={folder}")
            judge_refusal(done, "data-dir", "DATA_DIR", str(folder), 1)
            seen(error_of(done))
    with t.check("agent.env.locked", "a data directory that another agent has locked: exit code 1") as seen:
        host.launch(*base)
        host.wait_healthy()
        done = host.try_agent(
            "--node-name=again",
            f"--advertise-addr={host.ip}",
            "--api-addr=127.0.0.1:9080",
            "--bind-addr=0.0.0.0:9946",
            "--dns-port=9053",
            "--enable-ingress=false",
        )
        judge_refusal(done, "data-dir", "DATA_DIR", DEFAULT_DATA, 1)
        expect(host.get("/api/v1/health", token=None).status == 200, "the first agent suffered")
        seen(error_of(done))
    if host.running():
        t.leave(host)
    with t.check("agent.env.advertise", "--advertise-addr is the address of the default route; without one it is asked for") as seen:
        done = other.try_agent("--node-name=node5", data())
        expect(done.code in (1, 2) and "--advertise-addr" in done.all, f"no default route: {done.code} {brief(done.all)}")
        seen(f"no route: {done.code} {error_of(done)}")
        other.run("ip", "route", "add", "default", "via", DESK)
        other.launch("--node-name=node5")
        other.wait_healthy()
        config = (other.data / "admin.kubeconfig").read_text()
        expect(f"https://{other.ip}:8080" in config, f"kubeconfig names another server: {brief(config, 200)}")
        t.leave(other)
        other.run("ip", "route", "del", "default")
    with t.check("agent.env.notroot", "not root: the user's own folders and socket, one clear error") as seen:
        folder = t.work / "nobody"
        folder.mkdir(mode=0o777)
        os.chmod(folder, 0o777)
        done = other.run(
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "env",
            f"HOME={folder}",
            f"XDG_RUNTIME_DIR={folder}/run",
            f"XDG_STATE_HOME={folder}/state",
            "timeout",
            "20",
            t.bin / "podman-swarm-agent",
            f"--advertise-addr={other.ip}",
            "--dns-port=9053",
            "--ingress-port=9080",
            timeout=30,
        )
        expect(done.code == 1 and done.all.strip() and "panicked" not in done.all, f"{done.code}: {brief(done.all)}")
        seen(f"{done.code}: {error_of(done)}")
        told = other.run(
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "env",
            f"HOME={folder}",
            f"XDG_RUNTIME_DIR={folder}/run",
            f"XDG_STATE_HOME={folder}/state",
            t.bin / "podman-swarm-agent",
            "--help",
        ).out
        expect(str(folder) in told + done.all, "neither --help nor the error shows the user's own folders")
    with t.check("agent.env.files", "certificate files that are not there, or are none: one error naming the flag") as seen:
        (t.work / "text.pem").write_text("no certificate\n")
        for cert, named in ((f"{t.work}/nowhere.crt", "tls-cert"), (f"{t.work}/text.pem", "tls-cert")):
            done = other.try_agent(
                "--node-name=node5",
                f"--advertise-addr={other.ip}",
                data(),
                f"--tls-cert={cert}",
                f"--tls-key={t.work}/own5.key",
                f"--tls-ca={t.work}/own-ca.crt",
            )
            expect(done.code in (1, 2) and f"--{named}" in done.all and cert in done.all, f"{done.code}: {brief(done.all)}")
            seen(f"{done.code}: {error_of(done)}")


START_STEPS = [  # in this order (docs/ARCHITECTURE.md, Start)
    r"port|listen|bound",
    r"podman",
    r"credential|cluster|identity|token",
    r"store",
    r"ready",
]


@scenario(
    "agent.log",
    "agent.log.json",
    "agent.log.secrets",
    "agent.log.level",
    "agent.podman",
    "agent.files",
    "agent.files.modes",
    "api.health",
    "agent.booleans",
    "agent.variables",
    "agent.stop.one",
)
def one_agent_from_start_to_stop(t):
    host = t.spares[0]
    shutil.rmtree(host.data)
    host.data.mkdir()
    host.run("umount", DEFAULT_DATA)
    host.mount_data()
    base = ["--node-name=node4", f"--advertise-addr={host.ip}"]
    with t.check("api.health", "GET /api/v1/health needs no token, and is 503 until ready") as seen:
        host.launch(*base)
        statuses, begun = [], time.monotonic()
        modes = {}
        while time.monotonic() - begun < 30:
            try:
                answer = host.get("/api/v1/health", token=None, timeout=5)
            except OSError:
                continue
            if not statuses or statuses[-1][0] != answer.status:
                statuses.append((answer.status, round(time.monotonic() - begun, 3), brief(answer.text, 160)))
            if answer.status == 200:
                modes = {name: oct(stat.S_IMODE(os.stat(host.data / name).st_mode)) if (host.data / name).exists() else None for name in SECRET_FILES}
                break
        seen(statuses)
        t.measure("process start to health 200, one node", f"{statuses[-1][1]:.2f} s")
        expect([s for s, *_ in statuses] in ([503, 200], [200]), f"statuses {statuses}")
        expect(statuses[0][0] == 503, "no 503 was ever answered before 200 (nothing listened until ready)")
    with t.check("agent.files.modes", "join.token, api.token, admin.kubeconfig, encryption.key: there with the first 200, mode 0600") as seen:
        equal(modes, dict.fromkeys(SECRET_FILES, "0o600"), "modes at the first 200")
    with t.check("agent.files", "the files for people say what they should") as seen:
        token = (host.data / "join.token").read_text().strip()
        expect(re.fullmatch(r"PSWTKN-1-[0-9a-zA-Z_-]+-[0-9a-zA-Z]+\.[0-9a-zA-Z_-]+", token), f"join token has another form: {token[:24]}…")
        config = (host.data / "admin.kubeconfig").read_text()
        expect(f"server: https://{host.ip}:8080" in config.replace('"', ""), f"kubeconfig: {brief(config, 200)}")
        expect("certificate-authority-data" in config, "kubeconfig without the CA")
        mode = stat.S_IMODE(os.stat(host.data).st_mode)
        expect(mode == 0o700, f"the data directory's mode is {oct(mode)}")
    with t.check("agent.log", "the start-up order is logged step by step") as seen:
        lines = host.log_of_this_start().splitlines()
        seen(" | ".join(re.sub(r"^\S+\s+", "", line)[:90] for line in lines[:24]))
        at = 0
        for step in START_STEPS:
            found = next((n for n in range(at, len(lines)) if re.search(step, lines[n], re.I)), None)
            expect(found is not None, f"no line about /{step}/ after line {at}")
            at = found + 1
        expect(len(lines) >= 6, f"only {len(lines)} lines")
    with t.check("agent.podman", "no agent starts a Podman of its own") as seen:
        children = [
            line
            for line in host.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\000' ' ' | sed 's/podman system/\\npodman system/g'").out.splitlines()
            if line.startswith("podman system service")
        ]
        equal(len(children), 1, f"Podman services on the host: {children}")
    with t.check("agent.log.secrets", "no token and no key is in the log, also at level trace") as seen:
        host.stop()
        host.launch(*base, "--log-level=trace")
        host.wait_healthy()
        host.get("/api/v1/pods")
        host.apply(pod("default", "traced", node="node4"))
        wait_for("its pod is ready", lambda: is_ready(host.object("Pod", "default", "traced")), 20)
        host.delete("Pod", "default", "traced")
        wait_for("its pod is gone", lambda: not host.containers(), 20)
        log = host.log.read_text(errors="replace")
        for name in ("join.token", "api.token", "encryption.key"):
            expect((host.data / name).read_text().strip() not in log, f"{name} is in the log")
        seen(f"{len(host.log_of_this_start().splitlines())} lines")
    with t.check("agent.log.level", "--log-level: trace and debug show more than info, error shows less") as seen:
        lines = host.log_of_this_start()
        expect(re.search(r"\b(DEBUG|TRACE)\b", lines), f"nothing but INFO among {len(lines.splitlines())} lines at level trace")
        host.stop()
        host.launch(*base, "--log-level=error")
        host.wait_healthy()
        equal(host.log_of_this_start(), "", "what is logged at level error")
    with t.check("agent.log.json", "--log-format=json: every line is JSON") as seen:
        host.stop()
        host.launch(*base, "--log-format=json")
        host.wait_healthy()
        lines = host.log_of_this_start().splitlines()
        expect(lines and all(isinstance(json.loads(line), dict) for line in lines), "some line is not JSON")
        seen(f"{len(lines)} lines, such as {lines[0][:160]}")
    with t.check("agent.stop.one", "SIGINT: exit code 0 within 10 s; DNS, ingress and API stop in this order") as seen:
        if not host.running():
            host.launch(*base)
            host.wait_healthy()

        def answers(address):
            connect(host.namespace, address, 0.2).close()
            return time.monotonic()

        def resolves():
            dns(host.namespace, "127.0.0.1", "nowhere.default.svc.cluster.local", timeout=0.2)
            return time.monotonic()

        with Sampler(resolves, 0) as names_seen, Sampler(lambda: answers((host.ip, 80)), 0) as ingress_seen, Sampler(
            lambda: answers((host.ip, 8080)), 0
        ) as api_seen:
            wait_for("all three answer", lambda: all(len(s.values()) > 5 for s in (names_seen, ingress_seen, api_seen)), 5)
            begun = time.monotonic()
            code, seconds = host.stop(signal.SIGINT)
        ends = [max(s.values()) - begun for s in (names_seen, ingress_seen, api_seen)]
        seen(f"exit after {seconds:.2f} s; DNS, ingress, API answered last at {', '.join(f'{end * 1000:.0f}' for end in ends)} ms")
        t.measure("SIGINT to exit, one idle node", f"{seconds:.2f} s")
        equal(code, 0, "exit code")
        expect(seconds < 10, f"{seconds:.1f} s")
        expect(ends[0] <= ends[1] + 0.02 and ends[1] <= ends[2] + 0.02, "not in this order")
    with t.check("agent.booleans", "boolean flags take --x, --x=true, --x=false, and variables") as seen:
        for flags, env, ingress_on, auth_on in (
            (["--enable-ingress=false", "--enable-api-auth"], {}, False, True),
            (["--enable-ingress", "--enable-api-auth=false"], {}, True, False),
            (["--enable-ingress=true", "--enable-api-auth=true", "--tls-skip-verify=false"], {}, True, True),
            ([], {"ENABLE_INGRESS": "false", "ENABLE_API_AUTH": "false"}, False, False),
        ):
            host.launch(*base, *flags, env=env)
            host.wait_healthy()
            try:
                connect(host.namespace, (host.ip, 80)).close()
                listening = True
            except OSError:
                listening = False
            status = host.get("/api/v1/pods", token=None).status
            code, _ = host.stop()
            equal(
                (listening, status, code),
                (ingress_on, 401 if auth_on else 200, 0),
                f"{flags} {env}: ingress listens, status without token, exit code",
            )
    host.launch(*base)
    host.wait_healthy()
    t.leave(host)  # a machine has one agent: the next is of another cluster
    with t.check("agent.variables", "every setting can come from its variable") as seen:
        folder = t.work / "variables"
        env = {
            "NODE_NAME": "byenv",
            "ADVERTISE_ADDR": host.ip,
            "BIND_ADDR": "0.0.0.0:17946",
            "API_ADDR": "0.0.0.0:18080",
            "DATA_DIR": str(folder),
            "INGRESS_PORT": "10080",
            "DNS_PORT": "10053",
            "CLUSTER_DOMAIN": "my.test",
            "DNS_TTL": "9",
            "POD_CIDR": "10.99.0.0/16",
            "NODE_LABELS": "zone=a,disk=ssd",
            "LOG_FORMAT": "json",
            "PLAIN_HTTP": "all",
            "UPSTREAM_DNS": f"{DESK}:53",
            "PODMAN_SOCKET": "unix:///run/podman/podman.sock",
            "RESTART_GRACE": "30s",
            "INGRESS_TLS_PORT": "10443",
            "LOG_LEVEL": "info",
        }
        host.launch(env=env)
        try:

            def get(path):
                return http_request(
                    LAN, host.ip, 18080, "GET", path, headers={"Authorization": "Bearer " + (folder / "api.token").read_text().strip()}
                )

            wait_for("healthy on 18080 from the LAN", lambda: get("/api/v1/health").status == 200, 20)
            node = get("/api/v1/nodes").json()["items"][0]
            equal(name_of(node), "byenv", "node name")
            labels = node["metadata"]["labels"]
            equal((labels.get("zone"), labels.get("disk")), ("a", "ssd"), "labels")
            connect(host.namespace, (host.ip, 10080)).close()
            body = json.dumps({"apiVersion": "v1", "kind": "List", "items": [pod("default", "p"), service("default", "p", target=8080)]})
            headers = {"Authorization": "Bearer " + (folder / "api.token").read_text().strip(), "Content-Type": "application/json"}
            equal(http_request(LAN, host.ip, 18080, "POST", "/api/v1/manifests", body=body, headers=headers).status, 200, "apply")

            def resolved():
                answer = dns(host.namespace, "127.0.0.1", "p.default.svc.my.test", port=10053)
                return answer if answer.records else None

            record = wait_for("the pod's name below my.test on 10053", resolved, 20).records[0]
            expect(record.ttl == 9 and record.data.startswith("10.99."), f"{record}")
            all(json.loads(line) for line in host.log_of_this_start().splitlines())
            seen(f"{record}")
            done = host.run(t.bin / "podman-swarm-agent", "leave", env=env, timeout=40)
            equal(done.code, 0, f"leave: {brief(done.all)}")
            wait_for("the agent ends after leave", lambda: not host.running(), 15)
        finally:
            if host.running():
                host.stop()
            host.gone()


# =========================================================================================== story 2 and 3


@scenario("2.1", "2.2", "2.3", "2.4", "3.1", "3.2", "3.3")
def three_nodes(t):
    with t.check("2.1", "the first node starts a cluster with --node-name and --advertise-addr alone") as seen:
        first = t.nodes[0]
        if not first.running():
            begun = time.monotonic()
            t.start_node(first)
            first.wait_healthy()
            first.joins = True
            seen(f"healthy after {time.monotonic() - begun:.2f} s")
        expect((first.data / "join.token").read_text().startswith("PSWTKN-1-"), "no join token")
    with t.check("2.2", "--join and --join-token are all that the next nodes need") as seen:
        begun = time.monotonic()
        t.cluster()
        seen(f"three nodes Ready on every node after {time.monotonic() - begun:.2f} s; flags {t.nodes[1].flags[:-1] + ['--join-token=…']}")
    with t.check("2.3", "psctl get nodes on any of them shows three, Ready, with addresses, capacity and labels") as seen:
        for node in t.nodes:
            done = node.psctl("get", "nodes", "-o", "wide", "--show-labels")
            equal(done.code, 0, f"psctl on {node.name}: {done.err}")
            for other in t.nodes:
                line = next((line for line in done.out.splitlines() if line.startswith(other.name + " ")), "")
                expect(
                    " Ready " in line and other.ip in line and f"kubernetes.io/hostname={other.name}" in line,
                    f"on {node.name}: {brief(done.out, 800)}",
                )
        seen(done.out)
        for item in json.loads(t.nodes[2].psctl("get", "nodes", "-o", "json").out)["items"]:
            capacity = item["status"]["capacity"]
            expect(int(capacity["cpu"]) >= 1 and capacity["memory"] and int(capacity["pods"]) > 0, f"capacity {capacity}")
    with t.check("2.4", "join.token, api.token, admin.kubeconfig, encryption.key are on every node, 0600") as seen:
        for node in t.nodes:
            for name in SECRET_FILES:
                mode = stat.S_IMODE(os.stat(node.data / name).st_mode)
                equal(oct(mode), "0o600", f"{node.name}:{name}")
        keys = {(node.data / "encryption.key").read_text().strip() for node in t.nodes}
        equal(len(keys), 1, "different cluster keys")
        equal(len({node.token for node in t.nodes}), 3, "API tokens of three nodes")
        for node in t.nodes:
            for other in t.nodes:
                # What a node writes is everywhere within a second (3.1), its token as well.
                known = lambda: node.get("/api/v1/nodes", token=other.token).status == 200
                wait_for(f"{node.name} knows {other.name}'s token", known, 1)
    nodes = t.cluster()
    t.measure("resident memory of an idle agent", f"{max(node.memory() for node in nodes) / 1024:.0f} MB")
    namespace = t.namespace()
    with t.check("3.1", "applied to one node, readable on the others within 1 s (30 objects, each origin)") as seen:
        delays = []
        for number in range(30):
            origin = nodes[number % 3]
            name = f"seen-{number}"
            applied = origin.apply(service(namespace, name))
            begun = time.monotonic()
            for node in nodes:
                if node is not origin:
                    while not node.find("Service", namespace, name):
                        expect(time.monotonic() - begun < 5, f"{name} of {origin.name} not on {node.name} after 5 s")
                    delays.append(time.monotonic() - begun)
            expect(applied.status == 200, applied.text)
        delays.sort()
        told = f"p50 {delays[len(delays) // 2] * 1000:.0f} ms, max {delays[-1] * 1000:.0f} ms after the answer"
        t.measure("3 visible on other nodes", told)
        seen(told)
        expect(delays[-1] < 1, f"{delays[-1]:.2f} s")
    with t.check("3.2", "a change and a deletion are seen everywhere within 1 s too") as seen:
        worst = 0
        for number, node in enumerate(nodes):
            node.apply(service(namespace, f"seen-{number}", port=81 + number))
            begun = time.monotonic()
            for other in nodes:
                wait_for(
                    "the new port", lambda: other.object("Service", namespace, f"seen-{number}")["spec"]["ports"][0]["port"] == 81 + number, 5, 0.005
                )
            worst = max(worst, time.monotonic() - begun)
            node.delete("Service", namespace, f"seen-{number}")
            begun = time.monotonic()
            for other in nodes:
                wait_for("its end", lambda: other.find("Service", namespace, f"seen-{number}") is None, 5, 0.005)
            worst = max(worst, time.monotonic() - begun)
        seen(f"worst {worst * 1000:.0f} ms")
        expect(worst < 1, f"{worst:.2f} s")
    with t.check("3.3", "pods run spread over all three nodes") as seen:
        begun = time.monotonic()
        nodes[1].apply(deployment(namespace, "spread", 6))
        pods = t.wait_pods(namespace, 6, "app=spread")
        t.measure("apply to 6 pods ready on three nodes", f"{time.monotonic() - begun:.2f} s")
        counts = sorted([p["spec"]["nodeName"] for p in pods].count(node.name) for node in nodes)
        equal(counts, [2, 2, 2], "pods per node")
        equal([len(node.containers(namespace, running=True)) for node in nodes], [2, 2, 2], "containers in each node's Podman")


@scenario(
    "gossip.token", "gossip.digest", "gossip.name", "gossip.key", "gossip.strangers", "gossip.sealed", "2.5", "agent.leave", "agent.leave.foreign"
)
def who_may_join_and_leave(t):
    nodes = t.cluster()
    host, other = t.spares
    token = (nodes[0].data / "join.token").read_text().strip()
    used = iter(range(100))

    def join(*flags, machine=host, name="node4", timeout=30):
        folder = t.work / f"join{machine.number}-{next(used)}"
        done = machine.try_agent(f"--node-name={name}", f"--advertise-addr={machine.ip}", f"--data-dir={folder}", *flags, timeout=timeout)
        return done, folder

    def learned(folder):
        return [name for name in SECRET_FILES if (folder / name).exists()]

    with t.check("gossip.token", "a wrong secret is refused: the node learns nothing and changes nothing") as seen:
        wrong = token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB")
        done, folder = join("--join=10.231.0.1:7946", f"--join-token={wrong}")
        expect(done.code not in (0, 124) and wrong not in done.all, f"{done.code}: {brief(done.all)}")
        expect(not learned(folder), f"has {learned(folder)}")
        equal(len(nodes[0].items("Node")), 3, "nodes")
        seen(f"{done.code}: {error_of(done)}")
    with t.check("gossip.digest", "a token that pins another CA is refused before the secret is shown") as seen:
        digest = token.split("-")[2]
        done, folder = join("--join=10.231.0.1:7946", "--join-token=" + token.replace(digest, digest[::-1]))
        expect(done.code not in (0, 124) and not learned(folder), f"{done.code}: {brief(done.all)}; has {learned(folder)}")
        seen(f"{done.code}: {error_of(done)}")
    with t.check("gossip.name", "a second node with a name in use is refused") as seen:
        done, folder = join("--join=10.231.0.1:7946", f"--join-token={token}", name="node2")
        expect(done.code not in (0, 124) and "node2" in done.all, f"{done.code}: {brief(done.all)}")
        seen(f"{done.code}: {error_of(done)}")
    with t.check("gossip.key", "a joiner that brings another encryption key is refused with that reason") as seen:
        done, folder = join("--join=10.231.0.1:7946", f"--join-token={token}", "--encryption-key=" + base64.b64encode(bytes(32)).decode())
        expect(done.code not in (0, 124) and re.search("encryption.?key", done.all, re.I), f"{done.code}: {brief(done.all)}")
        seen(f"{done.code}: {error_of(done)}")
        equal(len(nodes[0].items("Node")), 3, "nodes")
    with t.check("gossip.strangers", "strangers on 7946: garbage by UDP and TCP, TLS without a certificate, tell nothing and break nothing") as seen:
        with inside(LAN):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for size in (0, 1, 12, 100, 1400, 60000):
            for _ in range(20):
                udp.sendto(secrets.token_bytes(size), (nodes[0].ip, 7946))
        udp.settimeout(0.3)
        try:
            expect(False, f"an answer to garbage: {udp.recv(2000)[:60]!r}")
        except TimeoutError:
            pass
        for raw in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", secrets.token_bytes(400)):
            with connect(LAN, (nodes[0].ip, 7946)) as sock:
                sock.sendall(raw)
                sock.settimeout(20)
                with contextlib.suppress(OSError):
                    told = sock.recv(4000)
                    expect(b"200 OK" not in told, f"told {told[:200]!r}")
        loose = ssl.create_default_context()
        loose.check_hostname, loose.verify_mode = False, ssl.CERT_NONE
        for method, path in (("GET", "/"), ("POST", "/sync"), ("GET", "/join"), ("POST", "/join"), ("GET", "/api/v1/nodes")):
            try:
                answer = http_request(LAN, nodes[0].ip, 7946, method, path, body=b"{}" if method == "POST" else None, tls=loose)
                seen(f"{method} {path}: {answer.status}")
                expect(answer.status >= 400, f"{method} {path}: {answer.status} {brief(answer.text, 200)}")
                expect(
                    "node2" not in answer.text and nodes[1].ip not in answer.text, f"{method} {path} tells of the cluster: {brief(answer.text, 200)}"
                )
            except (OSError, http.client.HTTPException) as error:
                seen(f"{method} {path}: {type(error).__name__}")
        equal(nodes[0].get("/api/v1/health", token=None).status, 200, "health afterwards")
        equal(nodes[0].ready_nodes(), ["node1", "node2", "node3"], "Ready nodes")
    with t.check("gossip.sealed", "nothing readable between the nodes: neither gossip nor sync") as seen:
        namespace = t.namespace()
        marker = "marker" + secrets.token_hex(12)
        with inside(LAN):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        tap.bind((NAME + "1", 0))
        tap.settimeout(0.05)
        frames = []
        ended = threading.Event()

        def capture():
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    frames.append(tap.recv(70000))

        thread = threading.Thread(target=capture, daemon=True)
        thread.start()
        nodes[0].apply(pod(namespace, marker, shell(f"echo {marker}; exec /bin/busybox sleep 3600")))
        for node in nodes[1:]:
            wait_for("the marker", lambda node=node: node.find("Pod", namespace, marker), 5)
        t.wait_pods(namespace, 1)
        ended.set()
        thread.join()
        tap.close()
        gossip = [f for f in frames if len(f) > 40 and f[12:14] == b"\x08\x00" and 7946 in struct.unpack("!HH", f[34:38])]
        expect(any(f[23] == 17 for f in gossip), f"no gossip among {len(frames)} frames")
        leaks = [f for f in frames if marker.encode() in f or nodes[0].token.encode() in f]
        expect(not leaks, f"{len(leaks)} frames show it")
        seen(f"{len(gossip)} frames of port 7946, none readable")
    with t.check("2.5", "a list of --join with a dead address first, variables instead of flags, the right key: joins") as seen:
        namespace = t.namespace()
        other.run("podman", "run", "-d", "--name", "stranger", "--network", "none", BUSYBOX, "/bin/busybox", "sleep", "3600")
        key = (nodes[0].data / "encryption.key").read_text().strip()
        shutil.rmtree(other.data, ignore_errors=True)
        other.data.mkdir(exist_ok=True)
        other.run("umount", DEFAULT_DATA)
        other.mount_data()
        other.launch(
            env={
                "NODE_NAME": "node5",
                "ADVERTISE_ADDR": other.ip,
                "JOIN": f"10.231.0.77:7946,{nodes[2].ip}:7946",
                "JOIN_TOKEN": token,
                "ENCRYPTION_KEY": key,
                "NODE_LABELS": "disk=ssd,zone=b",
            }
        )
        other.wait_healthy()
        for node in [*nodes, other]:
            wait_for(f"four Ready on {node.name}", lambda node=node: len(node.ready_nodes()) == 4, 15)
        labels = nodes[0].object("Node", None, "node5")["metadata"]["labels"]
        equal((labels.get("disk"), labels.get("zone")), ("ssd", "b"), "labels of node5")
        nodes[0].apply(deployment(namespace, "stays", 4), deployment(namespace, "ssd", 1, nodeSelector={"disk": "ssd"}))
        t.wait_pods(namespace, 5)
        equal(len(other.containers(namespace, running=True)), 2, "containers on node5")
    with t.check("agent.leave", "leave: exit code 0, the agent ends, its containers go, the others know it no more, its pods run elsewhere") as seen:
        begun = time.monotonic()
        done = other.run(t.bin / "podman-swarm-agent", "leave", timeout=60)
        equal(done.code, 0, f"leave: {brief(done.all)}")
        seen(f"{done.seconds:.1f} s: {brief(done.all, 200)}")
        wait_for("its agent ends", lambda: not other.running(), 20)
        for node in nodes:
            wait_for(f"node5 gone on {node.name}", lambda node=node: [name_of(n) for n in node.items("Node")] == ["node1", "node2", "node3"], 10)
        equal(other.containers(), [], "containers left on node5")
        t.wait_pods(namespace, 4, "app=stays")
        t.measure("leave until its pods are ready elsewhere", f"{time.monotonic() - begun:.1f} s")
        ssd = nodes[0].pods(namespace, "app=ssd")
        expect(all(not is_ready(p) and not p["spec"].get("nodeName") for p in ssd), "a pod that fits nowhere is placed")
    with t.check("agent.leave.foreign", "containers without our labels are left alone (P10); the pod network is gone") as seen:
        done = other.run("podman", "ps", "--format", "{{.Names}}")
        equal(done.out.split(), ["stranger"], "what runs on node5")
        left = other.run("sh", "-c", "ip -br link; ip route; nft list ruleset").out
        seen(brief(left, 400))
        expect("10.244." not in left, f"routes or rules of the pod network are left: {brief(left, 800)}")
    other.gone()


@scenario("agent.tls", "agent.tls.names", "agent.tls.skip", "agent.tls.names.joiner")
def certificates_of_our_own(t):
    """`With --tls-* every node brings its own certificate, none is issued, and the token pins that CA; --tls-skip-verify skips names, never the pin`."""
    first, second = t.spares
    context = ssl.create_default_context(cafile=t.work / "own-ca.crt")
    used = iter(range(100))

    def folder(host):
        return t.work / f"own{next(used)}-data{host.number}"

    def start(host, certificate, data, *more):
        host.launch(
            f"--node-name=own{host.number}",
            f"--advertise-addr={host.ip}",
            f"--data-dir={data}",
            f"--tls-cert={t.work}/{certificate}.crt",
            f"--tls-key={t.work}/{certificate}.key",
            f"--tls-ca={t.work}/own-ca.crt",
            *more,
        )

    def joining(data):
        return f"--join={first.ip}:7946", "--join-token=" + (data / "join.token").read_text().strip()

    def ready_names(data, verified=True):
        if not verified:
            context.check_hostname = False
        answer = http_request(
            LAN, first.ip, 8080, "GET", "/api/v1/nodes", tls=context, headers={"Authorization": "Bearer " + (data / "api.token").read_text().strip()}
        )
        return sorted(name_of(n) for n in answer.json()["items"] if is_ready(n))

    def outcome(data, verified=True):
        """Whether the second host's agent, just started, becomes Ready (True), or ends or stays out (False)."""
        begun = time.monotonic()
        wait_for(
            "it ends, is Ready, or ten seconds",
            lambda: not second.running() or "own5" in ready_names(data, verified) or time.monotonic() - begun > 10,
            15,
        )
        return "own5" in ready_names(data, verified)

    def said():
        return f"{'runs' if second.running() else 'ended'}: {error_of(Done(0, second.log_tail(2), '', 0))}"

    def end():
        for host in (second, first):
            if host.running():
                host.kill()

    try:
        data = folder(first)
        with t.check("agent.tls", "--tls-cert, --tls-key, --tls-ca: two nodes with certificates of their own; one without is refused") as seen:
            start(first, "own4", data)
            first.wait_healthy()
            equal(ready_names(data), ["own4"], "nodes, seen over TLS under our own CA")
            done = second.try_agent("--node-name=bare", f"--advertise-addr={second.ip}", f"--data-dir={folder(second)}", *joining(data), timeout=25)
            expect(done.code not in (0, 124), f"a node without certificate: {done.code} {brief(done.all)}")
            seen(f"without: {done.code} {error_of(done)}")
            mine = folder(second)
            start(second, "own5", mine, *joining(data))
            expect(outcome(data), said())
            second.wait_healthy()
            t.leave(second, f"--data-dir={mine}")
        with t.check("agent.tls.names.joiner", "a joiner whose own certificate names another address is refused without --tls-skip-verify") as seen:
            start(second, "odd5", folder(second), *joining(data))
            taken = outcome(data)
            seen(said())
            expect(not taken, "it became Ready")
    finally:
        end()
    try:
        data = folder(first)
        start(first, "odd5", data, "--tls-skip-verify")
        wait_for("the first, with a certificate that names another address", lambda: ready_names(data, False) == ["own4"], 20)
        with t.check("agent.tls.names", "a node to join at whose certificate names another address is refused without --tls-skip-verify") as seen:
            start(second, "own5", folder(second), *joining(data))
            taken = outcome(data, False)
            seen(said())
            expect(not taken, "it became Ready")
            if second.running():
                second.kill()
        with t.check("agent.tls.skip", "--tls-skip-verify takes it; but never another CA") as seen:
            start(second, "own5", folder(second), *joining(data), "--tls-skip-verify")
            expect(outcome(data, False), said())
            second.kill()
            token = joining(data)[1]
            digest = token.split("-")[-2]
            start(second, "own5", folder(second), joining(data)[0], token.replace(digest, digest[::-1]), "--tls-skip-verify")
            wait_for("it is refused", lambda: not second.running(), 20)
            seen(said())
            expect("CA" in said(), said())
    finally:
        end()


# =========================================================================================== the API


def status_object(answer, code, what):
    """Errors are Kubernetes Status objects."""
    equal(answer.status, code, f"{what}: status ({brief(answer.text, 200)})")
    body = answer.json()
    expect(
        body.get("kind") == "Status"
        and body.get("apiVersion") == "v1"
        and body.get("status") == "Failure"
        and body.get("code") == code
        and body.get("message")
        and body.get("reason"),
        f"{what}: not a Status: {brief(answer.text, 300)}",
    )
    return body


@scenario(
    "api.apply.forms",
    "api.apply.result",
    "api.apply.three-way",
    "api.apply.scale-stays",
    "api.apply.atomic",
    "api.delete",
    "api.delete.all",
    "api.delete.cluster",
    "api.get",
    "api.endpoints",
    "api.addresses",
    "api.status",
    "api.auth",
)
def native_api(t):
    nodes = t.cluster()
    one, two, three = nodes
    ns = t.namespace()
    with t.check("api.apply.forms", "POST /api/v1/manifests takes YAML with several documents, JSON, and a List") as seen:
        text = (
            "".join(
                f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: y{n}, namespace: {ns}}}\nspec: {{selector: {{app: x}}, ports: [{{port: 80}}]}}\n"
                for n in (1, 2)
            )
            + "---\n# only a comment\n---\n"
        )
        equal(results(one.apply(text=text)), {("Service", "y1"): "created", ("Service", "y2"): "created"}, "YAML")
        answer = one.request("POST", "/api/v1/manifests", service(ns, "j1"))
        equal((answer.status, results(answer)), (200, {("Service", "j1"): "created"}), "JSON")
        equal(results(two.apply(service(ns, "l1"), service(ns, "l2"))), {("Service", "l1"): "created", ("Service", "l2"): "created"}, "List")
        answer = one.request(
            "POST",
            f"/api/v1/manifests?namespace={ns}",
            text.replace(f", namespace: {ns}", "").replace("y1", "n1").replace("y2", "n2"),
            kind="text/yaml",
        )
        equal((answer.status, results(answer)), (200, {("Service", "n1"): "created", ("Service", "n2"): "created"}), "?namespace=")
        seen(answer.text)
    with t.check("api.apply.result", "the answer tells created, configured, unchanged, and carries the warnings") as seen:
        first = deployment(ns, "told", 0)
        equal(results(one.apply(first)), {("Deployment", "told"): "created"}, "first")
        equal(results(one.apply(first)), {("Deployment", "told"): "unchanged"}, "again")
        first["spec"]["template"]["spec"]["affinity"] = {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "told"}}}}
                ]
            }
        }
        first["spec"]["colour"] = "red"
        answer = one.apply(first)
        equal(results(answer), {("Deployment", "told"): "configured"}, "changed")
        warnings = json.dumps([item.get("warnings") for item in answer.json()["items"]])
        expect("affinity" in warnings and "colour" in warnings, f"warnings in the answer: {warnings}")
        seen(answer.text)
        expect(answer.warnings(), "no Warning: header (P9)")
        wait_for(
            "the unknown field, as stored, on node3", lambda: (three.find("Deployment", ns, "told") or {"spec": {}})["spec"].get("colour") == "red", 3
        )
    with t.check("api.apply.three-way", "a field of the last apply that this one lacks is removed; what others set stays") as seen:
        made = deployment(ns, "fields", 0, labels={"mine": "1", "also": "2"})
        made["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "EXTRA", "value": "1"})
        made["spec"]["template"]["spec"]["containers"].append(sleeper("second"))
        made["spec"]["minReadySeconds"] = 1
        one.apply(made)
        wait_for("it on node2", lambda: two.find("Deployment", ns, "fields"), 5)
        two.patch("Deployment", ns, "fields", {"metadata": {"labels": {"theirs": "3"}, "annotations": {"note": "by hand"}}})
        wait_for("their label on node3", lambda: three.object("Deployment", ns, "fields")["metadata"]["labels"].get("theirs"), 5)
        made = deployment(ns, "fields", 0, labels={"mine": "1"})
        equal(results(three.apply(made)), {("Deployment", "fields"): "configured"}, "second apply, on another node")
        seen_now = three.object("Deployment", ns, "fields")
        equal(seen_now["metadata"]["labels"], {"mine": "1", "theirs": "3"}, "labels")
        equal(seen_now["metadata"]["annotations"].get("note"), "by hand", "annotation of others")
        names = [c["name"] for c in seen_now["spec"]["template"]["spec"]["containers"]]
        equal(names, ["web"], "containers")
        expect("EXTRA" not in json.dumps(seen_now["spec"]["template"]), "env EXTRA is still there")
        expect(not seen_now["spec"].get("minReadySeconds"), "minReadySeconds is still there")
    with t.check("api.apply.scale-stays", "a scale by others stays, when the manifest does not name replicas (any more)") as seen:
        one.apply(deployment(ns, "scaled", labels={"v": "1"}))
        one.scale(ns, "scaled", 0)
        one.apply(deployment(ns, "scaled", labels={"v": "2"}))
        equal(one.object("Deployment", ns, "scaled")["spec"]["replicas"], 0, "replicas never named")
        one.apply(deployment(ns, "named", 1))
        one.scale(ns, "named", 0)
        one.apply(deployment(ns, "named"))
        equal(one.object("Deployment", ns, "named")["spec"]["replicas"], 0, "replicas named once, then scaled by others, then named no more")
        one.apply(deployment(ns, "unnamed", 3, node="nowhere"))
        one.apply(deployment(ns, "unnamed", node="nowhere"))
        equal(one.object("Deployment", ns, "unnamed")["spec"]["replicas"], 1, "replicas named once, no more, and scaled by nobody: the default")
    with t.check("api.apply.atomic", "all documents are validated before any is stored; all errors at once, with field paths") as seen:
        bad = deployment(ns, "bad", -1)
        bad["spec"]["selector"]["matchLabels"] = {"app": "other"}
        bad["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = 70000
        bad["spec"]["template"]["spec"]["containers"].append({"name": "web", "image": ""})
        answer = one.apply(service(ns, "innocent"), bad, service(ns, "Bad_Name"), status=None)
        body = status_object(answer, 422 if answer.status == 422 else 400, "an invalid bundle")
        text = json.dumps(body)
        for path in (
            "spec.replicas",
            "spec.template.metadata.labels",
            "ports[0].containerPort",
            "containers[1].name",
            "containers[1].image",
            "metadata.name",
        ):
            expect(path in text, f"{path} is not named: {brief(text, 1200)}")
        expect("70000" in text and "Bad_Name" in text, f"values are not named: {brief(text, 900)}")
        for node in nodes:
            expect(node.find("Service", ns, "innocent") is None, "the valid one was stored")
        answer = one.apply(service(ns, "innocent"), object_of("v1", "ConfigMap", ns, "c", data={"a": "b"}), status=None)
        expect(
            400 <= answer.status < 500 and "ConfigMap" in answer.text and one.find("Service", ns, "innocent") is None,
            f"{answer.status} {brief(answer.text, 200)}",
        )
        seen(brief(text, 500))
    with t.check("api.get", "GET pods, pods/ns/name, deployments, deployments/ns/name, services, nodes") as seen:
        one.apply(deployment(ns, "web", 2), service(ns, "web"))
        pods = t.wait_pods(ns, 2, "app=web")
        for path, kind in (("pods", "PodList"), ("deployments", "DeploymentList"), ("services", "ServiceList"), ("nodes", "NodeList")):
            body = two.read(f"/api/v1/{path}")
            equal(body["kind"], kind, path)
            expect(body["items"] and body["metadata"].get("resourceVersion"), f"{path}: {brief(json.dumps(body), 200)}")
        got = two.read(f"/api/v1/pods/{ns}/{name_of(pods[0])}")
        equal((got["kind"], name_of(got), got["status"]["phase"]), ("Pod", name_of(pods[0]), "Running"), "one pod")
        got = two.read(f"/api/v1/deployments/{ns}/web")
        equal((got["kind"], got["status"].get("readyReplicas")), ("Deployment", 2), "one deployment")
        status_object(two.get(f"/api/v1/pods/{ns}/nowhere"), 404, "a pod that is not there")
    with t.check("api.endpoints", 'GET services/:ns/:name/endpoints: [{"nodeName","address","port","healthy","podName"}]') as seen:
        for node in nodes:
            found = wait_for("two endpoints", lambda node=node: len(node.endpoints(ns, "web")) == 2 and node.endpoints(ns, "web"), 5)
            for entry in found:
                equal(sorted(entry), ["address", "healthy", "nodeName", "podName", "port"], "keys")
                pod_there = next(p for p in pods if name_of(p) == entry["podName"])
                equal(
                    (entry["nodeName"], entry["address"], entry["port"], entry["healthy"]),
                    (pod_there["spec"]["nodeName"], pod_there["status"]["podIP"], 8080, True),
                    "an endpoint",
                )
        seen(json.dumps(found))
    with t.check("api.addresses", 'GET services/:ns/:name/addresses: {"addresses":["host:port",…]}') as seen:
        body = three.read(f"/api/v1/services/{ns}/web/addresses")
        equal(sorted(body), ["addresses"], "keys")
        equal(sorted(body["addresses"]), sorted(f"{p['status']['podIP']}:8080" for p in pods), "addresses")
        seen(json.dumps(body))
        status_object(three.get(f"/api/v1/services/{ns}/nowhere/addresses"), 404, "a service that is not there")
    with t.check("api.delete", "DELETE manifests/:namespace/:name?kind= deletes that kind alone") as seen:
        one.apply(service(ns, "both"), deployment(ns, "both", 0))
        answer = one.request("DELETE", f"/api/v1/manifests/{ns}/both?kind=Service")
        equal(answer.status, 200, answer.text)
        expect(one.find("Service", ns, "both") is None and one.find("Deployment", ns, "both"), "not the Service alone")
        status_object(one.request("DELETE", f"/api/v1/manifests/{ns}/both?kind=Service"), 404, "again")
        status_object(
            one.request("DELETE", f"/api/v1/manifests/{ns}/both?kind=Nonsense"),
            404 if one.request("DELETE", f"/api/v1/manifests/{ns}/both?kind=Nonsense").status == 404 else 400,
            "an unknown kind",
        )
    with t.check("api.delete.all", "DELETE manifests/:namespace/:name without a kind: all of that name that a manifest made") as seen:
        one.apply(service(ns, "both"), ingress(ns, "both", ("x.test", "/", "Prefix", "both", 80)))
        wait_for("they are known on node2", lambda: two.find("Ingress", ns, "both") and two.find("Service", ns, "both"), 3)
        answer = two.request("DELETE", f"/api/v1/manifests/{ns}/both")
        equal(answer.status, 200, answer.text)
        seen(answer.text)
        for kind in ("Service", "Deployment", "Ingress"):
            wait_for(f"{kind} gone", lambda kind=kind: one.find(kind, ns, "both") is None, 5)
    with t.check("api.delete.cluster", "objects without a namespace: created, shown and deleted by ?kind=") as seen:
        one.apply(namespace_object("acc-alone"))
        tried = {}
        for path in ("/api/v1/manifests/acc-alone?kind=Namespace", "/api/v1/manifests/_/acc-alone?kind=Namespace"):
            tried[path] = one.request("DELETE", path).status
            if tried[path] == 200:
                break
        seen(tried)
        expect(200 in tried.values(), f"{tried}")
        wait_for("the namespace gone", lambda: one.find("Namespace", None, "acc-alone") is None, 10)
    with t.check("api.status", "errors are Kubernetes Status objects") as seen:
        status_object(one.get("/api/v1/nonsense"), 404, "an unknown path")
        status_object(one.get("/nonsense"), 404, "an unknown path at the top")
        status_object(one.request("POST", "/api/v1/manifests", "{", kind="application/json"), 400, "broken JSON")
        status_object(one.request("POST", "/api/v1/manifests", "a: [", kind="application/yaml"), 400, "broken YAML")
        status_object(one.request("PUT", "/api/v1/manifests", "{}"), 405, "a wrong method")
        status_object(one.get(f"/apis/apps/v1/namespaces/{ns}/deployments/nowhere"), 404, "no such Deployment")
        answer = one.request("POST", one.path("Service", ns), service(ns, "web"))
        status_object(answer, 409, "a second creation")
        answer = one.request("POST", "/api/v1/tokens", {"name": 7})
        status_object(answer, 400 if answer.status == 400 else 422, "a token with a bad name")
        answer = one.request("PUT", "/api/v1/dns/whitelist", {"hosts": "x"})
        status_object(answer, 400 if answer.status == 400 else 422, "a bad whitelist")
    with t.check("api.auth", "every endpoint but health wants a bearer token: 401 with a Status") as seen:
        paths = [
            ("GET", path)
            for path in (
                "/api/v1/pods",
                f"/api/v1/pods/{ns}/x",
                "/api/v1/deployments",
                "/api/v1/services",
                f"/api/v1/services/{ns}/web/endpoints",
                f"/api/v1/services/{ns}/web/addresses",
                "/api/v1/nodes",
                "/api/v1/dns/whitelist",
                "/api/v1/tokens",
                "/apis",
                "/api",
                "/apis/apps/v1",
                "/openapi/v2",
                "/api/v1/backup",
                f"/api/v1/namespaces/{ns}/pods?watch=1",
                "/nonsense",
            )
        ]
        paths += [
            ("POST", "/api/v1/manifests"),
            ("DELETE", f"/api/v1/manifests/{ns}/web"),
            ("PUT", "/api/v1/dns/whitelist"),
            ("POST", "/api/v1/dns/whitelist/hosts"),
            ("POST", "/api/v1/tokens"),
            ("POST", "/api/v1/leave"),
            ("POST", "/api/v1/restore"),
            ("DELETE", "/api/v1/nodes/node3"),
        ]
        for method, path in paths:
            for token in (None, "wrong", one.token[:-1], one.token + "x"):
                answer = one.request(method, path, "{}" if method == "POST" else None, token=token)
                status_object(answer, 401, f"{method} {path} with token {str(token)[:5]}")
        for value in (f"Basic {one.token}", one.token, "Bearer", "Bearer  "):
            equal(one.get("/api/v1/pods", token=None, headers={"Authorization": value}).status, 401, f"Authorization: {value[:8]}")
        for path in ("/api/v1/health", "/livez", "/readyz", "/healthz", "/version"):
            equal(one.get(path, token=None).status, 200, path)
        expect(one.find("Service", ns, "web"), "something was deleted")
        seen(f"{len(paths)} paths")


@scenario("api.tls", "api.plain", "api.plain.all", "api.plain.off", "api.certificate")
def one_port(t):
    nodes = t.cluster()
    one = nodes[0]
    with t.check("api.tls", "TLS and plain HTTP on one port; the CA of admin.kubeconfig is what signs") as seen:
        context = ssl.create_default_context(cafile=one.data / "ca.crt")
        headers = {"Authorization": f"Bearer {one.token}"}
        equal(http_request(LAN, one.ip, 8080, "GET", "/api/v1/nodes", headers=headers, tls=context).status, 200, "TLS from the LAN")
        equal(http_request(one.namespace, "127.0.0.1", 8080, "GET", "/api/v1/nodes", headers=headers, tls=context).status, 200, "TLS over loopback")
        equal(one.get("/api/v1/nodes").status, 200, "plain over loopback")
    with t.check("api.certificate", "certificates cover the advertise address, node and host name, localhost and 127.0.0.1"):
        for node in nodes:
            context = ssl.create_default_context(cafile=one.data / "ca.crt")
            for name in (node.ip, "127.0.0.1", "localhost", node.name, f"{NAME}{node.number}"):
                with connect(node.namespace, ("127.0.0.1", 8080)) as sock, context.wrap_socket(sock, server_hostname=name) as tls:
                    expect(tls.version() in ("TLSv1.3", "TLSv1.2"), tls.version())

    def plain_from_lan(node):
        try:
            answer = http_request(LAN, node.ip, 8080, "GET", "/api/v1/nodes", headers={"Authorization": f"Bearer {node.token}"})
            return answer.status, brief(answer.text, 200)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, ""

    with t.check("api.plain", "plain HTTP from elsewhere is refused by default") as seen:
        told = plain_from_lan(one)
        seen(told)
        expect(told[0] != 200, f"answered {told}")
        with connect(LAN, (one.ip, 8080)) as sock:
            sock.sendall(b"\x00\x01garbage\r\n\r\n")
            sock.settimeout(20)
            with contextlib.suppress(OSError):
                expect(b"200" not in sock.recv(200), "garbage was answered")
    t.set_flags("--plain-http=all", nodes=[nodes[1]])
    t.set_flags("--plain-http=off", nodes=[nodes[2]])
    for node in (nodes[1], nodes[2]):
        node.stop()
        t.start_node(node)

    def healthy(node):
        context = ssl.create_default_context(cafile=node.data / "ca.crt")
        return http_request(LAN, node.ip, 8080, "GET", "/api/v1/health", tls=context).status == 200

    for node in (nodes[1], nodes[2]):
        wait_for(f"{node.name} healthy", lambda node=node: healthy(node), 30)
    with t.check("api.plain.all", "--plain-http=all: plain HTTP from anywhere") as seen:
        equal(plain_from_lan(nodes[1])[0], 200, "from the LAN")
        equal(nodes[1].get("/api/v1/nodes").status, 200, "over loopback")
    with t.check("api.plain.off", "--plain-http=off: none, not even over loopback; psctl still works there") as seen:
        expect(plain_from_lan(nodes[2])[0] != 200, "from the LAN")
        try:
            told = nodes[2].get("/api/v1/nodes").status
        except (OSError, http.client.HTTPException) as error:
            told = type(error).__name__
        seen(told)
        expect(told != 200, "over loopback")
        done = nodes[2].psctl("get", "nodes")
        equal(done.code, 0, f"psctl: {brief(done.all)}")
    for node in (nodes[1], nodes[2]):
        t.extra_flags.pop(node.number, None)
        node.stop()
    t.cluster()


@scenario("api.tokens", "api.tokens.expire", "api.tokens.hashed")
def tokens(t):
    one, two, three = t.cluster()
    name = "acc-" + secrets.token_hex(3)
    with t.check("api.tokens", "POST /tokens shows the value once; GET never; DELETE takes it back, everywhere") as seen:
        answer = one.request("POST", "/api/v1/tokens", {"name": name, "expires_in": 3600})
        expect(answer.status in (200, 201), f"{answer.status} {answer.text}")
        body = answer.json()
        seen({key: ("…" if key in ("token", "value") else value) for key, value in body.items()})
        value = body.get("token") or body.get("value")
        expect(value, f"no value: {sorted(body)}")
        for node in (one, two, three):
            wait_for(f"it is good on {node.name}", lambda node=node: node.get("/api/v1/nodes", token=value).status == 200, 2)
            listed = node.get("/api/v1/tokens")
            expect(listed.status == 200 and name in listed.text and value not in listed.text, f"list: {brief(listed.text)}")
        equal(two.request("DELETE", "/api/v1/tokens/" + urllib.parse.quote(value, safe="")).status, 200, "DELETE by value")
        begun = time.monotonic()
        for node in (one, two, three):
            wait_for(f"it is refused on {node.name}", lambda node=node: node.get("/api/v1/nodes", token=value).status == 401, 5)
        t.measure("a deleted token refused on all nodes", f"{(time.monotonic() - begun) * 1000:.0f} ms")
        expect(time.monotonic() - begun < 1, "took over a second")
        expect(name not in three.get("/api/v1/tokens").text, "still listed")
        status_object(one.request("DELETE", "/api/v1/tokens/nowhere"), 404, "an unknown token")
    with t.check("api.tokens.expire", "expires_in is kept") as seen:
        value = one.request("POST", "/api/v1/tokens", {"name": name + "-short", "expires_in": 2}).json()
        value = value.get("token") or value.get("value")
        begun = time.monotonic()
        wait_for("good on node2 at first", lambda: two.get("/api/v1/nodes", token=value).status == 200, 1.8)
        wait_for("refused", lambda: two.get("/api/v1/nodes", token=value).status == 401, 5)
        seen(f"refused after {time.monotonic() - begun:.1f} s")
        one.request("DELETE", f"/api/v1/tokens/{name}-short")
    with t.check("api.tokens.hashed", "tokens are kept hashed: no data directory has the value") as seen:
        value = one.request("POST", "/api/v1/tokens", {"name": name + "-kept", "expires_in": 3600}).json()
        value = value.get("token") or value.get("value")
        wait_for("on node3", lambda: three.get("/api/v1/nodes", token=value).status == 200, 2)
        looked = 0
        for node in (one, two, three):
            for path in node.data.rglob("*"):
                if path.is_file():
                    looked += 1
                    expect(value.encode() not in path.read_bytes(), f"it is in {path}")
        seen(f"{looked} files looked at")
        one.request("DELETE", f"/api/v1/tokens/{name}-kept")


# =========================================================================================== schemas

MANIFEST_AS_WRITTEN = """\
# A comment first
apiVersion: v1
kind: Pod
metadata: &meta
  name: written
  namespace: NS
  labels: &labels
    app: written
    "on": "yes"
  annotations:
    script: |
      first
      ---
      second: [not, yaml
      ...
    folded: >-
      one
      two
    octal: "0755"
    merged: 'it''s'
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - &c
    name: one
    image: localhost/busybox:test
    imagePullPolicy: IfNotPresent
    command: ["/bin/busybox", "sh", "-c"]
    args:
    - |
      cat <<EOT
      ---
      kind: Fake
      ---
      EOT
      trap 'exit 0' TERM
      while :; do /bin/busybox sleep 3600 & wait $!; done
    env: &env
    - {name: A, value: "1"}
  - <<: *c
    name: two
    env: *env
---
apiVersion: v1
kind: Service
metadata:
  name: written
  namespace: NS
spec:
  selector: *undefined_elsewhere_is_not_used
"""


@scenario(
    "schemas.written",
    "schemas.duplicates",
    "schemas.size",
    "schemas.depth",
    "schemas.bomb",
    "schemas.types",
    "schemas.defaults",
    "schemas.unknown",
    "schemas.kinds",
    "schemas.immutable",
)
def manifests(t):
    nodes = t.cluster()
    one, two, three = nodes
    ns = t.namespace()

    def healthy():
        equal(one.get("/api/v1/health", token=None, timeout=5).status, 200, "health")

    with t.check("schemas.written", "anchors, merge keys, block scalars with `---`, comments, quoted booleans") as seen:
        text = MANIFEST_AS_WRITTEN.replace("NS", ns).replace(
            "  selector: *undefined_elsewhere_is_not_used\n", "  selector: {app: written}\n  ports: [{port: 80}]\n"
        )
        answer = one.apply(text=text)
        equal(results(answer), {("Pod", "written"): "created", ("Service", "written"): "created"}, "applied")
        stored = two_read = wait_for("it on node2", lambda: two.find("Pod", ns, "written"), 5)
        equal(stored["metadata"]["annotations"]["script"], "first\n---\nsecond: [not, yaml\n...\n", "block scalar")
        equal(stored["metadata"]["annotations"]["folded"], "one two", "folded scalar")
        equal(stored["metadata"]["annotations"]["octal"], "0755", "quoted number")
        equal(stored["metadata"]["labels"]["on"], "yes", "quoted boolean")
        equal(
            [(c["name"], c["env"]) for c in two_read["spec"]["containers"]],
            [("one", [{"name": "A", "value": "1"}]), ("two", [{"name": "A", "value": "1"}])],
            "merge key",
        )
        expect("---\nkind: Fake\n---\n" in stored["spec"]["containers"][1]["args"][0], "args")
        answer = one.apply(text="apiVersion: v1\nkind: Service\nmetadata: {name: u}\nspec: {selector: *nowhere}\n", status=None)
        status_object(answer, 400, "an alias without an anchor")
    with t.check("schemas.duplicates", "duplicate keys are refused, in YAML and JSON, naming the key") as seen:
        for text, kind, key in (
            (
                f"apiVersion: v1\nkind: Service\nmetadata: {{name: d, namespace: {ns}}}\nspec:\n  selector: {{app: a}}\n  ports: [{{port: 80}}]\n  selector: {{app: b}}\n",
                "application/yaml",
                "selector",
            ),
            (
                f'{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"d","namespace":"{ns}","name":"e"}},"spec":{{"ports":[{{"port":80}}]}}}}',
                "application/json",
                "name",
            ),
        ):
            answer = one.apply(text=text, kind=kind, status=None)
            status_object(answer, 400, f"a duplicate {key} in {kind}")
            expect(key in answer.text and "duplicate" in answer.text.lower(), brief(answer.text))
            seen(brief(answer.json()["message"], 200))
        expect(not one.find("Service", ns, "d") and not one.find("Service", ns, "e"), "stored")
    with t.check("schemas.size", "an object over 1 MiB is refused; one just below is taken; an endless body is refused") as seen:
        big = pod(ns, "big", shell("exit 0", args=["x" * (1024 * 1024 + 10)]), restartPolicy="Never")
        answer = one.apply(big, status=None, query="")
        expect(answer.status in (400, 413, 422), f"{answer.status} {brief(answer.text, 200)}")
        status_object(answer, answer.status, "1 MiB")
        seen(f"{answer.status} {brief(answer.json()['message'], 200)}")
        below = pod(ns, "below", shell("exit 0", args=["x" * 900_000]), restartPolicy="Never", node="nowhere")
        one.apply(below)
        one.delete("Pod", ns, "below")
        with connect(one.namespace, ("127.0.0.1", 8080), 20) as sock:
            sock.sendall(
                f"POST /api/v1/manifests HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {one.token}\r\nContent-Type: application/yaml\r\n"
                f"Content-Length: {40 << 20}\r\n\r\n".encode()
            )
            sent = 0
            with contextlib.suppress(OSError):  # it may close before all is sent, after its answer
                while sent < 40 << 20:
                    sock.sendall(b" " * 65536)
                    sent += 65536
            try:
                told = sock.recv(4000).decode()
            except OSError as error:
                told = type(error).__name__
            seen(f"40 MiB: {sent >> 20} MiB taken, then {told.splitlines()[0] if told else 'closed'}")
            expect(sent < 40 << 20 or re.match(r"HTTP/1.1 (413|400)", told), f"40 MiB: {brief(told)}")
        healthy()
    with t.check("schemas.depth", "deep nesting is refused and harms nobody") as seen:
        deep_json = (
            '{"apiVersion":"v1","kind":"Service","metadata":{"name":"deep","namespace":"'
            + ns
            + '"},"spec":{"x":'
            + "[" * 100_000
            + "]" * 100_000
            + "}}"
        )
        deep_map = '{"a":' * 50_000 + "1" + "}" * 50_000
        deep_block = (
            "apiVersion: v1\nkind: Service\nmetadata: {name: deep}\nspec:\n" + "".join(" " * (n + 1) + "a:\n" for n in range(800)) + " " * 801 + "b\n"
        )
        for text, kind in (
            (deep_json, "application/json"),
            (deep_map, "application/json"),
            (deep_json, "application/yaml"),
            ("[" * 100_000, "application/yaml"),
            ("- " * 100_000, "application/yaml"),
            (deep_block, "application/yaml"),
        ):
            answer = one.apply(text=text, kind=kind, status=None)
            expect(400 <= answer.status < 500 and answer.seconds < 10, f"{answer.status} after {answer.seconds:.1f} s: {brief(answer.text, 200)}")
            status_object(answer, answer.status, "deep")
        healthy()
        seen(brief(answer.text, 200))
    with t.check("schemas.bomb", "aliases that multiply are refused and harm nobody") as seen:
        lines = ["apiVersion: v1", "kind: Service", f"metadata: {{name: bomb, namespace: {ns}}}", "spec:", "  a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
        lines += [f"  a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
        answer = one.apply(text="\n".join(lines) + "\n", status=None)
        expect(400 <= answer.status < 500 and answer.seconds < 10, f"{answer.status} after {answer.seconds:.1f} s: {brief(answer.text, 200)}")
        seen(brief(answer.json()["message"], 200))
        healthy()
    with t.check("schemas.types", "values of a wrong type are refused with path and value") as seen:
        for change, path in (
            ((lambda m: m["spec"].update(replicas="three")), "spec.replicas"),
            ((lambda m: m["spec"]["template"]["spec"]["containers"][0]["env"][0].update(value=1)), "value"),
            ((lambda m: m["spec"]["template"]["spec"].update(containers={})), "containers"),
            ((lambda m: m["spec"]["template"]["spec"]["containers"][0].update(resources={"limits": {"memory": "lots"}})), "memory"),
            (
                (lambda m: m["spec"].update(strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})),
                "maxUnavailable",
            ),
            ((lambda m: m["spec"]["template"]["spec"].update(restartPolicy="Never")), "restartPolicy"),
        ):
            made = deployment(ns, "types", 0)
            change(made)
            answer = one.apply(made, status=None)
            expect(answer.status in (400, 422) and path in answer.text, f"{path}: {answer.status} {brief(answer.text, 300)}")
        for made, path in (
            (service(ns, "types", port=0), "port"),
            (service(ns, "types", type="Nonsense"), "type"),
            (ingress(ns, "types", ("a.test", "nopath", "Prefix", "x", 80)), "path"),
            (ingress(ns, "types", ("a.test", "/", "Regex", "x", 80)), "pathType"),
        ):
            answer = one.apply(made, status=None)
            expect(answer.status in (400, 422) and path in answer.text, f"{path}: {answer.status} {brief(answer.text, 300)}")
        seen(brief(answer.json()["message"], 200))
    with t.check("schemas.defaults", "Kubernetes' defaults are shown on reading") as seen:
        made = object_of(
            "apps/v1",
            "Deployment",
            ns,
            "plain",
            spec={
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {
                        "nodeSelector": {"no": "where"},
                        "containers": [{"name": "c", "image": "localhost/x", "ports": [{"containerPort": 80}]}],
                    },
                },
            },
        )
        one.apply(made, service(ns, "plain", target=None) | {"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}})
        got = one.object("Deployment", ns, "plain")["spec"]
        template = got["template"]["spec"]
        equal(
            (got["replicas"], got["strategy"], got["revisionHistoryLimit"], got["progressDeadlineSeconds"]),
            (1, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}, 10, 600),
            "Deployment",
        )
        equal((template["restartPolicy"], template["dnsPolicy"], template["terminationGracePeriodSeconds"]), ("Always", "ClusterFirst", 30), "pod")
        container = template["containers"][0]
        equal((container["imagePullPolicy"], container["ports"][0]["protocol"]), ("Always", "TCP"), "container without a tag")
        got = one.object("Service", ns, "plain")["spec"]
        equal(
            (got["type"], got["ports"][0]["protocol"], got["ports"][0]["targetPort"], got["sessionAffinity"]),
            ("ClusterIP", "TCP", 80, "None"),
            "Service",
        )
    with t.check("schemas.unknown", "unknown fields are warnings, and never dropped from what is stored") as seen:
        made = deployment(ns, "unknown", 0)
        made["spec"]["template"]["spec"]["containers"][0]["flavour"] = {"deep": [1, 2.5, True, None, "x"]}
        made["metadata"]["mood"] = "good"
        answer = one.apply(made)
        told = json.dumps(answer.json()) + str(answer.warnings())
        expect("flavour" in told and "mood" in told, f"no warning: {brief(told)}")
        for node in nodes:
            got = wait_for("it", lambda node=node: node.find("Deployment", ns, "unknown"), 5)
            equal(got["spec"]["template"]["spec"]["containers"][0].get("flavour"), {"deep": [1, 2.5, True, None, "x"]}, f"on {node.name}")
            equal(got["metadata"].get("mood"), "good", f"metadata.mood on {node.name}")
        seen(brief(told, 300))
    with t.check("schemas.kinds", "Namespace, Pod, ReplicaSet, Deployment, Service, Ingress are served; others are refused by name") as seen:
        replica_set = object_of(
            "apps/v1",
            "ReplicaSet",
            ns,
            "rs",
            spec={
                "replicas": 1,
                "selector": {"matchLabels": {"app": "rs"}},
                "template": {"metadata": {"labels": {"app": "rs"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [hello_container()]}},
            },
        )
        one.apply(replica_set, pod(ns, "alone", hello_container()))
        t.wait_pods(ns, 1, "app=rs")
        t.wait_pods(ns, 1, "app=alone")
        wait_for("readyReplicas of the ReplicaSet on node2", lambda: two.object("ReplicaSet", ns, "rs")["status"].get("readyReplicas") == 1, 3)
        for version, kind in (
            ("v1", "ConfigMap"),
            ("apps/v1", "StatefulSet"),
            ("batch/v1", "Job"),
            ("example.com/v1", "Widget"),
            ("apps/v1beta1", "Deployment"),
        ):
            answer = one.apply(object_of(version, kind, ns, "other"), status=None)
            expect(400 <= answer.status < 500 and kind in answer.text, f"{kind}: {answer.status} {brief(answer.text, 200)}")
    with t.check("schemas.immutable", "a new object of a deleted name has a new uid; fields immutable after creation are refused") as seen:
        one.apply(deployment(ns, "again", 0))
        uid = one.object("Deployment", ns, "again")["metadata"]["uid"]
        other = deployment(ns, "again", 0)
        other["spec"]["selector"]["matchLabels"] = other["spec"]["template"]["metadata"]["labels"] = {"app": "changed"}
        answer = one.apply(other, status=None)
        expect(answer.status == 422 and "spec.selector" in answer.text, f"{answer.status} {brief(answer.text, 200)}")
        one.request("DELETE", f"/api/v1/manifests/{ns}/again?kind=Deployment")
        wait_for("gone", lambda: one.find("Deployment", ns, "again") is None, 5)
        wait_for("gone on node2", lambda: two.find("Deployment", ns, "again") is None, 5)
        two.apply(other)
        expect(two.object("Deployment", ns, "again")["metadata"]["uid"] != uid, "the same uid")


# =========================================================================================== pods


@scenario(
    "pods.labels",
    "pods.command",
    "pods.env",
    "pods.workdir",
    "pods.resources",
    "pods.emptydir",
    "pods.hostpath",
    "pods.network",
    "pods.resolv",
    "pods.several",
    "pods.adopted-not",
    "pods.deleted",
)
def one_pod_in_full(t):
    nodes = t.cluster()
    one = nodes[0]
    ns = t.namespace()
    shared = t.work / "hostpath"
    shared.mkdir(exist_ok=True)
    (shared / "given").write_text("from the host\n")
    script = 'printf "%s|" "$0" "$@" > /scratch/args; trap "exit 0" TERM; while :; do /bin/busybox sleep 3600 & wait $!; done'
    main = {
        "name": "main",
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/busybox", "sh", "-c"],
        "args": [script, "zero", "one two", "$(PLAIN)", "$$(PLAIN)", ""],
        "workingDir": "/work",
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [
            {"name": "PLAIN", "value": "plain value"},
            {"name": "REF", "value": "is $(PLAIN), $(NOWHERE)"},
            field_ref("POD", "metadata.name"),
            field_ref("NS", "metadata.namespace"),
            field_ref("UID_", "metadata.uid"),
            field_ref("TIER", "metadata.labels['tier']"),
            field_ref("NOTE", "metadata.annotations['note']"),
            field_ref("NODE", "spec.nodeName"),
            field_ref("IP", "status.podIP"),
            field_ref("HOST", "status.hostIP"),
            {"name": "EMPTY", "value": ""},
            {"name": "LINES", "value": "a\nb"},
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "host", "mountPath": "/host"}],
    }
    second = shell(
        "trap 'exit 0' TERM; /bin/busybox httpd -p 8081 -h /www; while :; do /bin/busybox sleep 3600 & wait $!; done",
        "second",
        volumeMounts=[{"name": "scratch", "mountPath": "/other"}, {"name": "host", "mountPath": "/host", "readOnly": True}],
    )
    made = pod(
        ns,
        "full",
        main,
        second,
        labels={"tier": "front"},
        annotations={"note": "a note"},
        volumes=[{"name": "scratch", "emptyDir": {}}, {"name": "host", "hostPath": {"path": str(shared), "type": "Directory"}}],
    )
    one.apply(made)
    got = t.wait_pods(ns, 1)[0]
    node, c_main = t.find_container(ns, "full", "main")
    c_second = node.container(ns, "full", "second")
    inspected = node.inspect(c_main)

    def inside_pod(script, container=None):
        done = node.exec(container or c_main, script)
        expect(done.code == 0, f"`{script}`: {done.code} {brief(done.all)}")
        return done.out

    with t.check("pods.labels", "containers carry podman-swarm.cluster, .pod-namespace, .pod-name, .pod-uid, .container-name") as seen:
        labels = {key: value for key, value in c_main["Labels"].items() if key.startswith("podman-swarm")}
        seen(labels)
        cluster_id = labels.pop("podman-swarm.cluster", "")
        expect(cluster_id, "no podman-swarm.cluster")
        for key, value in {"pod-namespace": ns, "pod-name": "full", "pod-uid": got["metadata"]["uid"], "container-name": "main"}.items():
            equal(labels.get(f"podman-swarm.{key}"), value, key)
        equal(c_second["Labels"]["podman-swarm.cluster"], cluster_id, "cluster of the second container")
    with t.check("pods.command", "command and args, with $(NAME) in them") as seen:
        equal(inside_pod("cat /scratch/args"), "zero|one two|plain value|$(PLAIN)||", "arguments")
    with t.check("pods.env", "env with values and fieldRef") as seen:
        env = dict(part.split("=", 1) for part in inside_pod("tr '\\000' '\\001' < /proc/1/environ").split("\x01") if "=" in part)
        for key, value in {
            "PLAIN": "plain value",
            "REF": "is plain value, $(NOWHERE)",
            "POD": "full",
            "NS": ns,
            "UID_": got["metadata"]["uid"],
            "TIER": "front",
            "NOTE": "a note",
            "NODE": node.name,
            "IP": got["status"]["podIP"],
            "HOST": node.ip,
            "EMPTY": "",
            "LINES": "a\nb",
        }.items():
            equal(env.get(key), value, key)
    with t.check("pods.workdir", "workingDir") as seen:
        equal(inside_pod("readlink /proc/1/cwd").strip(), "/work", "cwd of pid 1")
    with t.check("pods.resources", "cpu and memory limits reach Podman and the control group") as seen:
        host_config = inspected["HostConfig"]
        cpu = host_config.get("NanoCpus") or host_config["CpuQuota"] / (host_config["CpuPeriod"] or 100000) * 1e9
        equal((host_config["Memory"], int(cpu)), (64 << 20, 500_000_000), "Podman's limits")
        seen(f"Memory {host_config['Memory']}, cpu {cpu}, swap {host_config.get('MemorySwap')}")
    with t.check("pods.emptydir", "emptyDir is shared by the containers of the pod") as seen:
        inside_pod("echo here > /scratch/file")
        equal(inside_pod("cat /other/file", c_second), "here\n", "seen by the second container")
    with t.check("pods.hostpath", "hostPath, and readOnly mounts") as seen:
        equal(inside_pod("cat /host/given; echo back > /host/answer"), "from the host\n", "read")
        equal((shared / "answer").read_text(), "back\n", "written")
        expect(node.exec(c_second, "echo no > /host/answer2").code != 0, "a readOnly mount is writable")
    with t.check("pods.several", "all containers of a pod, in one network: each reaches the other at 127.0.0.1") as seen:
        equal(inside_pod("/bin/busybox wget -q -O - http://127.0.0.1:8081/"), "hello\n", "the second container's server")
        statuses = {c["name"]: (c["ready"], c["restartCount"], list(c["state"])) for c in got["status"]["containerStatuses"]}
        equal(statuses, {"main": (True, 0, ["running"]), "second": (True, 0, ["running"])}, "containerStatuses")
    with t.check("pods.network", "the pod has an address of the node's own range of --pod-cidr") as seen:
        address = got["status"]["podIP"]
        expect(
            address.startswith("10.244.") and address in inside_pod("/bin/busybox ip -4 addr"), f"{address}: {inside_pod('/bin/busybox ip -4 addr')}"
        )
        ranges = [n.object("Node", None, n.name)["spec"].get("podCIDR") for n in nodes]
        seen(f"{address}; ranges {ranges}")
        expect(len(set(ranges)) == 3 and all(ranges), f"ranges of the nodes: {ranges}")
        equal(got["status"].get("hostIP"), node.ip, "hostIP")
    with t.check("pods.resolv", "resolv.conf: the node's own server, and Kubernetes' search path") as seen:
        text = inside_pod("cat /etc/resolv.conf")
        seen(text)
        equal(re.search(r"(?m)^search (.*)$", text)[1].split(), [f"{ns}.svc.cluster.local", "svc.cluster.local", "cluster.local"], "search")
        servers = re.findall(r"(?m)^nameserver (\S+)$", text)
        equal(len(servers), 1, f"nameservers {servers}")
        expect(servers[0] in node.run("ip", "-4", "addr").out, f"{servers[0]} is not an address of the pod's node")
        expect("full" in inside_pod("cat /etc/hosts; hostname"), "the pod's name is not its host name")
    with t.check("pods.adopted-not", "containers, networks and volumes without our labels are left alone (P10)") as seen:
        node.run("podman", "run", "-d", "--name", "foreign", "--network", "none", BUSYBOX, "/bin/busybox", "sleep", "3600")
        node.run("podman", "network", "create", "theirs")
        node.run("podman", "volume", "create", "theirs")
        t.foreign = node
    with t.check("pods.deleted", "a deleted pod leaves no container, no address and no emptyDir behind") as seen:
        begun = time.monotonic()
        folder = node.data / "pods" / got["metadata"]["uid"]
        one.delete("Pod", ns, "full")
        wait_for("containers gone", lambda: not node.containers(ns), 15)
        wait_for("the object gone", lambda: one.find("Pod", ns, "full") is None, 5)
        wait_for("its folder gone", lambda: not folder.exists(), 5)
        seen(f"after {time.monotonic() - begun:.2f} s")
        expect((shared / "given").exists(), "the hostPath was emptied")
        expect(
            got["status"]["podIP"] not in node.run("sh", "-c", "ip route; ip neigh show nud permanent; nft list ruleset").out,
            "its address is still in routes or rules",
        )
        done = node.run("sh", "-c", "podman ps --format '{{.Names}}'; podman network ls -q; podman volume ls -q")
        expect("foreign" in done.out and done.out.count("theirs") == 2, f"foreign things: {done.out}")
        node.run("podman", "rm", "-f", "-t", "0", "foreign")
        node.run("podman", "network", "rm", "theirs")
        node.run("podman", "volume", "rm", "theirs")


def container_state(item, name=None):
    statuses = item.get("status", {}).get("containerStatuses") or []
    return next((c for c in statuses if name is None or c["name"] == name), {"state": {}, "lastState": {}, "restartCount": 0})


@scenario("pods.restart", "pods.pull", "pods.pull.registry", "pods.pending", "pods.selector", "pods.grace", "pods.crashloop", "pods.ports")
def lives_of_pods(t):
    nodes = t.cluster()
    one = nodes[0]
    ns = t.namespace()
    one.apply(
        *[
            pod(ns, f"{policy.lower()}-{code}", shell(f"exit {code}"), restartPolicy=policy)
            for policy in ("Always", "OnFailure", "Never")
            for code in (0, 3)
        ]
    )
    with t.check("pods.restart", "restartPolicy Always, OnFailure, Never; exit codes are shown") as seen:

        def get(name):
            return one.object("Pod", ns, name)

        for name, phase, code in (("onfailure-0", "Succeeded", 0), ("never-0", "Succeeded", 0), ("never-3", "Failed", 3)):
            item = wait_for(f"{name} {phase}", lambda name=name, phase=phase: (p := get(name))["status"].get("phase") == phase and p, 20)
            state = container_state(item)
            equal((state["state"].get("terminated", {}).get("exitCode"), state["restartCount"]), (code, 0), f"{name}: exit code, restarts")
        for name, code in (("always-0", 0), ("always-3", 3), ("onfailure-3", 3)):
            item = wait_for(f"{name} restarts", lambda name=name: container_state(p := get(name))["restartCount"] >= 1 and p, 30)
            state = container_state(item)
            last = state["lastState"].get("terminated") or state["state"].get("terminated") or {}
            equal((item["status"]["phase"], last.get("exitCode")), ("Running", code), f"{name}: phase, last exit code")
        seen("six pods")
    with t.check("pods.crashloop", "a container that keeps failing waits as CrashLoopBackOff") as seen:
        item = wait_for(
            "CrashLoopBackOff",
            lambda: container_state(p := one.object("Pod", ns, "always-3"))["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff" and p,
            40,
        )
        seen(container_state(item)["state"])
    for policy in ("always", "onfailure", "never"):
        for code in (0, 3):
            one.delete("Pod", ns, f"{policy}-{code}")
    with t.check(
        "pods.pull", "imagePullPolicy: Never without the image, and images that cannot be had, wait and say why; IfNotPresent takes what is there"
    ) as seen:
        absent = f"{DESK}:{REGISTRY_PORT}/absent:1"
        one.apply(
            pod(ns, "never", shell("sleep 1") | {"image": "localhost/nowhere:1", "imagePullPolicy": "Never"}),
            pod(ns, "absent", shell("sleep 1") | {"image": absent}),
            pod(ns, "present", sleeper()),
        )

        def waiting(name):
            return container_state(one.object("Pod", ns, name))["state"].get("waiting", {})

        wait_for("ErrImageNeverPull", lambda: waiting("never").get("reason") == "ErrImageNeverPull", 20)
        reason = wait_for("ErrImagePull", lambda: waiting("absent").get("reason") in ("ErrImagePull", "ImagePullBackOff") and waiting("absent"), 30)
        seen(reason)
        expect(absent in json.dumps(one.object("Pod", ns, "absent")["status"]) + json.dumps(one.events(ns)), "nothing names the image")
        wait_for("ImagePullBackOff", lambda: waiting("absent").get("reason") == "ImagePullBackOff", 40)
        wait_for("present ready", lambda: is_ready(one.object("Pod", ns, "present")), 20)
    with t.check("pods.pull.registry", "IfNotPresent pulls what is absent once; Always asks the registry each time; Never never") as seen:
        image = f"{DESK}:{REGISTRY_PORT}/team/app"

        def asked(tag):
            return sum(1 for _, _, _, path in t.registry.seen if f"/manifests/{tag}" in path)

        def run(name, tag, policy):
            container = sleeper() | {"image": f"{image}:{tag}"}
            container.pop("imagePullPolicy")
            one.apply(pod(ns, name, container | ({"imagePullPolicy": policy} if policy else {}), node="node1"))
            wait_for(f"{name} ready", lambda: is_ready(one.object("Pod", ns, name)), 30)

        run("pull-1", "1", "IfNotPresent")
        expect(asked("1") >= 1, "the registry was not asked")
        before = asked("1")
        run("pull-2", "1", "IfNotPresent")
        run("pull-3", "1", "Never")
        run("pull-4", "1", None)
        equal(asked("1"), before, "requests for a tag that is there (IfNotPresent, Never, default)")
        run("pull-5", "1", "Always")
        expect(asked("1") > before, "Always did not ask the registry")
        run("pull-6", "latest", None)
        before = asked("latest")
        run("pull-7", "latest", None)
        expect(before and asked("latest") > before, "the default for :latest is not Always")
        seen(f"{len(t.registry.seen)} requests")
        for number in range(1, 8):
            one.delete("Pod", ns, f"pull-{number}")
    with t.check("pods.selector", "nodeSelector is honoured; nodes' labels are the well-known ones and --node-labels") as seen:
        one.apply(deployment(ns, "there", 4, node="node3"))
        pods = t.wait_pods(ns, 4, "app=there")
        equal({p["spec"]["nodeName"] for p in pods}, {"node3"}, "nodes")
        seen({key: value for key, value in one.object("Node", None, "node3")["metadata"]["labels"].items()})
    with t.check("pods.pending", "a pod that fits nowhere is Pending and says why") as seen:
        one.apply(pod(ns, "lost", node="nowhere"), pod(ns, "huge", sleeper(resources={"requests": {"memory": "900Gi"}})))
        for name, words in (("lost", r"selector|label"), ("huge", r"memory")):

            def probe(name=name):
                item = one.object("Pod", ns, name)
                scheduled = condition(item, "PodScheduled")
                return item["status"].get("phase") == "Pending" and scheduled.get("status") == "False" and scheduled

            told = wait_for(f"{name} Pending with a reason", probe, 10)
            expect(re.search(words, told.get("message", ""), re.I), f"{name}: {told}")
            seen(f"{name}: {told.get('reason')}: {told.get('message')}")
        shown = one.psctl("describe", "pod", "lost", "-n", ns).out
        expect(told.get("reason", "Unschedulable") in shown, f"psctl describe does not say it: {brief(shown, 600)}")
    with t.check("pods.ports", "ports: a hostPort is reached at its node's address, and is free again after the pod") as seen:
        web = hello_container() | {"ports": [{"containerPort": 8080, "hostPort": 18088}]}
        one.apply(pod(ns, "host-port", web, node="node2"))
        wait_for("ready", lambda: is_ready(one.object("Pod", ns, "host-port")), 20)
        told = wait_for("it answers", lambda: http_request(LAN, nodes[1].ip, 18088, "GET", "/", timeout=2).text, 5)
        expect("host-port" in told, told)
        seen(told)
        one.delete("Pod", ns, "host-port")

        def refused():
            try:
                connect(LAN, (nodes[1].ip, 18088), 1).close()
            except OSError:
                return True

        wait_for("nobody answers there", refused, 10)
    with t.check("pods.grace", "SIGTERM first, SIGKILL after terminationGracePeriodSeconds") as seen:
        told = t.work / "hostpath-grace"
        told.mkdir(exist_ok=True)
        volumes = [{"name": "v", "hostPath": {"path": str(told)}}]
        mounts = [{"name": "v", "mountPath": "/v"}]
        one.apply(
            pod(
                ns,
                "polite",
                shell("trap 'echo bye > /v/bye; exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait $!; done", volumeMounts=mounts),
                volumes=volumes,
            )
            | {},
            pod(ns, "deaf", shell("trap '' TERM; while :; do /bin/busybox sleep 1; done"), terminationGracePeriodSeconds=3),
        )
        for name in ("polite", "deaf"):
            wait_for(f"{name} ready", lambda name=name: is_ready(one.object("Pod", ns, name)), 20)
        begun = time.monotonic()
        one.delete("Pod", ns, "polite")
        wait_for("polite gone", lambda: one.find("Pod", ns, "polite") is None, 10)
        seen(f"polite {time.monotonic() - begun:.2f} s")
        equal((told / "bye").read_text(), "bye\n", "what it wrote at SIGTERM")
        begun = time.monotonic()
        one.delete("Pod", ns, "deaf")
        wait_for("deaf gone", lambda: one.find("Pod", ns, "deaf") is None, 20)
        seconds = time.monotonic() - begun
        seen(f"deaf {seconds:.2f} s")
        expect(2.5 < seconds < 8, f"SIGKILL after {seconds:.1f} s instead of 3")


# =========================================================================================== pod network, DNS


@scenario("net.address", "net.source", "net.service-port", "net.declared", "dns.container", "dns.gateway")
def pod_network(t):
    nodes = t.cluster()
    one = nodes[0]
    ns = t.namespace()
    server = shell("exec /bin/busybox httpd -f -p 8080 -h /www", "web", ports=[{"name": "http", "containerPort": 8080}])
    one.apply(
        *[pod(ns, f"server{n.number}", server, node=n.name, labels={"app": "shop"}) for n in nodes],
        *[pod(ns, f"client{n.number}", sleeper(), node=n.name) for n in nodes],
        service(ns, "shop", port=80, target=8080),
        pod(
            ns,
            "both",
            shell(
                "/bin/busybox httpd -p 80 -h /etc; exec /bin/busybox httpd -f -p 8080 -h /www",
                "web",
                ports=[{"containerPort": 80}, {"containerPort": 8080}],
            ),
            node="node2",
            labels={"app": "both"},
        ),
        service(ns, "both", port=80, target=8080),
    )
    pods = {name_of(p): p for p in t.wait_pods(ns, 7)}
    clients = {n: n.container(ns, f"client{n.number}") for n in nodes}
    address = {n: pods[f"server{n.number}"]["status"]["podIP"] for n in nodes}
    own = {n: pods[f"client{n.number}"]["status"]["podIP"] for n in nodes}

    def wget(node, url):
        done = node.exec(clients[node], f"/bin/busybox wget -q -O - '{url}' 2>&1")
        expect(done.code == 0, f"{url} from {node.name}: {done.code} {brief(done.all, 200)}")
        return done.out.strip()

    with t.check("net.address", "a container on each node reaches a container on every node by its pod address") as seen:
        for source in nodes:
            for target in nodes:
                equal(wget(source, f"http://{address[target]}:8080/"), "hello", f"{source.name} to {target.name}")
        seen(f"nine ways; {list(address.values())}")
    with t.check("net.source", "its source address is kept") as seen:
        for source in nodes:
            for target in nodes:
                told = wget(source, f"http://{address[target]}:8080/cgi-bin/whoami").replace("::ffff:", "")
                expect(own[source] in told, f"{source.name} to {target.name}: the server saw {told}, expected {own[source]}")
                told = wget(source, f"http://{address[target]}/cgi-bin/whoami").replace("::ffff:", "")
                expect(own[source] in told, f"{source.name} to {target.name}, by the service's port: the server saw {told}, expected {own[source]}")
    with t.check("net.service-port", "port: 80, targetPort: 8080: the name answers on 80, and the pod on 8080, from containers of any node") as seen:
        for source in nodes:
            for url in (
                "http://shop/",
                f"http://shop.{ns}/",
                f"http://shop.{ns}.svc.cluster.local:80/",
                "http://shop:8080/",
                f"http://{address[nodes[2]]}:80/",
            ):
                equal(wget(source, url), "hello", f"{url} from {source.name}")
        equal(http_request(one.namespace, address[nodes[2]], 80, "GET", "/").text.strip(), "hello", "from the node itself")
        equal(http_request(one.namespace, address[one], 80, "GET", "/").text.strip(), "hello", "from the node to its own pod")
        own_way = one.exec(one.container(ns, "server1"), "/bin/busybox wget -q -O - http://shop/ 2>&1")
        equal(own_way.out.strip(), "hello", "from a pod of the service itself")
    with t.check("net.declared", "a pod that listens on the service's port itself keeps it (documented)") as seen:
        ip = pods["both"]["status"]["podIP"]
        told = wget(one, f"http://{ip}:80/passwd")
        expect("root" in told, f"port 80 of the pod answered {told}")
        equal(wget(one, f"http://{ip}:8080/"), "hello", "8080")
    with t.check("dns.container", "names resolve in every container: short, with namespace, both long forms, and NXDOMAIN else") as seen:
        for source in nodes:
            for name in ("shop", f"shop.{ns}", f"shop.{ns}.svc", f"shop.{ns}.svc.cluster.local", f"shop.{ns}.cluster.local"):
                done = source.exec(clients[source], f"/bin/busybox ping -c 1 -W 1 {name} 2>&1 || true")
                expect(any(f"({ip})" in done.out for ip in address.values()), f"{name} from {source.name}: {brief(done.out, 200)}")
        done = one.exec(clients[one], "/bin/busybox nslookup nowhere.svc.cluster.local 2>&1 || true")
        expect("NXDOMAIN" in done.out, brief(done.out))
    with t.check("dns.gateway", "the DNS answers at the pod network's gateway, by UDP and TCP") as seen:
        for node in nodes:
            text = node.exec(clients[node], "cat /etc/resolv.conf").out
            gateway = re.search(r"(?m)^nameserver (\S+)$", text)[1]
            for tcp in (False, True):
                found = node.dns(f"shop.{ns}.svc.cluster.local", server=gateway, tcp=tcp).addresses()
                equal(found, sorted(address.values()), f"at {gateway} of {node.name}")
            seen(gateway)


@scenario(
    "dns.a",
    "dns.short",
    "dns.srv",
    "dns.srv.plain",
    "dns.where",
    "dns.negative",
    "dns.ready",
    "dns.ttl",
    "dns.forward",
    "dns.whitelist",
    "dns.whitelist.cname",
    "dns.whitelist.api",
    "dns.whitelist.tcp",
    "dns.fast",
)
def names(t):
    nodes = t.cluster()
    one, two, three = nodes
    ns = t.namespace()
    probe = {"readinessProbe": {"exec": {"command": ["/bin/busybox", "test", "-e", "/tmp/ready"]}, "periodSeconds": 1}}
    one.apply(
        deployment(ns, "web", 3),
        service(ns, "web"),
        pod(ns, "shy", shell("trap 'exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait $!; done", **probe), labels={"app": "shy"}),
        service(ns, "shy", port=80, target=8080),
        service(ns, "nobody"),
    )
    pods = t.wait_pods(ns, 3, "app=web")
    addresses = sorted(p["status"]["podIP"] for p in pods)
    long, short = f"web.{ns}.svc.cluster.local", f"web.{ns}.cluster.local"
    with t.check("dns.a", "<service>.<namespace>.svc.cluster.local: A, the ready pods' addresses, on every node") as seen:
        for node in nodes:
            wait_for(f"three on {node.name}", lambda node=node: node.dns(long).addresses() == addresses, 5)
        equal(one.dns(long.upper()).addresses(), addresses, "in capitals")
        seen(addresses)
    with t.check("dns.short", "<service>.<namespace>.cluster.local too") as seen:
        for node in nodes:
            equal(node.dns(short).addresses(), addresses, node.name)
    with t.check("dns.srv", "SRV of a named port: the target port, targets that resolve") as seen:
        for name in (f"_http._tcp.{long}", f"_http._tcp.{short}"):
            answer = one.dns(name, "SRV")
            found = [r.data for r in answer.records if r.type == "SRV"]
            equal(sorted(d[2] for d in found), [8080] * 3, f"ports of {name}: {answer}")
            equal(sorted(a for d in found for a in one.dns(d[3]).addresses()), addresses, "addresses of the targets")
        seen(found)
    with t.check("dns.srv.plain", "SRV at the plain name of the service") as seen:
        answer = one.dns(long, "SRV")
        found = [r.data for r in answer.records if r.type == "SRV"]
        equal(sorted(d[2] for d in found), [8080] * 3, f"{answer}")
        equal(sorted(d[2] for r in one.dns(short, "SRV").records for d in [r.data] if r.type == "SRV"), [8080] * 3, "short form")
    with t.check("dns.where", "at the node's own address (from the LAN) and at loopback, by UDP and TCP") as seen:
        for node in nodes:
            for namespace, server in ((LAN, node.ip), (node.namespace, "127.0.0.1"), (node.namespace, node.ip)):
                for tcp in (False, True):
                    equal(dns(namespace, server, long, tcp=tcp).addresses(), addresses, f"{server} of {node.name}{' by TCP' if tcp else ''}")
    with t.check("dns.negative", "NXDOMAIN and NODATA are told apart; names of the cluster never go to the upstreams") as seen:
        before = len(t.upstream.asked)
        equal(one.dns(f"nowhere.{ns}.svc.cluster.local").rcode, "NXDOMAIN", "no such service")
        answer = one.dns(long, "AAAA")
        equal((answer.rcode, answer.records), ("NOERROR", []), "AAAA of an IPv4 service")
        answer = one.dns(f"nobody.{ns}.svc.cluster.local")
        equal((answer.rcode, answer.addresses()), ("NOERROR", []), "a service without pods")
        asked = [name for name in t.upstream.asked[before:] if "cluster.local" in name]
        equal(asked, [], "asked of the upstream")
    with t.check("dns.ready", "only ready pods are named; one that becomes ready is, everywhere") as seen:
        name = f"shy.{ns}.svc.cluster.local"
        node, container = t.find_container(ns, "shy")
        for n in nodes:
            equal(n.dns(name).addresses(), [], f"a pod that is not ready, on {n.name}")
        node.exec(container, "touch /tmp/ready")
        begun = time.monotonic()
        for n in nodes:
            wait_for(f"it is named on {n.name}", lambda n=n: len(n.dns(name).addresses()) == 1, 5)
        seen(f"named everywhere {time.monotonic() - begun:.2f} s after its file was there (probed each second)")
        node.exec(container, "rm /tmp/ready")
        for n in nodes:
            wait_for(f"it is named no more on {n.name}", lambda n=n: n.dns(name).addresses() == [], 8)
    with t.check("dns.ttl", "the TTL is 5 s by default") as seen:
        equal({r.ttl for r in one.dns(long).records}, {5}, "TTL")
    with t.check("dns.fast", "a change of endpoints is in every node's DNS within a second of being Ready") as seen:
        one.scale(ns, "web", 4)
        t.wait_pods(ns, 4, "app=web")
        begun = time.monotonic()
        for node in nodes:
            wait_for(f"four on {node.name}", lambda node=node: len(node.dns(long).addresses()) == 4, 5, 0.01)
        seen(f"{(time.monotonic() - begun) * 1000:.0f} ms")
        expect(time.monotonic() - begun < 1, "took over a second")
    path = "/api/v1/dns/whitelist"

    def asked(node, name, rcode, data=None, **rest):
        answer = node.dns(name, **rest)
        equal((answer.rcode, answer.addresses()), (rcode, [data] if data else []), f"{name} on {node.name}")

    one.request("PUT", path, {"enabled": False, "hosts": []})
    with t.check("dns.forward", "other names are asked of the upstreams, by UDP and TCP, and cached") as seen:
        wait_for("forwarding on every node", lambda: all(n.dns("allowed.net").addresses() == ["192.0.2.1"] for n in nodes), 5)
        for node in nodes:
            asked(node, "forbidden.net", "NOERROR", "192.0.2.3")
            asked(node, "alias.allowed.net", "NOERROR", "192.0.2.5", tcp=True)
            asked(node, f"{secrets.token_hex(4)}.invalid-name.net", "NXDOMAIN")
        before = t.upstream.asked.count("sub.allowed.net")
        for _ in range(5):
            asked(one, "sub.allowed.net", "NOERROR", "192.0.2.2")
        expect(t.upstream.asked.count("sub.allowed.net") - before <= 1, "answers are not cached")
    with t.check("dns.whitelist", "with the whitelist on: its names and their subdomains, anything else REFUSED, on every node") as seen:
        answer = two.request("PUT", path, {"enabled": True, "hosts": ["allowed.net"]})
        equal(answer.status, 200, answer.text)
        begun = time.monotonic()
        wait_for("refused everywhere", lambda: all(n.dns("forbidden.net").rcode == "REFUSED" for n in nodes), 5)
        seen(f"on every node after {(time.monotonic() - begun) * 1000:.0f} ms")
        for node in nodes:
            asked(node, "allowed.net", "NOERROR", "192.0.2.1")
            asked(node, "sub.allowed.net", "NOERROR", "192.0.2.2")
            asked(node, "ALLOWED.net", "NOERROR", "192.0.2.1")
            asked(node, "evilallowed.net", "REFUSED")
            asked(node, "net", "REFUSED")
            asked(node, "allowed.net.evil.org", "REFUSED")
            equal(len(node.dns(long).addresses()), 4, "names of the cluster")
    with t.check("dns.whitelist.tcp", "the same by TCP and at the node's own address") as seen:
        for server in ("127.0.0.1", one.ip):
            asked(one, "forbidden.net", "REFUSED", server=server, tcp=True)
            asked(one, "allowed.net", "NOERROR", "192.0.2.1", server=server, tcp=True)
    with t.check("dns.whitelist.cname", "every CNAME target is checked") as seen:
        for node in nodes:
            asked(node, "alias.allowed.net", "REFUSED")
        answer = one.dns("inner.allowed.net")
        equal((answer.rcode, answer.addresses()), ("NOERROR", ["192.0.2.2"]), "a CNAME within the whitelist")
        equal(three.request("POST", path + "/hosts", {"host": "other.org"}).status, 200, "POST hosts")
        wait_for("the alias resolves everywhere", lambda: all(n.dns("alias.allowed.net").addresses() == ["192.0.2.5"] for n in nodes), 5)
    with t.check("dns.whitelist.api", "GET, PUT, POST hosts, DELETE hosts/:host") as seen:
        body = one.read(path)
        equal((body.get("enabled"), sorted(body.get("hosts", []))), (True, ["allowed.net", "other.org"]), f"GET: {body}")
        equal(sorted(body), ["enabled", "hosts"], "keys")
        equal(one.request("DELETE", path + "/hosts/other.org").status, 200, "DELETE")
        wait_for(
            "gone everywhere",
            lambda: all(n.dns("alias.allowed.net").rcode == "REFUSED" and n.read(path)["hosts"] == ["allowed.net"] for n in nodes),
            5,
        )
        status_object(one.request("DELETE", path + "/hosts/other.org"), 404, "DELETE again")
        answer = one.request("POST", path + "/hosts", {"host": "not a host!"})
        expect(answer.status in (400, 422) and "not a host!" in answer.text, f"a bad host: {answer.status} {brief(answer.text, 200)}")
        equal(one.request("PUT", path, {"enabled": False, "hosts": []}).status, 200, "PUT")
        wait_for("all resolves again", lambda: all(n.dns("forbidden.net").addresses() == ["192.0.2.3"] for n in nodes), 5)


# =========================================================================================== ingress


@scenario(
    "ingress.node",
    "ingress.exact",
    "ingress.prefix",
    "ingress.implementation",
    "ingress.hosts",
    "ingress.404",
    "ingress.503",
    "ingress.round",
    "ingress.local",
    "ingress.passes",
    "ingress.deleted",
)
def http_from_outside(t):
    nodes = t.cluster()
    one, two, three = nodes
    ns = t.namespace()
    own = lambda name: [hello_container(version=name)]
    one.apply(
        *[deployment(ns, n, 1, containers=own(n)) for n in ("exact", "shop", "cart", "impl", "root", "any")],
        *[service(ns, n) for n in ("exact", "shop", "cart", "impl", "root", "any")],
        service(ns, "empty"),
        deployment(ns, "many", 3, containers=own("many")),
        service(ns, "many"),
        deployment(ns, "pair", 2, containers=own("pair"), nodeSelector={"kubernetes.io/hostname": "node1"}),
        service(ns, "pair"),
        ingress(
            ns,
            "paths",
            ("a.test", "/exact", "Exact", "exact", 80),
            ("a.test", "/shop", "Prefix", "shop", "http"),
            ("a.test", "/shop/cart/", "Prefix", "cart", 80),
            ("a.test", "/impl", "ImplementationSpecific", "impl", 80),
            ("a.test", "/empty", "Prefix", "empty", 80),
            ("a.test", "/none", "Prefix", "nowhere", 80),
            ("a.test", "/port", "Prefix", "shop", 81),
            ("root.test", "/", "Prefix", "root", 80),
            ("many.test", "/", "Prefix", "many", 80),
            ("pair.test", "/", "Prefix", "pair", 80),
            ("*.wild.test", "/", "Prefix", "root", 80),
            (None, "/any", "Prefix", "any", 80),
        ),
    )
    t.wait_pods(ns, 11)
    for node in nodes:
        wait_for(f"{node.name} routes", lambda node=node: node.ingress("root.test").status == 200 and node.ingress("pair.test").status == 200, 10)

    def who(node, host, path="/", **rest):
        answer = node.ingress(host, path, **rest)
        if answer.status != 200:
            return answer.status
        found = re.search(r"version (\S+?)[.,\s]*$", answer.text.strip()) or re.search(r"version (\S+)", answer.text)
        return found[1].strip(".,") if found else answer.text

    def table(ident, title, rows, host="a.test"):
        with t.check(ident, title) as seen:
            for node in nodes:
                for path, wanted in rows:
                    equal(who(node, host, path), wanted, f"{host}{path} at {node.name}")
            seen(rows)

    with t.check("ingress.node", "an ingress answers on every node") as seen:
        for node in nodes:
            answer = node.ingress("root.test")
            equal(answer.status, 200, node.name)
        seen(answer.text)
    table(
        "ingress.exact",
        "Exact: the path itself and no other",
        [("/exact", "exact"), ("/exact?q=1", "exact"), ("/exact/", 404), ("/exact/x", 404), ("/Exact", 404)],
    )
    table(
        "ingress.prefix",
        "Prefix by element; the longest wins",
        [
            ("/shop", "shop"),
            ("/shop/", "shop"),
            ("/shop/x/y", "shop"),
            ("/shopping", 404),
            ("/shop/cart", "cart"),
            ("/shop/cart/1", "cart"),
            ("/shop/carts", "shop"),
            ("/sho", 404),
            ("/shop?x=/y", "shop"),
        ],
    )
    table("ingress.implementation", "ImplementationSpecific as Prefix", [("/impl", "impl"), ("/impl/x", "impl"), ("/implx", 404)])
    with t.check("ingress.hosts", "host rules: exact, with a port, in capitals, wildcard for one label; rules without a host") as seen:
        for host, path, wanted in (
            ("root.test", "/x", "root"),
            ("root.test:80", "/", "root"),
            ("ROOT.test", "/", "root"),
            ("x.wild.test", "/", "root"),
            ("wild.test", "/", 404),
            ("x.y.wild.test", "/", 404),
            ("elsewhere.test", "/any", "any"),
            ("elsewhere.test", "/any/x", "any"),
            ("elsewhere.test", "/", 404),
            ("10.231.0.1", "/any", "any"),
        ):
            equal(who(two, host, path), wanted, f"{host}{path}")
    with t.check("ingress.404", "404: no rule for host and path") as seen:
        for host, path in (("unknown.test", "/"), ("a.test", "/"), ("a.test", "/nothing")):
            for node in nodes:
                equal(node.ingress(host, path).status, 404, f"{host}{path} at {node.name}")
        seen(node.ingress("a.test", "/nothing").text)
    with t.check("ingress.503", "503: a rule, but no service, no such port, or no ready pod") as seen:
        for path in ("/empty", "/none", "/port"):
            for node in nodes:
                answer = node.ingress("a.test", path)
                equal(answer.status, 503, f"a.test{path} at {node.name}")
            seen(answer.text)
    with t.check("ingress.round", "round robin over ready endpoints (two on another node: equal shares)") as seen:
        pods = [re.search(r"pod (\S+)", three.ingress("pair.test").text)[1] for _ in range(30)]
        shares = sorted(pods.count(p) for p in set(pods))
        seen(shares)
        equal(shares, [15, 15], "shares of 30 requests")
        expect(all(a != b for a, b in zip(pods, pods[1:])), f"not in turn: {pods}")
    with t.check("ingress.local", "local endpoints are preferred") as seen:
        for node in nodes:
            names_of_nodes = {re.search(r"node (\S+?)[,.]?\s", node.ingress("many.test").text)[1] for _ in range(12)}
            equal(names_of_nodes, {node.name}, f"asked at {node.name}")
    with t.check("ingress.passes", "methods, bodies and headers pass; the client's address is in X-Forwarded-For") as seen:
        script = (
            '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"; echo "$REQUEST_METHOD $REQUEST_URI $HTTP_X_FORWARDED_FOR $HTTP_X_MINE"; cat\n'
        )
        packed = base64.b64encode(script.encode()).decode()
        one.apply(
            pod(
                ns,
                "echo",
                shell(
                    f"mkdir -p /tmp/w/cgi-bin; echo {packed} | base64 -d > /tmp/w/cgi-bin/e; chmod +x /tmp/w/cgi-bin/e; "
                    "exec /bin/busybox httpd -f -p 8080 -h /tmp/w",
                    "web",
                    ports=[{"name": "http", "containerPort": 8080}],
                ),
                labels={"app": "echo"},
            ),
            service(ns, "echo"),
            ingress(ns, "echo", ("echo.test", "/", "Prefix", "echo", 80)),
        )
        wait_for("echo answers", lambda: two.ingress("echo.test", "/cgi-bin/e").status == 200, 20)
        answer = two.ingress("echo.test", "/cgi-bin/e?a=b", method="POST", body=b"the body", headers={"X-Mine": "mine", "X-Forwarded-For": "6.6.6.6"})
        seen(answer.text)
        expect(
            answer.status == 200
            and answer.text.startswith("POST /cgi-bin/e?a=b")
            and answer.text.rstrip().endswith("the body")
            and "mine" in answer.text,
            answer.text,
        )
        expect(DESK in answer.text and "6.6.6.6" not in answer.text, f"X-Forwarded-For: {answer.text}")
    with t.check("ingress.deleted", "a deleted Ingress answers 404 everywhere within a second; a scale to 0 answers 503") as seen:
        one.scale(ns, "root", 0)
        for node in nodes:
            wait_for(f"503 at {node.name}", lambda node=node: node.ingress("root.test").status == 503, 10)
        one.delete("Ingress", ns, "echo")
        begun = time.monotonic()
        for node in nodes:
            wait_for(f"404 at {node.name}", lambda node=node: node.ingress("echo.test").status == 404, 5, 0.01)
        seen(f"{(time.monotonic() - begun) * 1000:.0f} ms")
        expect(time.monotonic() - begun < 1, "took over a second")


# =========================================================================================== story 4: scale, change, delete


def rollout_done(item):
    status, wanted = item.get("status", {}), item["spec"].get("replicas", 1)
    return (
        status.get("observedGeneration", 0) >= item["metadata"].get("generation", 0)
        and status.get("updatedReplicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
        and status.get("replicas", 0) == wanted
    )


def fewest_running(nodes, ns, name, since):
    """The least number of containers of a workload that ran at once since a time, from the times in Podman's own events."""
    now = sum(1 for node in nodes for c in node.containers(ns, running=True) if c["Labels"]["podman-swarm.pod-name"].startswith(name + "-"))
    changes = []
    for node in nodes:
        filters = urllib.parse.quote(json.dumps({"type": ["container"]}))
        for line in node.podman_text(f"/events?stream=false&since={int(since)}&filters={filters}").splitlines():
            event = json.loads(line)
            attributes = event["Actor"]["Attributes"]
            if (
                event["Action"] in ("start", "died")
                and event["timeNano"] / 1e9 >= since
                and attributes.get("podman-swarm.pod-namespace") == ns
                and attributes.get("podman-swarm.pod-name", "").startswith(name + "-")
            ):
                changes.append((event["timeNano"], 1 if event["Action"] == "start" else -1))
    expect(changes, "Podman told of no events")
    running = fewest = now - sum(change for _, change in changes)  # as it was at the beginning
    for _, change in sorted(changes):
        running += change
        fewest = min(fewest, running)
    return fewest


def rolling(t, nodes, ns, name, replicas, change, surge, unavailable):
    """Makes a change while sampling; judges by the bounds what Podman had, and notes for `4.views` what nodes showed beyond them."""

    def view(node):
        def probe():
            pods = [p for p in node.pods(ns, f"app={name}")]
            return sum(is_ready(p) and not is_going(p) for p in pods), sum(not is_going(p) for p in pods)

        return probe

    before = {name_of(p) for p in nodes[0].pods(ns, f"app={name}")}
    with contextlib.ExitStack() as stack:
        views = {node.name: stack.enter_context(Sampler(view(node))) for node in nodes}
        begun, since = time.monotonic(), time.time()
        change()

        def finished():
            return rollout_done(nodes[0].object("Deployment", ns, name)) and not before & {name_of(p) for p in nodes[0].pods(ns, f"app={name}")}

        wait_for("the rollout is done", finished, 90)
        seconds = time.monotonic() - begun
    lines = []
    for who, sampler in views.items():
        values = sampler.values()
        lowest, highest = min(v[0] for v in values), max(v[1] for v in values)
        lines.append(f"{who}: ready ≥ {lowest}, pods ≤ {highest} in {len(values)} samples")
        expect(not sampler.errors(), f"{who}: {sampler.errors()[:2]}")
    lowest = fewest_running(nodes, ns, name, since)
    told = f"{seconds:.1f} s; " + "; ".join(lines) + f"; running containers ≥ {lowest}"
    beyond = [
        f"{name} {surge}/{unavailable}: {who} showed {ready} ready of {pods}"
        for who, sampler in views.items()
        for ready, pods in sampler.values()
        if ready < replicas - unavailable or pods > replicas + surge
    ]
    t.beyond += beyond
    t.views += sum(len(sampler.samples) for sampler in views.values())
    for sampler in views.values():  # more pods than allowed is no matter of the view: they are in the store
        expect(max(pods for _, pods in sampler.values()) <= replicas + surge, f"more than {replicas + surge} pods: {told}")
    expect(lowest >= replicas - unavailable, f"only {lowest} containers ran: {told}")
    return told


@scenario(
    "4.scale", "4.image", "4.env", "4.bounds", "4.bounds.surge", "4.views", "4.recreate", "4.traffic", "4.bad-image", "4.delete", "4.delete.namespace"
)
def scale_change_delete(t):
    nodes = t.cluster(quiet=True)
    one, two, three = nodes
    ns = t.namespace()
    t.beyond, t.views = [], 0
    strategy = lambda surge, unavailable: {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    with t.check("4.scale", "replicas 3, 10, 2: containers follow, spread over the nodes") as seen:
        one.apply(deployment(ns, "web", 3), service(ns, "web"), ingress(ns, "web", ("web.test", "/", "Prefix", "web", 80)))
        t.wait_pods(ns, 3)
        for replicas in (10, 2):
            begun = time.monotonic()
            two.scale(ns, "web", replicas)
            t.wait_pods(ns, replicas)
            wait_for(f"{replicas} containers", lambda: sum(len(n.containers(ns)) for n in nodes) == replicas, 15)
            wait_for(f"{replicas} endpoints in DNS", lambda: all(len(n.dns(f"web.{ns}.svc.cluster.local").addresses()) == replicas for n in nodes), 5)
            counts = [len(n.containers(ns)) for n in nodes]
            seen(f"{replicas}: {counts} after {time.monotonic() - begun:.2f} s")
            expect(max(counts) - min(counts) <= 1, f"uneven: {counts}")
            equal(one.object("Deployment", ns, "web")["status"].get("readyReplicas"), replicas, "readyReplicas")
    with t.check("4.image", "a new image replaces the pods a few at a time, within the defaults (25 % of 10: surge 3, unavailable 2)") as seen:
        one.scale(ns, "web", 10)
        t.wait_pods(ns, 10)

        def change():
            one.apply(deployment(ns, "web", 10, containers=[hello_container(HELLO2)]))

        told = rolling(t, nodes, ns, "web", 10, change, 3, 2)
        t.measure("resident memory of an agent after a rolling update of 10", f"{max(node.memory() for node in nodes) / 1024:.0f} MB")
        seen(told)
        t.measure("rolling update of 10, defaults", told.split(";")[0])
        equal({c["image"] for p in one.pods(ns) for c in p["spec"]["containers"]}, {HELLO2}, "images")
    with t.check("4.env", "a new env value replaces them likewise; old values are answered no more when it is done") as seen:

        def change():
            two.apply(deployment(ns, "web", 10, containers=[hello_container(HELLO2, version="2")]))

        seen(rolling(t, nodes, ns, "web", 10, change, 3, 2))
        for node in nodes:
            for _ in range(6):
                expect("version 2" in node.ingress("web.test").text, f"{node.name}: {node.ingress('web.test').text}")
    with t.check("4.bounds", "maxSurge 0, maxUnavailable 1") as seen:

        def change():
            three.apply(deployment(ns, "web", 4, containers=[hello_container(version="3")], strategy=strategy(0, 1)))

        one.apply(deployment(ns, "web", 4, containers=[hello_container(HELLO2, version="2")], strategy=strategy(0, 1)))
        t.wait_pods(ns, 4)
        seen(rolling(t, nodes, ns, "web", 4, change, 0, 1))
    with t.check("4.bounds.surge", "maxSurge 1, maxUnavailable 0") as seen:
        ready = {"readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}
        one.apply(deployment(ns, "web", 4, containers=[hello_container(version="3")], strategy=strategy(1, 0)))
        wait_for(
            "the strategy everywhere",
            lambda: all(n.object("Deployment", ns, "web")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0 for n in nodes),
            5,
        )

        def change():
            one.apply(deployment(ns, "web", 4, containers=[hello_container(version="4") | ready], strategy=strategy(1, 0)))

        seen(rolling(t, nodes, ns, "web", 4, change, 1, 0))
    with t.check("4.views", "no node's API ever showed fewer ready or more pods than the bounds") as seen:
        seen(f"{len(t.beyond)} of {t.views} samples: {t.beyond[:5]}")
        expect(not t.beyond, "beyond the bounds")
    with t.check("4.traffic", "requests through each node's ingress during a rolling update (surge 1, unavailable 0) all answer") as seen:
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(Sampler(lambda node=node: node.ingress("web.test").status, 0.02)) for node in nodes]
            old = {name_of(p) for p in one.pods(ns)}
            one.apply(deployment(ns, "web", 4, containers=[hello_container(version="5")], strategy=strategy(1, 0)))
            wait_for("done", lambda: rollout_done(one.object("Deployment", ns, "web")) and not old & {name_of(p) for p in one.pods(ns)}, 60)
        total = sum(len(p.samples) for p in probes)
        bad = [(node.name, value) for node, p in zip(nodes, probes) for _, _, value in p.samples if value != 200]
        seen(f"{total} requests, {len(bad)} not answered with 200: {bad[:5]}")
        expect(not bad, f"{len(bad)} of {total} requests failed: {bad[:5]}")
    with t.check("4.bad-image", "an update to an image that cannot be had keeps the old pods within maxUnavailable, and says so") as seen:
        one.apply(
            deployment(
                ns, "web", 4, containers=[hello_container("localhost/nowhere:9", version="6") | {"imagePullPolicy": "Never"}], strategy=strategy(1, 1)
            )
        )
        wait_for(
            "a new pod that waits",
            lambda: any(container_state(p)["state"].get("waiting", {}).get("reason") == "ErrImageNeverPull" for p in one.pods(ns)),
            20,
        )
        with Sampler(lambda: sum(is_ready(p) and not is_going(p) for p in two.pods(ns))) as sampler:
            wait_for("40 samples", lambda: len(sampler.samples) > 40, 20)
        seen(f"ready ≥ {min(sampler.values())}")
        expect(min(sampler.values()) >= 3, f"ready fell to {min(sampler.values())}")
        one.apply(deployment(ns, "web", 4, containers=[hello_container(version="5")], strategy=strategy(1, 1)))
        t.wait_pods(ns, 4, seconds=30)
    with t.check("4.recreate", "strategy Recreate: all old ones go first") as seen:
        one.apply(deployment(ns, "re", 3, strategy={"type": "Recreate"}))
        t.wait_pods(ns, 3, "app=re")

        def templates():
            return {p["metadata"]["labels"].get("pod-template-hash") for p in one.pods(ns, "app=re") if not is_going(p)}

        with Sampler(templates) as sampler:
            one.apply(deployment(ns, "re", 3, containers=[hello_container(version="2")], strategy={"type": "Recreate"}))
            wait_for(
                "done",
                lambda: rollout_done(one.object("Deployment", ns, "re"))
                and len(one.pods(ns, "app=re")) == 3
                and all(p["spec"]["containers"][0]["env"][0]["value"] == "2" for p in one.pods(ns, "app=re")),
                40,
            )
        expect(all(len(value) <= 1 for value in sampler.values()), f"old and new at once: {[v for v in sampler.values() if len(v) > 1][:3]}")
        one.delete("Deployment", ns, "re")
    with t.check("4.delete", "deleting removes containers, records and routes") as seen:
        begun = time.monotonic()
        equal(one.request("DELETE", f"/api/v1/manifests/{ns}/web").status, 200, "DELETE")
        wait_for("containers gone", lambda: not any(n.containers(ns) for n in nodes), 20)
        t.measure("delete of 4 pods until no container is left", f"{time.monotonic() - begun:.2f} s")
        for node in nodes:
            wait_for("NXDOMAIN", lambda node=node: node.dns(f"web.{ns}.svc.cluster.local").rcode == "NXDOMAIN", 5)
            wait_for("404", lambda node=node: node.ingress("web.test").status == 404, 5)
        wait_for("no pods, no ReplicaSets", lambda: not one.pods(ns) and not one.items("ReplicaSet", ns), 10)
        seen(f"{time.monotonic() - begun:.2f} s")
    with t.check("4.delete.namespace", "deleting a Namespace removes all that is in it") as seen:
        other = t.namespace()
        one.apply(
            deployment(other, "web", 2), service(other, "web"), ingress(other, "web", ("gone.test", "/", "Prefix", "web", 80)), pod(other, "alone")
        )
        t.wait_pods(other, 3)
        equal(two.request("DELETE", f"/api/v1/manifests/{other}?kind=Namespace").status, 200, "DELETE")
        wait_for(
            "all gone",
            lambda: not any(n.containers(other) for n in nodes)
            and one.find("Namespace", None, other) is None
            and not any(one.items(kind, other) for kind in ("Pod", "Deployment", "Service", "Ingress")),
            30,
        )


@scenario("4.owner")
def an_agent_dies_amid_a_rollout(t):
    nodes = t.cluster(quiet=True)
    ns = t.namespace()
    bounds = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    nodes[0].apply(deployment(ns, "web", 9, strategy=bounds))
    t.wait_pods(ns, 9)
    with t.check("4.owner", "kill -9 of each agent in turn amid a rolling update: the bounds hold, and it ends") as seen:
        for number, victim in enumerate(nodes):
            ask = nodes[(number + 1) % 3]
            version = str(number + 2)

            def new(ready=True):
                return [p for p in ask.pods(ns) if p["spec"]["containers"][0]["env"][0]["value"] == version and (is_ready(p) or not ready)]

            since = time.time()
            ask.apply(deployment(ns, "web", 9, containers=[hello_container(version=version)], strategy=bounds))
            wait_for("it has begun", lambda: len(new()) >= 2, 20)
            victim.kill()
            begun = time.monotonic()
            wait_for("two seconds", lambda: time.monotonic() - begun > 2, 4)
            t.start_node(victim)
            victim.wait_healthy()
            wait_for("nine new pods, ready, and no others", lambda: len(new()) == 9 == len(ask.pods(ns)), 60)
            lowest = fewest_running(nodes, ns, "web", since)
            seen(f"{victim.name} killed: ended {time.monotonic() - begun:.1f} s later, containers ≥ {lowest}")
            expect(lowest >= 8, f"only {lowest} containers ran when {victim.name}'s agent was killed")


# =========================================================================================== story 5: kill things


def fingerprints(nodes, ns):
    """Each container with the start of its process: equal before and after means nothing was restarted or moved."""
    return {
        c["Id"]: (node.name, c["Labels"]["podman-swarm.pod-name"], c["Pid"], c["StartedAt"])
        for node in nodes
        for c in node.containers(ns, running=True)
    }


@scenario("5.container.kill", "5.container.rm")
def containers_killed(t):
    nodes = t.cluster()
    ns = t.namespace()
    nodes[0].apply(deployment(ns, "web", 3), service(ns, "web"))
    t.wait_pods(ns, 3)
    for ident, words, how in (("5.container.kill", "killed", ("kill", "-s", "KILL")), ("5.container.rm", "removed", ("rm", "-f", "-t", "0"))):
        with t.check(ident, f"a container {words} behind our back comes back") as seen:
            node = nodes[1] if words == "killed" else nodes[2]  # a second restart of the same would be held back
            victim = node.containers(ns, running=True)[0]
            name = victim["Labels"]["podman-swarm.pod-name"]
            begun = time.monotonic()
            equal(node.run("podman", *how, victim["Id"]).code, 0, "podman")

            def back():
                found = node.containers(ns, running=True)
                return found and found[0]["Pid"] != victim["Pid"] and found[0]

            wait_for("it runs again", back, 15)
            took = time.monotonic() - begun
            seen(f"runs after {took:.2f} s")
            t.measure(f"container {words} → runs again", f"{took:.2f} s")
            pods = t.wait_pods(ns, 3, seconds=20)
            equal(sum(1 for p in pods if name_of(p) == name), 1, f"the pod {name} itself")
            restarts = next(container_state(p)["restartCount"] for p in pods if name_of(p) == name)
            seen(f"restartCount {restarts}")
            wait_for("three endpoints everywhere", lambda: all(len(n.dns(f"web.{ns}.svc.cluster.local").addresses()) == 3 for n in nodes), 5)


@scenario(
    "5.restart.adopts", "5.restart.flap", "5.restart.serves", "5.restart.itself", "5.restart.acknowledged", "5.stop", "5.stop.busy", "5.stop.cluster"
)
def agents_killed_and_stopped(t):
    nodes = t.cluster(quiet=True)
    one, two, three = nodes
    ns = t.namespace()
    one.apply(deployment(ns, "web", 6), service(ns, "web"), ingress(ns, "web", ("web.test", "/", "Prefix", "web", 80)))
    pods = t.wait_pods(ns, 6)
    addresses = sorted(p["status"]["podIP"] for p in pods)
    name = f"web.{ns}.svc.cluster.local"
    wait_for("six names everywhere", lambda: all(n.dns(name).addresses() == addresses for n in nodes), 5)
    before = fingerprints(nodes, ns)
    whole = {(e["podName"], e["healthy"]) for e in one.endpoints(ns, "web")}
    others = (one, three)

    def own_answers():
        """What the restarted node itself says: an error until it knows, then all."""
        answer = two.dns(name, timeout=1)
        return answer.rcode, answer.addresses()

    def known_down():
        return not is_ready(one.object("Node", None, "node2"))

    with contextlib.ExitStack() as stack:
        dns_seen = [stack.enter_context(Sampler(lambda n=n: n.dns(name).addresses(), 0.05)) for n in others]
        end_seen = [stack.enter_context(Sampler(lambda n=n: {(e["podName"], e["healthy"]) for e in n.endpoints(ns, "web")}, 0.05)) for n in others]
        http_seen = [stack.enter_context(Sampler(lambda n=n: n.ingress("web.test").status, 0.05)) for n in others]
        own_seen = stack.enter_context(Sampler(own_answers, 0.02))
        pods_seen = stack.enter_context(Sampler(lambda: len(one.pods(ns)), 0.05))
        two.kill()
        killed = time.monotonic()
        wait_for("the others see that node2's agent is away", known_down, 20)
        noticed = time.monotonic() - killed
        wait_for("twelve seconds of that", lambda: time.monotonic() - killed > 12, 20)  # well inside --restart-grace
        direct = http_request(one.namespace, next(p for p in pods if p["spec"]["nodeName"] == "node2")["status"]["podIP"], 8080, "GET", "/").status
        begun = time.monotonic()
        t.start_node(two)
        two.wait_healthy()
        ready_again = time.monotonic() - begun
        wait_for("three Ready nodes", lambda: len(one.ready_nodes()) == 3 and len(two.ready_nodes()) == 3, 15)
        wait_for("six ready pods seen by node2", lambda: two.dns(name).addresses() == addresses, 10)
        settled = time.monotonic()
        wait_for("three seconds more", lambda: time.monotonic() - settled > 3, 5)
    with t.check("5.restart.adopts", "kill -9 and a start without --join within the grace: containers adopted, none restarted, none moved") as seen:
        after = fingerprints(nodes, ns)
        equal(after, before, "containers")
        expect(not any("--join" in flag for flag in two.flags), f"{two.flags}")
        equal({container_state(p)["restartCount"] for p in two.pods(ns)}, {0}, "restartCounts")
        seen(f"noticed after {noticed:.1f} s, healthy {ready_again:.2f} s after the start; {len(after)} containers the same")
        t.measure("kill -9 noticed by the others", f"{noticed:.1f} s")
        t.measure("agent start to healthy, three nodes", f"{ready_again:.2f} s")
        equal(set(pods_seen.values()), {6}, "numbers of pods meanwhile")
    with t.check("5.restart.flap", "its endpoints do not flap: DNS and endpoints of the others never change") as seen:
        for sampler in dns_seen:
            equal({tuple(v) for v in sampler.values()}, {tuple(addresses)}, "DNS answers")
            expect(not sampler.errors(), sampler.errors()[:2])
        for sampler in end_seen:
            equal({frozenset(v) for v in sampler.values()}, {frozenset(whole)}, "endpoints")
        seen(f"{sum(len(s.samples) for s in dns_seen + end_seen)} samples")
    with t.check("5.restart.serves", "meanwhile its containers serve, and the others' ingress answers") as seen:
        equal(direct, 200, "a pod of the dead agent, directly")
        for sampler in http_seen:
            bad = [v for _, _, v in sampler.samples if v != 200]
            expect(not bad, f"{len(bad)} of {len(sampler.samples)} requests: {bad[:3]}")
        seen(f"{sum(len(s.samples) for s in http_seen)} requests")
    with t.check("5.restart.itself", "the restarted node's own DNS never answers with a part of the endpoints") as seen:
        answers = {(rcode, tuple(found)) for rcode, found in own_seen.values()}
        seen({rcode: len(found) for rcode, found in answers})
        expect(answers <= {("SERVFAIL", ()), ("NOERROR", tuple(addresses))}, f"{answers}")
    with t.check("5.restart.acknowledged", "nothing that was acknowledged is lost: writes to a cut-off node, kill -9 between them") as seen:
        t.hosts("cut", 3)
        kept = []
        try:
            stop = threading.Event()

            def write():
                number = 0
                while not stop.is_set():
                    number += 1
                    try:
                        if three.apply(service(ns, f"kept-{number}"), status=None).status == 200:
                            kept.append(f"kept-{number}")
                    except (OSError, http.client.HTTPException):
                        return

            writer = threading.Thread(target=write, daemon=True)
            writer.start()
            wait_for("a few writes", lambda: len(kept) >= 40, 30, 0.001)
            three.kill()
            stop.set()
            writer.join()
            t.start_node(three)
            three.wait_healthy()
            there = {name_of(s) for s in three.items("Service", ns)}
            missing = [k for k in kept if k not in there]
            expect(not missing, f"of {len(kept)} acknowledged, {len(missing)} are missing on node3: {missing[:5]}")
            seen(f"{len(kept)} acknowledged, all there after the restart of a node that reaches nobody")
        finally:
            t.hosts("heal")
        for node in others[:1] + (two,):
            wait_for(f"all of them on {node.name}", lambda node=node: set(kept) <= {name_of(s) for s in node.items("Service", ns)}, 15)
        t.wait_pods(ns, 6)
    with t.check("5.stop", "SIGTERM: exit code 0 within 10 s, containers go on, the node stays admitted, nothing moves") as seen:
        t.cluster()
        t.wait_pods(ns, 6)
        before = fingerprints(nodes, ns)
        addresses = sorted(p["status"]["podIP"] for p in one.pods(ns))
        wait_for("all names", lambda: one.dns(name).addresses() == addresses, 5)
        with Sampler(lambda: one.dns(name).addresses(), 0.05) as sampler:
            code, seconds = two.stop()
            equal(code, 0, "exit code")
            expect(seconds < 10, f"{seconds:.1f} s")
            begun = time.monotonic()
            wait_for("the others see it stopped", known_down, 10)
            told = time.monotonic() - begun
            shown = one.psctl("get", "nodes").out
            equal([name_of(n) for n in one.items("Node")], ["node1", "node2", "node3"], "nodes")
            wait_for("eight seconds", lambda: time.monotonic() - begun > 8, 10)
            equal(fingerprints(nodes, ns), before, "containers while it is stopped")
        equal({tuple(v) for v in sampler.values()}, {tuple(addresses)}, "DNS answers of node1")
        for port in (8080, 80, 53, 7946):
            try:
                connect(two.namespace, ("127.0.0.1", port)).close()
                expect(False, f"port {port} is still open")
            except ConnectionError:
                pass
        t.start_node(two)
        two.wait_healthy()
        wait_for("three Ready", lambda: len(one.ready_nodes()) == 3, 15)
        equal(fingerprints(nodes, ns), before, "containers after the start")
        seen(f"exit after {seconds:.2f} s, seen stopped {told:.2f} s later; {brief(shown, 300)}")
        t.measure("SIGTERM to exit, with pods", f"{seconds:.2f} s")
        expect(told < 2, f"the others heard of it only after {told:.1f} s")
    with t.check(
        "5.stop.busy", "SIGTERM with open watches, followed logs, a slow request at the ingress and half a request at the API: still within 10 s"
    ) as seen:
        one.apply(
            pod(
                ns,
                "slow",
                shell("exec /bin/busybox nc -ll -p 8080 -e /bin/busybox sleep 600", "web", ports=[{"name": "http", "containerPort": 8080}]),
                node="node2",
                labels={"app": "slow"},
            ),
            service(ns, "slow"),
            ingress(ns, "slow", ("slow.test", "/", "Prefix", "slow", 80)),
        )
        wait_for("slow ready", lambda: is_ready(one.object("Pod", ns, "slow")), 20)
        head = f"Authorization: Bearer {two.token}\r\nHost: x\r\n"
        socks = []
        for address, text in (
            ((two.ip, 80), "GET / HTTP/1.1\r\nHost: slow.test\r\n\r\n"),
            (("127.0.0.1", 8080), f"GET /api/v1/pods?watch=1 HTTP/1.1\r\n{head}\r\n"),
            (("127.0.0.1", 8080), f"GET /api/v1/namespaces/{ns}/pods/slow/log?follow=true HTTP/1.1\r\n{head}\r\n"),
            (("127.0.0.1", 8080), f"POST /api/v1/manifests HTTP/1.1\r\n{head}Content-Length: 1000\r\n\r\nhalf"),
            (("127.0.0.1", 53), "\0"),
            (("127.0.0.1", 8080), "GET /hal"),
        ):
            sock = connect(two.namespace, address)
            sock.sendall(text.encode())
            socks.append(sock)
        code, seconds = two.stop()
        for sock in socks:
            sock.close()
        seen(f"exit code {code} after {seconds:.2f} s")
        t.measure("SIGTERM to exit, with six open connections", f"{seconds:.2f} s")
        equal(code, 0, "exit code")
        expect(seconds < 10, f"{seconds:.1f} s")
        t.start_node(two)
        two.wait_healthy()
    with t.check("5.stop.cluster", "all three stopped and started, none with --join: the cluster is what it was, containers too") as seen:
        wait_for("three Ready", lambda: len(one.ready_nodes()) == 3, 15)
        one.delete("Pod", ns, "slow")
        wait_for("slow gone", lambda: not any(c["Labels"]["podman-swarm.pod-name"] == "slow" for c in two.containers(ns)), 15)
        before = fingerprints(nodes, ns)
        for node in nodes:
            node.stop()
        for node in nodes:
            t.start_node(node)
        for node in nodes:
            node.wait_healthy()
            wait_for(f"three Ready on {node.name}", lambda node=node: len(node.ready_nodes()) == 3, 20)
        t.wait_pods(ns, 6)
        equal(fingerprints(nodes, ns), before, "containers")
        for node in nodes:
            wait_for("all names", lambda node=node: len(node.dns(name).addresses()) == 6, 10)


def lose_a_node(t, victim, lose, ids, what):
    """A node is lost: timings of what the others do; returns (namespace, what was seen)."""
    nodes = t.cluster(quiet=True)
    rest = [node for node in nodes if node is not victim]
    ns = t.namespace()
    nodes[0].apply(
        deployment(ns, "web", 6),
        service(ns, "web"),
        ingress(ns, "web", ("web.test", "/", "Prefix", "web", 80)),
        deployment(ns, "pin", 1, node=victim.name),
        service(ns, "pin"),
        ingress(ns, "pin", ("pin.test", "/", "Prefix", "pin", 80)),
    )
    pods = t.wait_pods(ns, 7)
    lost = {p["status"]["podIP"] for p in pods if p["spec"]["nodeName"] == victim.name}
    name, pin = f"web.{ns}.svc.cluster.local", f"pin.{ns}.svc.cluster.local"
    for node in rest:
        wait_for("names and routes", lambda node=node: len(node.dns(name).addresses()) == 6 and node.ingress("pin.test").status == 200, 10)
    counter = iter(range(10**9))

    def use(node):
        """One write and one read, as a user of that node."""
        number = next(counter)
        answer = node.request("POST", "/api/v1/manifests", service(ns, f"w-{node.number}-{number % 5}", port=1 + number % 60000), timeout=5)
        expect(answer.status == 200, f"write: {answer.status} {brief(answer.text, 200)}")
        expect(node.get(f"/api/v1/namespaces/{ns}/pods", timeout=5).status == 200, "read")
        return True

    with contextlib.ExitStack() as stack:
        alive = {n: stack.enter_context(Sampler(lambda n=n: is_ready(n.object("Node", None, victim.name)), 0.04)) for n in rest}
        named = {n: stack.enter_context(Sampler(lambda n=n: set(n.dns(name).addresses()) | set(n.dns(pin).addresses()), 0.04)) for n in rest}
        listed = {
            n: stack.enter_context(Sampler(lambda n=n: {e["address"] for s in ("web", "pin") for e in n.endpoints(ns, s) if e["healthy"]}, 0.04))
            for n in rest
        }
        routed = {n: stack.enter_context(Sampler(lambda n=n: n.ingress("pin.test", timeout=0.4).status, 0.05)) for n in rest}
        local = {n: stack.enter_context(Sampler(lambda n=n: n.ingress("web.test", timeout=4).status, 0.1)) for n in rest}
        used = {n: stack.enter_context(Sampler(lambda n=n: use(n), 0.1)) for n in rest}
        begun = time.monotonic()
        lose()
        cut_at = time.monotonic()

        def elsewhere():
            running = sum(1 for n in rest for c in n.containers(ns, running=True) if c["Labels"]["podman-swarm.pod-name"].startswith("web-"))
            expect(running >= 6, f"{running} run")
            return True

        wait_for("six containers on the others", elsewhere, 40)
        run_at = time.monotonic() - begun

        def all_ready():
            ready = [p for p in rest[0].pods(ns, "app=web") if is_ready(p) and p["spec"].get("nodeName") != victim.name]
            expect(len(ready) == 6, f"{len(ready)} ready")
            return True

        wait_for("six ready pods on the others", all_ready, 40)
        ready_at = time.monotonic() - begun
        for n in rest:
            wait_for("six names", lambda n=n: len(n.dns(name).addresses()) == 6 and not lost & set(n.dns(name).addresses()), 10)
        settled = time.monotonic()
        wait_for("two seconds more", lambda: time.monotonic() - settled > 2, 4)

    def first(sampler, good):
        return next((at - begun for at, _, value in sampler.samples if at > begun and not isinstance(value, Exception) and good(value)), None)

    def last(sampler, good):
        """When it began to be so for good."""
        since = None
        for at, _, value in sampler.samples:
            if isinstance(value, Exception) or not good(value):
                since = None
            elif since is None:
                since = at - begun
        return since

    with t.check(ids[0], f"{what}: within 10 seconds its pods run elsewhere") as seen:
        seen(f"containers run after {run_at:.1f} s, all ready after {ready_at:.1f} s (losing it took {cut_at - begun:.1f} s of that)")
        t.measure(f"{what} → pods run elsewhere", f"{run_at:.1f} s (ready {ready_at:.1f} s)")
        expect(run_at <= 10 and ready_at <= 10, f"{run_at:.1f} s, ready {ready_at:.1f} s")
    with t.check(ids[1], f"{what}: its endpoints leave DNS, the endpoints API and the ingress as soon as it counts as dead") as seen:
        for n in rest:
            dead = last(alive[n], lambda v: not v)
            out = last(named[n], lambda v: not lost & v), last(listed[n], lambda v: not lost & v), last(routed[n], lambda v: v == 503)
            seen(
                f"{n.name}: not Ready at {dead:.2f} s; gone from DNS, endpoints, ingress at {', '.join(f'{o:.2f}' if o is not None else 'never' for o in out)} s"
            )
            expect(None not in out and max(out) <= dead + 1, "an endpoint stayed longer than a second after its node counted as dead")
        t.measure(f"{what} → counts as dead", f"{dead:.1f} s")
    with t.check(ids[2], f"{what}: every other node answers reads and writes all the while, and its ingress serves") as seen:
        for n in rest:
            samples = [s for s in used[n].samples if s[0] >= begun - 0.5]
            bad = [(round(at - begun, 2), v) for at, _, v in samples if v is not True]
            worst = max(took for _, took, _ in samples)
            http_bad = [(round(at - begun, 2), v) for at, _, v in local[n].samples if v != 200]
            seen(f"{n.name}: {len(samples)} pairs, slowest {worst:.2f} s; {len(local[n].samples)} requests, not 200: {http_bad[:4]}")
            expect(not bad, f"{n.name}: {len(bad)} failed: {bad[:3]}")
            expect(worst < 2, f"{n.name}: a read and a write took {worst:.1f} s")
            expect(not http_bad, f"{n.name}'s ingress, with local pods: {http_bad[:4]}")
    return ns, pods


def comes_back(t, victim, ns, ident, what, begun):
    nodes = t.nodes
    with t.check(ident, f"{what}: when it returns, surplus containers go") as seen:
        wait_for("three Ready everywhere", lambda: all(len(n.ready_nodes()) == 3 for n in nodes), 30)
        returned = time.monotonic() - begun

        def settled():
            counts = [sum(1 for c in n.containers(ns) if c["Labels"]["podman-swarm.pod-name"].startswith("web-")) for n in nodes]
            pods = nodes[0].pods(ns, "app=web")
            expect(sum(counts) == 6 and len(pods) == 6 and all(is_ready(p) for p in pods), f"containers {counts}, {len(pods)} pods")
            return counts

        counts = wait_for("six containers and six ready pods", settled, 40)
        seen(f"Ready after {returned:.1f} s, surplus gone after {time.monotonic() - begun:.1f} s; containers {counts}")
        t.measure(f"{what}, returned → no surplus", f"{time.monotonic() - begun:.1f} s")
        pods = {name_of(p) for p in nodes[0].pods(ns)}
        for n in nodes:
            wait_for(f"the same pods on {n.name}", lambda n=n: {name_of(p) for p in n.pods(ns)} == pods, 5)
        wait_for(
            "the pinned pod is ready again, once",
            lambda: len([p for p in nodes[0].pods(ns, "app=pin") if is_ready(p)]) == len(nodes[0].pods(ns, "app=pin")) == 1,
            20,
        )
        calm = time.monotonic()
        with Sampler(lambda: tuple(sorted(c["Id"] for n in nodes for c in n.containers(ns))), 0.2) as sampler:
            wait_for("five calm seconds", lambda: time.monotonic() - calm > 5, 7)
        expect(len(set(sampler.values())) == 1, "containers still come and go")


@scenario("5.off.pods", "5.off.endpoints", "5.off.others", "5.off.return", "5.off.slept")
def powered_off(t):
    """The founder of the cluster, without a warning: nobody is special."""
    victim = t.nodes[0] if t.nodes else None
    t.cluster()
    three = t.nodes
    t.nodes = [three[1], three[2], three[0]]  # ask the survivors first
    try:
        slept = t.namespace()
        victim.apply(service(slept, "deleted"), service(slept, "changed"))
        ns, _ = lose_a_node(t, victim, victim.power_off, ("5.off.pods", "5.off.endpoints", "5.off.others"), "node powered off")
        three[1].delete("Service", slept, "deleted")
        three[2].apply(service(slept, "changed", port=8888), service(slept, "new"))
        begun = time.monotonic()
        victim.boot()
        t.start_node(victim)
        comes_back(t, victim, ns, "5.off.return", "node powered off", begun)
        with t.check("5.off.slept", "what it slept through: the deleted stays deleted (P4), the changed and the new are there"):
            for node in three:
                equal({name_of(s): s["spec"]["ports"][0]["port"] for s in node.items("Service", slept)}, {"changed": 8888, "new": 80}, node.name)
    finally:
        t.nodes = three


@scenario("5.cut.pods", "5.cut.endpoints", "5.cut.others", "5.cut.return")
def cut_off(t):
    t.cluster()
    victim = t.nodes[2]
    ns, _ = lose_a_node(t, victim, lambda: t.hosts("cut", victim.number), ("5.cut.pods", "5.cut.endpoints", "5.cut.others"), "node cut off")
    surplus = len(victim.containers(ns, running=True))
    begun = time.monotonic()
    t.hosts("heal")
    comes_back(t, victim, ns, "5.cut.return", f"node cut off ({surplus} of its containers still ran)", begun)


@scenario("5.blip", "5.two", "5.two.return", "5.blackout")
def worse(t):
    """Not one node but more: nothing needs a quorum, and what was acknowledged comes back."""
    nodes = t.cluster(quiet=True)
    one, two, three = nodes
    ns = t.namespace()
    one.apply(deployment(ns, "web", 6), service(ns, "web"), ingress(ns, "web", ("web.test", "/", "Prefix", "web", 80)))
    t.wait_pods(ns, 6)
    with t.check("5.blip", "a cable that is out for half a second moves and restarts nothing") as seen:
        before = fingerprints(nodes, ns)
        for _ in range(3):
            begun = time.monotonic()
            t.hosts("cut", 2)
            wait_for("half a second", lambda: time.monotonic() - begun > 0.5, 2)
            t.hosts("heal")
            wait_for("five seconds", lambda: time.monotonic() - begun > 5, 7)
        equal(fingerprints(nodes, ns), before, "containers")
    with t.check(
        "5.two", "two of three lost, one powered off and one cut off: the last answers reads and writes, and runs all pods within 10 s"
    ) as seen:
        with Sampler(lambda: one.apply(service(ns, "written", port=1 + int(time.time() * 10) % 60000)).status, 0.1) as writes:
            begun = time.monotonic()
            t.hosts("cut", 3)
            two.power_off()

            def moved():
                ready = [p for p in one.pods(ns) if is_ready(p) and p["spec"]["nodeName"] == "node1"]
                expect(len(ready) == 6 == len(one.containers(ns, running=True)), f"{len(ready)} ready")
                return True

            wait_for("six ready pods on node1", moved, 30)
            seconds = time.monotonic() - begun
        seen(f"{seconds:.1f} s; {len(writes.samples)} writes, slowest {max(took for _, took, _ in writes.samples):.2f} s")
        expect(not writes.errors() and set(writes.values()) == {200}, f"writes: {writes.errors()[:2]}")
        equal(len(one.dns(f"web.{ns}.svc.cluster.local").addresses()), 6, "names")
        equal(one.ingress("web.test").status, 200, "ingress")
        expect(seconds <= 10, f"{seconds:.1f} s")
    with t.check("5.two.return", "both return: six containers, spread again or not, and everybody agrees") as seen:
        t.hosts("heal")
        two.boot()
        t.start_node(two)
        wait_for("three Ready everywhere", lambda: all(len(n.ready_nodes()) == 3 for n in nodes), 30)

        def settled():
            running, pods = [len(n.containers(ns, running=True)) for n in nodes], [sorted(name_of(p) for p in n.pods(ns)) for n in nodes]
            expect(sum(running) == 6 and all(p == pods[0] and len(p) == 6 for p in pods), f"{running} containers run; pods {[len(p) for p in pods]}")
            return running

        seen(wait_for("six containers, six pods on every node", settled, 40))
    with t.check("5.blackout", "all machines lose power and come back: what was acknowledged is there, pods run again") as seen:
        kept = [f"kept-{number}" for number in range(20)]
        for number, name in enumerate(kept):
            nodes[number % 3].apply(service(ns, name))
        for node in nodes:
            node.power_off()
        for node in nodes:
            node.boot()
            t.start_node(node)
        begun = time.monotonic()
        for node in nodes:
            node.wait_healthy()
            missing = set(kept) - {name_of(s) for s in node.items("Service", ns)}
            wait_for(
                f"all of it on {node.name} (missing at first: {sorted(missing)})",
                lambda node=node: set(kept) <= {name_of(s) for s in node.items("Service", ns)},
                10,
            )
        t.wait_pods(ns, 6, seconds=60)
        seen(f"six pods ready {time.monotonic() - begun:.1f} s after the agents' start")
        t.measure("all powered off and on → six pods ready", f"{time.monotonic() - begun:.1f} s")
        wait_for("six containers run", lambda: sum(len(n.containers(ns, running=True)) for n in nodes) == 6, 20)
        for node in nodes:
            wait_for(
                "names and routes",
                lambda node=node: len(node.dns(f"web.{ns}.svc.cluster.local").addresses()) == 6 and node.ingress("web.test").status == 200,
                10,
            )


@scenario("5.grace")
def agent_gone_for_good(t):
    with t.check("5.grace", "--restart-grace: a dead agent's pods are replaced after it, not before") as seen:
        t.set_flags("--restart-grace=8s")
        nodes = t.cluster(quiet=True)
        one, two, three = nodes
        ns = t.namespace()
        one.apply(deployment(ns, "web", 3), service(ns, "web"))
        t.wait_pods(ns, 3)
        two.kill()
        begun = time.monotonic()

        def moved():
            return len([p for p in one.pods(ns) if is_ready(p) and p["spec"]["nodeName"] != "node2"]) == 3

        wait_for("its pod runs elsewhere", moved, 40)
        seconds = time.monotonic() - begun
        seen(f"replaced after {seconds:.1f} s with --restart-grace=8s")
        expect(7 <= seconds <= 20, f"after {seconds:.1f} s")
        t.start_node(two)
        two.wait_healthy()
        wait_for("the surplus goes", lambda: sum(len(n.containers(ns)) for n in nodes) == 3 and len(one.pods(ns)) == 3, 30)


# =========================================================================================== story 6: partition


@scenario("6.accept", "6.heal", "6.same-object", "6.same-field", "6.deleted", "6.workloads", "6.local", "6.surplus")
def partition(t):
    """Node 1 on one side; nodes 2 and 3 on the other."""
    nodes = t.cluster(quiet=True)
    one, two, three = nodes
    ns = t.namespace()
    both = deployment(ns, "both", 0, containers=[hello_container(), sleeper("side")], labels={"base": "0"})
    one.apply(both, service(ns, "doomed"), service(ns, "doomed-too"), deployment(ns, "web", 3), deployment(ns, "field", 0), service(ns, "web"))
    t.wait_pods(ns, 3)
    for node in nodes:
        wait_for("all there", lambda node=node: node.find("Deployment", ns, "field") and node.find("Service", ns, "doomed-too"), 5)
    uid = one.object("Service", ns, "doomed")["metadata"]["uid"]
    t.hosts("cut", 1)
    try:
        wait_for("each side sees the other dead", lambda: one.ready_nodes() == ["node1"] and two.ready_nodes() == ["node2", "node3"], 30)
        with t.check("6.accept", "both sides accept applies, reads and deletions") as seen:
            begun = time.monotonic()
            one.apply(service(ns, "left"))
            two.apply(service(ns, "right"))
            three.apply(service(ns, "right-too"))
            equal(one.request("DELETE", f"/api/v1/manifests/{ns}/doomed?kind=Service").status, 200, "DELETE on the left")
            equal(three.request("DELETE", f"/api/v1/manifests/{ns}/doomed-too?kind=Service").status, 200, "DELETE on the right")
            seen(f"{time.monotonic() - begun:.2f} s for three applies and two deletions")
            wait_for("the right side agrees", lambda: two.find("Service", ns, "right-too"), 3)
        # The same object: different fields on each side, then one same field.
        one.patch(
            "Deployment",
            ns,
            "both",
            {"metadata": {"labels": {"left": "1"}}, "spec": {"template": {"spec": {"containers": [{"name": "web", "image": HELLO2}]}}}},
            how="strategic-merge",
        )
        two.patch(
            "Deployment",
            ns,
            "both",
            {
                "metadata": {"labels": {"right": "1"}},
                "spec": {"template": {"spec": {"containers": [{"name": "side", "env": [{"name": "RIGHT", "value": "1"}]}]}}},
            },
            how="strategic-merge",
        )
        one.patch("Deployment", ns, "field", {"metadata": {"labels": {"same": "left"}}})
        three.patch("Deployment", ns, "field", {"metadata": {"labels": {"same": "right"}}})
        with t.check(
            "6.workloads", "each side heals its own workloads: a killed container comes back, a scale is done, lost pods are replaced"
        ) as seen:
            wait_for(
                "three ready on the right",
                lambda: len([p for p in two.pods(ns, "app=web") if is_ready(p) and p["spec"]["nodeName"] != "node1"]) == 3,
                20,
            )
            wait_for(
                "three ready on the left",
                lambda: len([p for p in one.pods(ns, "app=web") if is_ready(p) and p["spec"]["nodeName"] == "node1"]) == 3,
                20,
            )
            victim = one.containers(ns, running=True)[0]
            one.run("podman", "kill", victim["Id"])
            wait_for(
                "it runs again",
                lambda: any(
                    c["Labels"]["podman-swarm.pod-name"] == victim["Labels"]["podman-swarm.pod-name"] and c["Pid"] != victim["Pid"]
                    for c in one.containers(ns, running=True)
                ),
                15,
            )
            seen(f"containers {[len(n.containers(ns, running=True)) for n in nodes]}")
        with t.check("6.local", "names and routes of each side are those of its own pods"):
            for node, mine in ((one, {"node1"}), (two, {"node2", "node3"})):
                places = {p["status"]["podIP"]: p["spec"]["nodeName"] for p in node.pods(ns, "app=web") if is_ready(p)}
                found = node.dns(f"web.{ns}.svc.cluster.local").addresses()
                expect(found and {places.get(a) for a in found} <= mine, f"{node.name}: {found} of {places}")
    finally:
        t.hosts("heal")
    begun = time.monotonic()
    with t.check("6.heal", "after the heal both sides have both changes, everywhere") as seen:
        for node in nodes:
            wait_for(f"all of it on {node.name}", lambda node=node: all(node.find("Service", ns, s) for s in ("left", "right", "right-too")), 20)
        seen(f"{time.monotonic() - begun:.2f} s after the heal")
        t.measure("heal of a partition → both sides have both changes", f"{time.monotonic() - begun:.2f} s")
    with t.check("6.deleted", "what was deleted on one side stays deleted; a new one of that name has another uid") as seen:
        for node in nodes:
            wait_for(
                f"gone on {node.name}", lambda node=node: not node.find("Service", ns, "doomed") and not node.find("Service", ns, "doomed-too"), 10
            )
        two.apply(service(ns, "doomed"))
        expect(two.object("Service", ns, "doomed")["metadata"]["uid"] != uid, "the old uid")
    with t.check("6.same-object", "edits of different fields of one object do not undo one another (P2): labels, containers, env") as seen:
        for node in nodes:
            got = node.object("Deployment", ns, "both")
            equal(got["metadata"]["labels"], {"base": "0", "left": "1", "right": "1"}, f"labels on {node.name}")
            containers = {c["name"]: c for c in got["spec"]["template"]["spec"]["containers"]}
            equal(
                (containers["web"]["image"], containers["side"].get("env")), (HELLO2, [{"name": "RIGHT", "value": "1"}]), f"containers on {node.name}"
            )
    with t.check("6.same-field", "edits of the same field: one wins, the same everywhere; an Event names both (P3)") as seen:
        values = {node.object("Deployment", ns, "field")["metadata"]["labels"]["same"] for node in nodes}
        expect(len(values) == 1 and values <= {"left", "right"}, f"{values}")

        def told():
            return [
                e
                for e in three.events(ns)
                if e.get("involvedObject", {}).get("name") == "field" and "left" in e.get("message", "") and "right" in e.get("message", "")
            ]

        event = wait_for("an Event that names both", told, 10)
        equal(len(event), 1, "Events")
        seen(f"{values} won; {event[0]['reason']}: {event[0]['message']}")
    with t.check("6.surplus", "after the heal surplus pods and containers go, without a person (P6)") as seen:

        def settled():
            running, pods = [len(n.containers(ns, running=True)) for n in nodes], one.pods(ns, "app=web")
            expect(sum(running) == 3 and len(pods) == 3 and all(is_ready(p) for p in pods), f"{running} containers run, {len(pods)} pods")
            return running

        seen(f"{wait_for('three pods, three containers', settled, 30)} after {time.monotonic() - begun:.1f} s")


# =========================================================================================== story 7: kubectl


def ok(done, what):
    expect(done.code == 0, f"{what}: exit code {done.code}: {brief(done.all, 500)}")
    return done.out


def follow(t, machine, *arguments, program="kubectl"):
    """Starts a command that goes on, and returns (job, lines so far)."""
    path = t.work / f"follow-{secrets.token_hex(4)}"
    with open(path, "wb") as out:
        job = machine.start(program, *arguments, stdout=out)
    return job, lambda: path.read_text(errors="replace").splitlines()


HELLO_YAML = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello, labels: {app: hello}}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: IMAGE
          imagePullPolicy: IfNotPresent
          ports: [{name: http, containerPort: 8080}]
          env:
            - {name: VERSION, value: "1"}
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: hello}
spec:
  rules:
    - host: hello.test
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: hello, port: {name: http}}}}]}
"""


@scenario(
    "7.apply",
    "7.get",
    "7.yaml",
    "7.watch",
    "7.describe",
    "7.scale",
    "7.logs",
    "7.rollout",
    "7.kinds",
    "7.server-side",
    "7.delete",
    "7.elsewhere",
    "7.versions",
)
def kubectl(t):
    nodes = t.cluster()
    ns = t.namespace()
    desk = t.desk

    def k(*arguments, **rest):
        return desk.kubectl("-n", ns, *arguments, **rest)

    path = t.work / "hello.yaml"
    path.write_text(HELLO_YAML.replace("REPLICAS", "3").replace("IMAGE", HELLO1))
    with t.check("7.apply", "kubectl apply -f: created, unchanged, configured") as seen:
        out = ok(k("apply", "-f", path), "apply")
        equal(sorted(line.split()[-1] for line in out.splitlines()), ["created"] * 3, out)
        out = ok(k("apply", "-f", path), "apply again")
        equal(sorted(line.split()[-1] for line in out.splitlines()), ["unchanged"] * 3, out)
        done = k("diff", "-f", path)
        equal(done.code, 0, f"kubectl diff of the same ({brief(done.all, 900)})")
        path.write_text(path.read_text().replace("replicas: 3", "replicas: 2"))
        equal(k("diff", "-f", path).code, 1, "kubectl diff of a change")
        out = ok(k("apply", "-f", path), "apply changed")
        expect("deployment.apps/hello configured" in out, out)
        t.wait_pods(ns, 2)
    with t.check("7.rollout", "kubectl rollout status, and set image, history, undo, restart") as seen:
        seen(ok(k("rollout", "status", "deployment/hello", "--timeout=60s"), "rollout status"))
        ok(k("set", "image", "deployment/hello", f"web={HELLO2}"), "set image")
        out = ok(k("rollout", "status", "deployment/hello", "--timeout=60s", timeout=70), "rollout status of the update")
        expect("successfully rolled out" in out, out)
        images = {p["spec"]["containers"][0]["image"] for p in t.wait_pods(ns, 2)}
        equal(images, {HELLO2}, "images after rollout status")
        seen(ok(k("rollout", "history", "deployment/hello"), "history"))
        ok(k("rollout", "undo", "deployment/hello"), "undo")
        ok(k("rollout", "status", "deployment/hello", "--timeout=60s", timeout=70), "status")
        equal(nodes[1].object("Deployment", ns, "hello")["spec"]["template"]["spec"]["containers"][0]["image"], HELLO1, "image after undo")
    with t.check("7.get", "kubectl get: tables of all kinds, -A, -o wide, all, labels") as seen:
        t.wait_pods(ns, 2)
        out = ok(k("get", "pods"), "get pods")
        equal(out.splitlines()[0].split(), ["NAME", "READY", "STATUS", "RESTARTS", "AGE"], "columns of pods")
        equal([line.split()[1:4] for line in out.splitlines()[1:]], [["1/1", "Running", "0"]] * 2, "rows")
        for kind, columns in (
            ("deployments", "NAME READY UP-TO-DATE AVAILABLE AGE"),
            ("replicasets", "NAME DESIRED CURRENT READY AGE"),
            ("services", "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE"),
            ("ingresses", "NAME CLASS HOSTS ADDRESS PORTS AGE"),
            ("nodes", "NAME STATUS ROLES AGE VERSION"),
            ("namespaces", "NAME STATUS AGE"),
        ):
            out = ok(k("get", kind), f"get {kind}")
            equal(out.splitlines()[0].split(), columns.split(), f"columns of {kind}")
        out = ok(k("get", "pods", "-o", "wide"), "wide")
        expect(all(word in out for word in ("IP", "NODE")) and re.search(r"10\.244\.\d+\.\d+\s+node[123]", out), out)
        expect("deployment.apps/hello" in ok(k("get", "all"), "get all") and ns in ok(desk.kubectl("get", "pods", "-A"), "-A"), "all")
        expect("hello" in ok(k("get", "deploy,svc,ing", "-l", "app=hello"), "-l"), "-l")
        expect("No resources found" in k("get", "pods", "-l", "app=other").all, "-l of nothing")
        seen(ok(k("get", "deployments,services,ingresses"), "get"))
    with t.check("7.yaml", "kubectl get -o yaml, json, name, jsonpath; what it gives can be applied again") as seen:
        text = ok(k("get", "deployment", "hello", "-o", "yaml"), "-o yaml")
        expect(text.startswith("apiVersion: apps/v1\nkind: Deployment\n") and "resourceVersion:" in text and "status:" in text, brief(text))
        equal(ok(k("get", "pods", "-o", "jsonpath={.items[*].status.phase}"), "jsonpath"), "Running Running", "jsonpath")
        equal(json.loads(ok(k("get", "svc", "hello", "-o", "json"), "-o json"))["kind"], "Service", "json")
        equal(ok(k("get", "svc", "-o", "name"), "-o name").strip(), "service/hello", "name")
        ok(k("replace", "-f", "-", stdin=text), "replace")
    with t.check("7.watch", "kubectl get -w shows what changes") as seen:
        job, lines = follow(t, desk, "--kubeconfig", nodes[0].data / "admin.kubeconfig", "-n", ns, "get", "pods", "-w")
        wait_for("two rows", lambda: sum("Running" in line for line in lines()) >= 2, 15)
        known = {line.split()[0] for line in lines()[1:]}
        ok(k("scale", "deployment/hello", "--replicas=3"), "scale")
        wait_for(
            "a new pod, Running 1/1", lambda: [line for line in lines() if line.split()[0] not in known and "1/1" in line and "Running" in line], 15
        )
        equal(job.poll(), None, "the watch ended")
        job.terminate()
        seen(" | ".join(re.sub(r" +", " ", line) for line in lines()))
    with t.check("7.scale", "kubectl scale") as seen:
        ok(k("scale", "deployment", "hello", "--replicas=4"), "scale")
        t.wait_pods(ns, 4)
        expect(k("scale", "deployment", "hello", "--current-replicas=9", "--replicas=1").code != 0, "--current-replicas=9 was not refused")
        ok(k("scale", "deployment", "hello", "--replicas=2"), "scale")
        t.wait_pods(ns, 2)
    with t.check("7.describe", "kubectl describe of every kind") as seen:
        for kind, words in (
            ("deployment", ["Replicas:", "StrategyType:", "Events:"]),
            ("pod", ["Status:", "Containers:", "web:", "Events:", "node"]),
            ("service", ["Endpoints:", "10.244."]),
            ("ingress", ["hello.test", "hello:"]),
            ("replicaset", ["Replicas:", "Controlled By:"]),
        ):
            out = ok(k("describe", kind), f"describe {kind}")
            for word in words:
                expect(word in out, f"describe {kind} lacks {word}: {brief(out, 600)}")
        for kind, name, words in (
            ("node", "node1", ["Capacity:", "Addresses:", "10.231.0.1", "Conditions:"]),
            ("namespace", ns, ["Status:", "Active"]),
        ):
            out = ok(k("describe", kind, name), f"describe {kind}")
            for word in words:
                expect(word in out, f"describe {kind} lacks {word}: {brief(out, 600)}")
        pod_text = ok(k("describe", "pod"), "describe pod")
        expect(re.search(r"Normal\s+(Started|Created|Scheduled|Pulled)", pod_text), f"no events of a pod: {brief(pod_text[-600:])}")
    with t.check("7.logs", "kubectl logs, -f, --tail, -c, -p, for pods on every node, asked on any") as seen:
        nodes[0].apply(
            *[
                pod(
                    ns,
                    f"talk{n.number}",
                    shell("n=0; trap 'echo end; exit 0' TERM; while :; do n=$((n+1)); echo line $n; /bin/busybox sleep 0.3 & wait $!; done", "main"),
                    shell("echo of the second; exec /bin/busybox sleep 3600", "second"),
                    node=n.name,
                )
                for n in nodes
            ]
        )
        for n in nodes:
            wait_for("talks", lambda n=n: is_ready(n.object("Pod", ns, f"talk{n.number}")), 20)
        for n in nodes:
            for asked in nodes:
                out = ok(k("logs", f"talk{n.number}", "-c", "main", node=asked), f"logs of a pod on {n.name} through {asked.name}")
                expect(out.startswith("line 1\n"), f"logs of {n.name} through {asked.name}: {brief(out, 100)}")
        equal(ok(k("logs", "talk2", "-c", "second"), "-c"), "of the second\n", "-c second")
        equal(len(ok(k("logs", "talk3", "-c", "main", "--tail=2"), "--tail").splitlines()), 2, "--tail=2")
        expect(re.match(r"\d{4}-\d\d-\d\dT", ok(k("logs", "talk3", "-c", "main", "--timestamps", "--tail=1"), "--timestamps")), "--timestamps")
        job, lines = follow(t, desk, "--kubeconfig", nodes[0].data / "admin.kubeconfig", "-n", ns, "logs", "-f", "talk2", "-c", "main")
        wait_for("some lines", lambda: len(lines()) >= 5, 10)
        count = len(lines())
        wait_for("more lines", lambda: len(lines()) >= count + 5, 10)
        nodes[0].delete("Pod", ns, "talk2")
        wait_for("logs -f ends with the container", lambda: job.poll() is not None, 15)
        expect(lines()[-1] == "end", f"the last line is {lines()[-1]!r}")
        seen(f"{len(lines())} lines followed")
        done = k("logs", "nowhere")
        expect(done.code != 0 and "not found" in done.all, done.all)
    with t.check("7.kinds", "apply, get, describe and delete of Namespace, Pod, ReplicaSet, Deployment, Service, Ingress") as seen:
        name = ns + "-k"
        rs = object_of(
            "apps/v1",
            "ReplicaSet",
            name,
            "rs",
            spec={
                "replicas": 1,
                "selector": {"matchLabels": {"app": "rs"}},
                "template": {"metadata": {"labels": {"app": "rs"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [hello_container()]}},
            },
        )
        items = [
            namespace_object(name),
            pod(name, "p"),
            rs,
            deployment(name, "d", 1),
            service(name, "d"),
            ingress(name, "i", ("k.test", "/", "Prefix", "d", 80)),
        ]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        out = ok(desk.kubectl("apply", "-f", "-", stdin=text), "apply")
        equal(len(out.splitlines()), 6, out)
        t.namespaces.append(name)
        t.wait_pods(name, 3)
        for kind in ("pod/p", "rs/rs", "deploy/d", "svc/d", "ing/i"):
            ok(desk.kubectl("-n", name, "get", kind), f"get {kind}")
            ok(desk.kubectl("-n", name, "delete", kind, "--timeout=30s"), f"delete {kind}")
            expect("NotFound" in desk.kubectl("-n", name, "get", kind).err, f"{kind} is still there")
        ok(desk.kubectl("delete", "namespace", name, "--timeout=40s"), "delete namespace")
        expect(desk.kubectl("get", "ns", name).code != 0, "the namespace is still there")
    with t.check("7.server-side", "kubectl apply --server-side, diff, label, annotate, patch, wait") as seen:
        ok(k("apply", "--server-side", "--force-conflicts", "-f", path), "apply --server-side")
        ok(k("label", "deployment/hello", "extra=1"), "label")
        ok(k("annotate", "deployment/hello", "note=x"), "annotate")
        ok(k("patch", "deployment/hello", "-p", '{"spec":{"minReadySeconds":1}}'), "patch")
        ok(k("wait", "--for=condition=Available", "deployment/hello", "--timeout=30s"), "wait")
        path.write_text(path.read_text().replace("replicas: 2", "replicas: 1"))
        equal(k("diff", "-f", path).code, 1, "diff of a change")
        labels = nodes[2].object("Deployment", ns, "hello")["metadata"]["labels"]
        equal(labels.get("extra"), "1", "label")
    with t.check("7.elsewhere", "the same through another node's admin.kubeconfig; a kubeconfig with a wrong token is refused") as seen:
        for node in nodes:
            out = ok(k("get", "deployment", "hello", "-o", "name", node=node), node.name)
            equal(out.strip(), "deployment.apps/hello", node.name)
        wrong = t.work / "wrong.kubeconfig"
        wrong.write_text((nodes[0].data / "admin.kubeconfig").read_text().replace(nodes[0].token, "nonsense"))
        done = desk.run("kubectl", "--kubeconfig", wrong, "get", "nodes")
        expect(done.code != 0 and re.search("Unauthorized|logged in", done.err), done.err)
    with t.check("7.versions", "every kubectl that is installed: apply, get, logs, delete") as seen:
        pattern = pathlib.Path(os.path.realpath(shutil.which("kubectl"))).parent
        programs = sorted(str(p) for p in pattern.glob("kubectl.1.*")) or ["kubectl"]
        for program in programs:

            def kk(*arguments, **rest):
                return desk.run(program, "--kubeconfig", nodes[0].data / "admin.kubeconfig", "-n", ns, *arguments, **rest)

            text = json.dumps(service(ns, "versions"))
            expect("created" in ok(kk("apply", "-f", "-", stdin=text), f"{program} apply"), program)
            ok(kk("get", "pods,svc,deploy"), f"{program} get")
            ok(kk("logs", "talk1", "-c", "main", "--tail=1"), f"{program} logs")
            ok(kk("rollout", "status", "deployment/hello", "--timeout=20s"), f"{program} rollout status")
            ok(kk("delete", "svc", "versions"), f"{program} delete")
        seen([os.path.basename(p) for p in programs])
    with t.check("7.delete", "kubectl delete -f: everything goes") as seen:
        out = ok(k("delete", "-f", path, "--timeout=40s"), "delete")
        equal(len(out.splitlines()), 3, out)
        wait_for(
            "no pods of it",
            lambda: not nodes[0].pods(ns, "app=hello")
            and not any(c for n in nodes for c in n.containers(ns) if c["Labels"]["podman-swarm.pod-name"].startswith("hello-")),
            20,
        )


# =========================================================================================== story 8: Git


def manifest_text(*objects):
    return "\n---\n".join(json.dumps(o) for o in objects) + "\n"


@scenario("8.follows", "8.removed", "8.broken", "8.missing", "8.kept", "8.hand", "8.one", "8.takeover", "8.path", "8.flags")
def git(t):
    branch = Branch(t.files.git_root, "cluster")
    ns = "acc-git"
    branch.commit(
        {
            "README": "x",
            "deploy/ns.yaml": json.dumps(namespace_object(ns)),
            "deploy/app.yaml": f"# two documents\n{json.dumps(deployment(ns, 'web', 2))}\n---\n{json.dumps(service(ns, 'web'))}\n",
            "deploy/deep/er/ing.yml": json.dumps(ingress(ns, "web", ("git.test", "/", "Prefix", "web", 80))),
            "deploy/svc.json": service(ns, "json"),
            "other/not.yaml": json.dumps(service("default", "not-below-the-path")),
        }
    )
    t.namespaces.append(ns)
    with t.check("8.flags", "a repository that is not there is reported in an Event that names it, and nothing else suffers") as seen:
        host = t.spares[0]
        host.launch("--node-name=node4", f"--advertise-addr={host.ip}", "--gitops-repo=file:///nowhere/team.git", "--gitops-interval=2s")
        host.wait_healthy()

        def reported():
            return [e for e in host.events() if e.get("reason") == "SyncFailed" and "/nowhere/team.git" in e.get("message", "")]

        seen(wait_for("SyncFailed", reported, 15)[0]["message"])
        equal(host.get("/api/v1/health", token=None).status, 200, "health")
        t.leave(host)
    t.set_flags(f"--gitops-repo={branch.url}", "--gitops-branch=main", "--gitops-path=./deploy", "--gitops-interval=2s")
    nodes = t.cluster()
    one, two, three = nodes

    def events(reason):
        return [e for e in one.events() if e.get("reason") == reason]

    def requests_since(moment):
        return {client for at, client, _, path in t.files.seen if at >= moment and path.startswith("/git/")}

    with t.check("8.follows", "the cluster follows the branch: all of the path is applied, and each new commit within its interval") as seen:
        t.wait_pods(ns, 2, seconds=40)
        for kind, name in (("Service", "web"), ("Service", "json"), ("Ingress", "web")):
            wait_for(f"{kind} {name}", lambda kind=kind, name=name: two.find(kind, ns, name), 5)
        wait_for("the ingress serves", lambda: three.ingress("git.test").status == 200, 10)
        branch.commit({"deploy/app.yaml": manifest_text(deployment(ns, "web", 3), service(ns, "web"))})
        begun = time.monotonic()
        wait_for("three replicas wanted", lambda: two.object("Deployment", ns, "web")["spec"]["replicas"] == 3, 10)
        seen(f"{time.monotonic() - begun:.2f} s after the push, with an interval of 2 s")
        t.measure("Git push → applied, interval 2 s", f"{time.monotonic() - begun:.2f} s")
        expect(time.monotonic() - begun <= 4, "later than interval and a little")
        t.wait_pods(ns, 3)
    with t.check("8.path", "what is outside --gitops-path is not applied") as seen:
        expect(one.find("Service", "default", "not-below-the-path") is None, "it was applied")
    with t.check("8.one", "one node does the work") as seen:
        begun = time.monotonic()
        wait_for("four rounds", lambda: time.monotonic() - begun > 8, 10)
        clients = requests_since(begun)
        seen(clients)
        equal(len(clients), 1, f"nodes that asked the repository in 8 s: {clients}")
    with t.check("8.removed", "what disappears from the branch is removed, and only what it applied itself") as seen:
        one.apply(service(ns, "by-hand"))
        branch.commit({"deploy/svc.json": None, "deploy/deep/er/ing.yml": None})
        wait_for("both gone", lambda: not one.find("Service", ns, "json") and not one.find("Ingress", ns, "web"), 10)
        expect(one.find("Service", ns, "by-hand") and one.find("Deployment", ns, "web"), "more than that was removed")
        wait_for("the route too", lambda: three.ingress("git.test").status == 404, 5)
    with t.check("8.kept", "an object that somebody deleted and made anew under that name is not removed (inventory by uid)") as seen:
        branch.commit({"deploy/mine.yaml": json.dumps(service(ns, "mine"))})
        wait_for("applied", lambda: one.find("Service", ns, "mine"), 10)
        branch.commit({"deploy/mine.yaml": "{ broken"})
        wait_for("the broken commit is reported", lambda: any("mine.yaml" in e.get("message", "") for e in events("SyncFailed")), 15)
        one.delete("Service", ns, "mine")
        wait_for("gone", lambda: not one.find("Service", ns, "mine"), 5)
        one.apply(service(ns, "mine", port=8888))
        branch.commit({"deploy/mine.yaml": None})
        branch.commit({"deploy/marker.yaml": json.dumps(service(ns, "marker"))})
        wait_for("a later commit is applied", lambda: one.find("Service", ns, "marker"), 30)
        expect(one.find("Service", ns, "mine"), "it was removed")
    with t.check("8.hand", "what somebody changes by hand in a field of the branch is set back; a scale that it does not name stays") as seen:
        branch.commit({"deploy/app.yaml": manifest_text(deployment(ns, "web", labels={"from": "git"}), service(ns, "web"))})
        wait_for("the label", lambda: one.object("Deployment", ns, "web")["metadata"].get("labels", {}).get("from") == "git", 10)
        one.scale(ns, "web", 2)
        one.patch("Deployment", ns, "web", {"metadata": {"labels": {"from": "hand"}}})
        wait_for("set back", lambda: one.object("Deployment", ns, "web")["metadata"]["labels"]["from"] == "git", 10)
        equal(one.object("Deployment", ns, "web")["spec"]["replicas"], 2, "replicas that Git does not name")
    with t.check("8.broken", "a broken manifest changes nothing (not the good files of its commit either) and is reported") as seen:
        for number, broken in enumerate(
            ("kind: [", json.dumps(deployment(ns, "Bad_Name", 1)), json.dumps(object_of("v1", "ConfigMap", ns, "c")), "just text")
        ):
            branch.commit({"deploy/bad.yaml": broken, "deploy/good.yaml": json.dumps(service(ns, "good")), "deploy/marker.yaml": None})
            begun = time.monotonic()
            wait_for("the repository is asked", lambda: requests_since(begun), 20)
            found = wait_for("SyncFailed that names the file", lambda: [e for e in events("SyncFailed") if "bad.yaml" in e.get("message", "")], 15)
            wait_for("two seconds more", lambda: time.monotonic() - begun > 2, 20)
            expect(
                one.find("Service", ns, "good") is None and one.find("Service", ns, "marker") and one.find("Deployment", ns, "web"),
                f"something was changed by {broken[:30]}",
            )
            branch.commit(
                {"deploy/bad.yaml": None, "deploy/good.yaml": None, "deploy/marker.yaml": json.dumps(service(ns, "marker", port=9000 + number))}
            )
            wait_for(
                "the repaired commit is applied",
                lambda: [p["port"] for p in one.object("Service", ns, "marker")["spec"]["ports"]] == [9000 + number],
                30,
            )
        seen(found[-1]["message"])
        expect("SyncFailed" in ok(one.psctl("get", "events", "-A"), "psctl"), "psctl get events -A does not show it")
    with t.check("8.missing", "a missing path changes nothing and is reported; when it is back, all goes on") as seen:
        branch.git(branch.tree, "mv", "deploy", "moved")
        branch.commit({})
        found = wait_for(
            "SyncFailed that names the path",
            lambda: [
                e
                for e in events("SyncFailed")
                if "deploy" in e.get("message", "") and "bad.yaml" not in e["message"] and "mine.yaml" not in e["message"]
            ],
            20,
        )
        seen(found[-1]["message"])
        begun = time.monotonic()
        wait_for("three seconds more", lambda: time.monotonic() - begun > 3, 5)
        expect(one.find("Deployment", ns, "web") and one.find("Service", ns, "marker") and one.find("Namespace", None, ns), "something was removed")
        branch.git(branch.tree, "mv", "moved", "deploy")
        branch.commit({"deploy/back.yaml": json.dumps(service(ns, "back"))})
        wait_for("the next commit is applied", lambda: one.find("Service", ns, "back"), 40)
    with t.check("8.takeover", "when the node that does it dies, another takes over") as seen:
        begun = time.monotonic()
        clients = wait_for("a request", lambda: requests_since(begun), 10)
        worker = next(n for n in nodes if n.ip in clients)
        rest = [n for n in nodes if n is not worker]
        begun = time.monotonic()
        worker.power_off()
        branch.commit({"deploy/after.yaml": json.dumps(service(ns, "after"))})
        wait_for("another node applies the next commit", lambda: rest[0].find("Service", ns, "after") and rest[1].find("Service", ns, "after"), 30)
        seen(f"{worker.name} died; applied {time.monotonic() - begun:.1f} s later by {requests_since(begun) - {worker.ip}}")
        t.measure("the node that syncs Git dies → the next commit is applied", f"{time.monotonic() - begun:.1f} s")
        t.cluster()
        begun = time.monotonic()
        wait_for("six seconds", lambda: time.monotonic() - begun > 6, 8)
        seen(f"after its return: {requests_since(time.monotonic() - 5)}")
        equal(len(requests_since(time.monotonic() - 5)), 1, "nodes that ask, after its return")
    t.extra_flags = {}
    t.cluster()


# =========================================================================================== psctl


def columns(text):
    return [re.split(r"\s{2,}|\t", line.strip()) for line in text.rstrip().splitlines()]


def without_age(text):
    """A table without its AGE (and kubectl's optional) column, to compare two that were made a moment apart."""
    return [[re.sub(r"^(\d+[smhd])+$", "AGE", cell) for cell in row] for row in columns(text)]


@scenario(
    "psctl.apply",
    "psctl.apply.sources",
    "psctl.get",
    "psctl.kubectl",
    "psctl.formats",
    "psctl.shorts",
    "psctl.selectors",
    "psctl.describe",
    "psctl.delete",
    "psctl.config",
    "psctl.connection",
    "psctl.codes",
    "psctl.version",
    "psctl.streams",
    "psctl.watch",
)
def psctl(t):
    nodes = t.cluster()
    one, two, three = nodes
    ns = t.namespace()
    p = lambda *arguments, **rest: one.psctl("-n", ns, *arguments, **rest)
    folder = t.work / "manifests"
    (folder / "below").mkdir(parents=True)
    (folder / "app.yaml").write_text(HELLO_YAML.replace("REPLICAS", "2").replace("IMAGE", HELLO1))
    (folder / "svc.json").write_text(json.dumps(service(ns, "from-json")))
    (folder / "below" / "more.yml").write_text(json.dumps(service(ns, "from-below")))
    (folder / "notes.txt").write_text("not a manifest")
    with t.check("psctl.apply", "apply -f FILE: created, unchanged, configured; warnings on stderr") as seen:
        done = p("apply", "-f", folder / "app.yaml")
        out = ok(done, "apply")
        equal(sorted(line.split()[-1] for line in out.splitlines()), ["created"] * 3, out)
        equal(sorted(line.split()[-1] for line in ok(p("apply", "-f", folder / "app.yaml"), "again").splitlines()), ["unchanged"] * 3, "again")
        made = deployment(ns, "warned", 0)
        made["spec"]["colour"] = "red"
        done = p("apply", "-f", "-", stdin=json.dumps(made))
        expect(done.code == 0 and "colour" in done.err and "colour" not in done.out, f"warning: {done}")
        seen(out)
        done = p("apply", "--dry-run", "-f", "-", stdin=json.dumps(service(ns, "dry")))
        ok(done, "--dry-run")
        expect(one.find("Service", ns, "dry") is None, "--dry-run stored it")
    with t.check("psctl.apply.sources", "apply -f DIR (-R), -, URL; several -f") as seen:
        ok(p("apply", "-f", folder), "DIR")
        expect(one.find("Service", ns, "from-json") and not one.find("Service", ns, "from-below"), "DIR: not the folder itself alone")
        ok(p("apply", "-R", "-f", folder), "DIR -R")
        expect(one.find("Service", ns, "from-below"), "-R did not go below")
        ok(p("apply", "-f", "-", stdin=json.dumps(service(ns, "from-stdin"))), "-")
        t.files.files["/files/a.yaml"] = json.dumps(service(ns, "from-url")).encode()
        ok(p("apply", "-f", f"http://{DESK}:{FILES_PORT}/files/a.yaml"), "URL")
        for name in ("from-stdin", "from-url"):
            expect(one.find("Service", ns, name), name)
        done = p("apply", "-f", f"http://{DESK}:{FILES_PORT}/files/nowhere.yaml")
        expect(done.code == 1 and "404" in done.err, f"a URL that is not there: {done}")
        done = p("apply", "-f", folder / "nowhere.yaml")
        expect(done.code == 1 and "nowhere.yaml" in done.err, f"a file that is not there: {done}")
        bad = t.work / "bad.yaml"
        bad.write_text(json.dumps(service(ns, "good")) + "\n---\n" + json.dumps(service(ns, "Bad_Name")) + "\n")
        done = p("apply", "-f", bad)
        expect(done.code == 1 and "metadata.name" in done.err and one.find("Service", ns, "good") is None, f"a bad bundle: {done}")
        seen(done.err)
    t.wait_pods(ns, 2)
    with t.check("psctl.get", "get pods, deployments, services, ingresses, nodes, namespaces: tables as kubectl prints them") as seen:
        different = []
        for kind in ("pods", "deployments", "services", "ingresses", "nodes", "namespaces", "replicasets", "endpoints"):
            for extra in ([], ["-o", "wide"], ["--show-labels"], ["-A"], ["--no-headers"]):
                ours, theirs = p("get", kind, *extra), t.desk.kubectl("-n", ns, "get", kind, *extra)
                ok(ours, f"psctl get {kind} {extra}")
                if without_age(ours.out) != without_age(theirs.out):
                    different.append(f"{kind} {extra}: {brief(ours.out, 250)} | kubectl: {brief(theirs.out, 250)}")
        expect(not different, f"{len(different)} tables differ: " + " ;; ".join(different[:4]))
        seen(ok(p("get", "pods", "-o", "wide"), "get"))
    with t.check("psctl.kubectl", "get all, several kinds, KIND/NAME, a name, several names") as seen:
        out = ok(p("get", "all"), "all")
        expect(all(word in out for word in ("deployment.apps/hello", "service/hello", "pod/hello-", "replicaset.apps/hello-")), out)
        out = ok(p("get", "deploy,svc"), "two kinds")
        expect("deployment.apps/hello" in out and "service/hello" in out, out)
        expect("hello" in ok(p("get", "deploy/hello"), "KIND/NAME") and "hello" in ok(p("get", "deploy", "hello"), "KIND NAME"), "by name")
        equal(len(ok(p("get", "svc", "from-json", "from-url"), "names").splitlines()), 3, "two names")
        expect(ns in ok(one.psctl("get", "pods", "-A"), "-A"), "-A")
    with t.check("psctl.formats", "-o json, yaml, wide, name") as seen:
        equal(json.loads(ok(p("get", "svc", "hello", "-o", "json"), "json"))["metadata"]["name"], "hello", "json of one")
        items = json.loads(ok(p("get", "svc", "-o", "json"), "json of all"))
        expect(items["kind"] in ("List", "ServiceList") and len(items["items"]) >= 4, items["kind"])
        text = ok(p("get", "deploy", "hello", "-o", "yaml"), "yaml")
        expect(re.search(r"(?m)^kind: Deployment$", text) and re.search(r"(?m)^  name: hello$", text), brief(text))
        equal(
            ok(p("apply", "-f", "-", stdin=ok(p("get", "svc", "hello", "-o", "yaml"), "yaml")), "what it printed, applied again").strip().split()[-1]
            in ("unchanged", "configured"),
            True,
            "round trip",
        )
        equal(sorted(ok(p("get", "svc", "-l", "nothing!=x", "-o", "name"), "name").split())[0].split("/")[0], "service", "name")
        equal(ok(p("get", "deploy", "hello", "-o", "name"), "name").strip(), "deployment.apps/hello", "name of one")
    with t.check("psctl.shorts", "Kubernetes' short names") as seen:
        for short, long in (
            ("po", "pods"),
            ("deploy", "deployments"),
            ("svc", "services"),
            ("ing", "ingresses"),
            ("no", "nodes"),
            ("ns", "namespaces"),
            ("rs", "replicasets"),
            ("pod", "pods"),
            ("deployment", "deployments"),
            ("service", "services"),
            ("ingress", "ingresses"),
            ("node", "nodes"),
            ("namespace", "namespaces"),
            ("ep", "endpoints"),
            ("ev", "events"),
            ("deployments.apps", "deployments"),
            ("Pod", "pods"),
        ):
            equal(ok(p("get", short, "-o", "name"), short), ok(p("get", long, "-o", "name"), long), short)
    with t.check("psctl.selectors", "-l in all its forms, --show-labels") as seen:
        for selector, found in (
            ("app=hello", 2),
            ("app==hello", 2),
            ("app!=hello", 0),
            ("app in (hello,x)", 2),
            ("app notin (hello)", 0),
            ("app", 2),
            ("!app", 0),
            ("app=hello,nothing=x", 0),
        ):
            equal(len(ok(p("get", "pods", "-l", selector, "-o", "name"), selector).split()), found, selector)
        expect("app=hello" in ok(p("get", "pods", "--show-labels"), "labels"), "--show-labels")
        done = p("get", "pods", "-l", "a b c")
        expect(done.code in (1, 2) and "a b c" in done.err, f"a bad selector: {done}")
    with t.check("psctl.describe", "describe of every kind, with events") as seen:
        for kind, words in (
            ("pods", ["hello-", "Events", HELLO1]),
            ("deployment", ["hello", "2"]),
            ("service", ["hello", "Selector"]),
            ("ingress", ["hello.test"]),
            ("node", ["node1", "10.231.0.1"]),
            ("namespace", [ns]),
        ):
            out = ok(p("describe", kind), kind)
            for word in words:
                expect(word in out, f"describe {kind} lacks {word}: {brief(out, 500)}")
        seen(ok(p("describe", "deployment", "hello"), "describe"))
    with t.check("psctl.watch", "get -w follows") as seen:
        job, lines = follow(t, one, "-n", ns, "get", "pods", "-w", program=t.bin / "psctl")
        wait_for("two rows", lambda: len(lines()) >= 3, 10)
        one.scale(ns, "hello", 3)
        wait_for("a third pod, Running", lambda: len({line.split()[0] for line in lines()[1:] if "Running" in line}) >= 3, 15)
        job.terminate()
        one.scale(ns, "hello", 2)
    with t.check("psctl.config", "config set-server, set-token, view, get-location; the file is private, the token hidden") as seen:
        desk = t.desk
        shutil.rmtree(desk.home / ".psctl", ignore_errors=True)
        location = ok(desk.psctl("config", "get-location"), "get-location").strip()
        equal(location, str(desk.home / ".psctl/config"), "get-location")
        ok(desk.psctl("config", "set-server", f"https://{two.ip}:8080"), "set-server")
        ok(desk.psctl("config", "set-token", two.token), "set-token")
        ok(desk.psctl("config", "set-ca", two.data / "ca.crt"), "set-ca")
        view = ok(desk.psctl("config", "view"), "view")
        seen(view)
        expect(f"https://{two.ip}:8080" in view and two.token not in view, view)
        equal(oct(stat.S_IMODE(os.stat(location).st_mode)), "0o600", "mode")
        expect("node1" in ok(desk.psctl("get", "nodes"), "get nodes"), "get nodes by the saved settings")
        done = desk.psctl("config", "set-server", "not a url")
        expect(done.code in (1, 2) and "not a url" in done.err, f"a bad server: {done}")
    with t.check(
        "psctl.connection", "--server and --token, PSCTL_SERVER and PSCTL_TOKEN, KUBECONFIG, ~/.psctl/config, and by itself on a node"
    ) as seen:
        equal(one.psctl("get", "nodes").code, 0, "by itself on a node")
        local = "http://127.0.0.1:8080"
        clean = {"HOME": "/nonexistent", "DATA_DIR": "/nonexistent"}
        ok(one.psctl("get", "nodes", "--server", local, "--token", one.token, env=clean), "--server, --token")
        ok(one.psctl("get", "nodes", env={**clean, "PSCTL_SERVER": local, "PSCTL_TOKEN": one.token}), "variables")
        done = one.psctl("get", "nodes", "--server", local, "--token", "wrong")
        expect(done.code == 1 and re.search("401|nauthorized|token", done.err), f"a wrong token: {done}")
        done = one.psctl("get", "nodes", "--token", one.token, env={"PSCTL_TOKEN": "wrong", "PSCTL_SERVER": local})
        ok(done, "a flag beats the variable")
        ok(t.desk.psctl("get", "nodes", env={"KUBECONFIG": str(three.data / "admin.kubeconfig")}), "KUBECONFIG")
        shutil.rmtree(t.desk.home / ".psctl")
        done = t.desk.psctl("get", "nodes", env={"DATA_DIR": "/nonexistent", "HOME": str(t.desk.home)})
        expect(done.code != 0 and done.err, f"nothing to connect to: {done}")
        seen(brief(done.err, 300))
        done = one.psctl("get", "nodes", "--server", "http://127.0.0.1:1")
        expect(done.code == 1 and "127.0.0.1:1" in done.err, f"nobody there: {done}")
        ok(t.desk.psctl("get", "nodes", "--kubeconfig", one.data / "admin.kubeconfig"), "--kubeconfig")
    with t.check("psctl.codes", "exit codes: 0 done, 1 refused or failed, 2 wrong usage") as seen:
        for arguments, code in (
            (["get", "pods"], 0),
            (["get", "pods", "nowhere"], 1),
            (["get", "svc", "hello", "nowhere"], 1),
            (["frobnicate"], 2),
            (["get"], 2),
            (["get", "pods", "--bogus"], 2),
            (["get", "pods", "-o", "xml"], 2),
            (["apply"], 2),
            (["get", "nonsense"], None),
            (["delete", "svc"], 2),
            (["delete", "svc", "nowhere"], 1),
            (["delete", "svc", "nowhere", "--ignore-not-found"], 0),
            (["describe", "pod", "nowhere"], 1),
            (["get", "pods", "-l", "app=none"], 0),
            ([], 2),
        ):
            done = p(*arguments)
            seen(f"{' '.join(arguments)}: {done.code}")
            expect(done.code == code or (code is None and done.code in (1, 2)), f"{arguments}: {done.code}: {brief(done.all, 200)}")
            expect(done.code == 0 or done.err.strip(), f"{arguments}: nothing on stderr")
    with t.check("psctl.streams", "data goes to stdout, everything else to stderr") as seen:
        done = p("get", "pods", "-l", "app=none")
        expect(done.out == "" and "No resources found" in done.err, f"{done}")
        done = p("get", "svc", "hello", "nowhere")
        expect("hello" in done.out and "nowhere" in done.err and "nowhere" not in done.out, f"{done}")
    with t.check("psctl.version", "version, --client") as seen:
        out = ok(one.psctl("version"), "version")
        client = ok(one.psctl("version", "--client", env={"HOME": "/nonexistent"}), "version --client")
        seen(f"{out} | {client}")
        expect(re.search(r"\d+\.\d+\.\d+", out) and re.search(r"\d+\.\d+\.\d+", client) and len(out) > len(client), out)
    with t.check("psctl.delete", "delete by name, -l, -f, --all; it waits until they are gone") as seen:
        ok(p("delete", "svc", "from-json"), "by name")
        expect(one.find("Service", ns, "from-json") is None, "still there")
        one.apply(service(ns, "l1") | {"metadata": {"name": "l1", "namespace": ns, "labels": {"x": "1"}}})
        ok(p("delete", "svc", "-l", "x=1"), "-l")
        expect(one.find("Service", ns, "l1") is None and one.find("Service", ns, "from-url"), "-l")
        begun = time.monotonic()
        ok(p("delete", "-f", folder / "app.yaml"), "-f")
        seen(f"-f after {time.monotonic() - begun:.1f} s")
        expect(one.find("Deployment", ns, "hello") is None and one.find("Ingress", ns, "hello") is None, "-f")
        one.apply(pod(ns, "waited"))
        wait_for("ready", lambda: is_ready(one.object("Pod", ns, "waited")), 20)
        ok(p("delete", "pod", "waited"), "delete pod")
        expect(one.find("Pod", ns, "waited") is None, "psctl delete returned before the pod was gone")
        ok(p("delete", "svc", "--all"), "--all")
        equal(one.items("Service", ns), [], "services left")


# =========================================================================================== main


def selected(patterns):
    if not patterns:
        return SCENARIOS
    wanted = [p for p in patterns.split(",") if p]

    def matches(ident):
        return any(fnmatch.fnmatch(ident, p) or ident == p or ident.startswith(p + ".") for p in wanted)

    return [entry for entry in SCENARIOS if any(matches(ident) for ident in entry.ids)]


def default_repository():
    return pathlib.Path(__file__).resolve().parents[2]


def main():
    repository = default_repository()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="run the scenarios with a check whose id matches (comma-separated)")
    parser.add_argument("--bin", metavar="DIR", default=repository / "target/release", help="where podman-swarm-agent and psctl are")
    parser.add_argument("--hosts", metavar="FILE", default=repository / "tests/cluster/hosts.sh", help="the harness that makes hosts")
    parser.add_argument("--hello", metavar="FILE", help="the example's web server, linked statically")
    parser.add_argument("--logs", metavar="DIR", help="keep the agents' logs here")
    parser.add_argument("--list", action="store_true", help="list the ids and end")
    options = parser.parse_args()
    chosen = selected(options.only)
    if options.list:
        for entry in chosen:
            print(f"{entry.name}: {', '.join(entry.ids)}")
        return 0
    if not chosen:
        parser.error(f"no check matches {options.only!r}")
    if os.geteuid() != 0:
        parser.error("needs root, for namespaces and containers")

    def interrupted(number, _):
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    suite, code = Suite(options), 0
    begun = time.monotonic()
    try:
        suite.set_up()
        print(f"hosts are up after {time.monotonic() - begun:.1f} s; {sum(len(entry.ids) for entry in chosen)} checks", flush=True)
        suite.run(chosen)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        suite.tear_down()
    failed = [verdict for verdict in suite.verdicts if verdict[2] == "FAIL"]
    if suite.measures:
        print("\nmeasured:")
        for what, value in suite.measures:
            print(f"  {what}: {value}")
    if failed:
        print("\nfailed:")
        for ident, title, _, detail, _ in failed:
            print(f"  {ident} {title}\n      {brief(detail, 1500)}")
    print(f"\ntook {time.monotonic() - begun:.0f} s\n{len(suite.verdicts) - len(failed)} passed, {len(failed)} failed")
    return code or (1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main())

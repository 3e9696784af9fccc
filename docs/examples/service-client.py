#!/usr/bin/env python3
"""Finds the pods of a service, by DNS or by the API, and calls one after the other until one answers.

    service-client.py shop.default            by DNS: works in every container and on every node
    API_TOKEN=... service-client.py --api http://127.0.0.1:8080 shop.default
"""

import argparse
import json
import os
import socket
import urllib.request


def by_dns(service: str, port: int) -> list[tuple[str, int]]:
    infos = socket.getaddrinfo(f"{service}.svc.cluster.local", port, type=socket.SOCK_STREAM)
    return [info[4][:2] for info in infos]


def by_api(server: str, service: str) -> list[tuple[str, int]]:
    name, namespace = service.split(".", 1)
    request = urllib.request.Request(
        f"{server}/api/v1/services/{namespace}/{name}/addresses",
        headers={"Authorization": f"Bearer {os.environ['API_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        addresses = json.load(answer)["addresses"]
    return [(host, int(port)) for host, port in (address.rsplit(":", 1) for address in addresses)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", help="name.namespace")
    parser.add_argument("--api", help="ask this API instead of the DNS")
    parser.add_argument("--port", type=int, default=80, help="the service's port (DNS only)")
    options = parser.parse_args()
    if "." not in options.service:
        parser.error("expected name.namespace, for instance shop.default")
    if options.api and "API_TOKEN" not in os.environ:
        parser.error("--api needs API_TOKEN (a node's own token is in <data-dir>/api.token)")

    try:
        found = by_api(options.api, options.service) if options.api else by_dns(options.service, options.port)
    except OSError as error:  # no such name, no such service, nobody there
        raise SystemExit(f"cannot look up {options.service}: {error}")
    for host, port in found:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/", timeout=2) as answer:
                print(answer.read().decode(), end="")
                return
        except OSError as error:
            print(f"{host}:{port}: {error}, trying the next")
    raise SystemExit(f"no endpoint of {options.service} answers")


if __name__ == "__main__":
    main()

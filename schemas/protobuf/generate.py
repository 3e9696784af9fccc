#!/usr/bin/env python3
"""Writes types.txt: what Kubernetes' Go types say of their form in protobuf.

    generate.py API APIMACHINERY > types.txt

Both are checkouts of github.com/kubernetes/api and github.com/kubernetes/apimachinery at the version that is served. Names,
numbers and types of fields come from the tags of their structs; nothing else is taken.

A line `core/v1.Pod` begins a type; each line below it is a field: its number, its name in JSON (`^`: its fields are those of
the type that holds it), its type, and `*` where JSON has zero, too. Types: s text, y bytes, b boolean, i integer,
f double, q quantity, o integer or text, t time, m time in microseconds, r JSON in bytes, a name of a type for a message;
`[]` and `{}` before it for lists and for maps with text as keys.
"""
import re
import sys

PACKAGES = ("core", "apps", "batch", "networking", "discovery", "policy", "storage", "scheduling", "coordination",
            "authorization", "authentication", "autoscaling", "events")
ROOTS = """
core/v1.Namespace core/v1.Node core/v1.Pod core/v1.Service core/v1.Endpoints core/v1.Event core/v1.ConfigMap core/v1.Secret
core/v1.ServiceAccount core/v1.PersistentVolumeClaim core/v1.PersistentVolume core/v1.ReplicationController core/v1.PodTemplate
core/v1.Binding apps/v1.Deployment apps/v1.ReplicaSet apps/v1.StatefulSet apps/v1.DaemonSet apps/v1.ControllerRevision
batch/v1.Job batch/v1.CronJob networking/v1.Ingress networking/v1.IngressClass networking/v1.NetworkPolicy
discovery/v1.EndpointSlice policy/v1.PodDisruptionBudget policy/v1.Eviction storage/v1.StorageClass
scheduling/v1.PriorityClass coordination/v1.Lease events/v1.Event autoscaling/v1.Scale
authorization/v1.SelfSubjectAccessReview authorization/v1.SelfSubjectRulesReview authentication/v1.SelfSubjectReview
authentication/v1.TokenRequest meta/v1.DeleteOptions
""".split()
IMPORTS = {"v1": "core/v1", "corev1": "core/v1", "metav1": "meta/v1", "apiv1": "core/v1"}
SPECIAL = {"resource.Quantity": "q", "intstr.IntOrString": "o", "meta/v1.Time": "t", "meta/v1.MicroTime": "m",
           "meta/v1.FieldsV1": "r", "runtime.RawExtension": "r"}
SCALARS = {"string": "s", "bool": "b", "int32": "i", "int64": "i", "uint32": "i", "uint64": "i", "byte": "y",
           "float64": "f", "types.UID": "s", "types.NodeName": "s"}


def parse(path, package, structs, names):
    text = open(path).read()
    text = re.sub(r"//[^\n]*", "", text)
    for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", text, re.S | re.M):
        structs[f"{package}.{name}"] = (package, body)
    for name, target in re.findall(r"^type (\w+) (?!struct)([^\n{]+)$", text, re.M):
        names[f"{package}.{name}"] = (package, target.strip())


def resolve(package, name, names):
    """Returns the code of a type of Go as a struct of `package` writes it."""
    if name.startswith("*"):
        return resolve(package, name[1:], names)
    if name == "[]byte":
        return "y"
    if name.startswith("[]"):
        return "[]" + resolve(package, name[2:], names)
    if match := re.match(r"map\[\w+(?:\.\w+)?\](.+)", name):
        return "{}" + resolve(package, match[1], names)
    if name in SCALARS:
        return SCALARS[name]
    if "." in name:
        prefix, rest = name.split(".")
        name = f"{IMPORTS[prefix]}.{rest}" if prefix in IMPORTS else name
    else:
        name = f"{package}.{name}"
    if name in SPECIAL:
        return SPECIAL[name]
    if name in names:
        of, target = names[name]
        # A named list is a message that holds it.
        if target.startswith("[]") and target != "[]byte":
            return "items:" + resolve(of, target[2:], names)
        return resolve(of, target, names)
    return name


def main():
    api, machinery = sys.argv[1:]
    structs, names = {}, {}
    for package in PACKAGES:
        parse(f"{api}/{package}/v1/types.go", f"{package}/v1", structs, names)
    parse(f"{machinery}/pkg/apis/meta/v1/types.go", "meta/v1", structs, names)
    done, queue = {}, list(ROOTS)
    while queue:
        name = queue.pop(0)
        if name in done:
            continue
        if name.startswith("items:"):
            item = name.removeprefix("items:")
            done[name] = [f"1 items []{item}"]
            continue
        package, body = structs[name]
        fields = []
        for line in body.splitlines():
            tag = re.search(r"`([^`]*)`", line)
            proto = tag and re.search(r'protobuf:"\w+,(\d+),(\w+)', tag[1])
            if not proto:
                continue
            words = line[: line.index("`")].split()
            go_type = words[-1]
            json = re.search(r'json:"([^",]*)', tag[1])[1]
            code = resolve(package, go_type, names)
            says_zero = "omitempty" not in re.search(r'json:"([^"]*)"', tag[1])[1]
            keep = "*" if go_type.startswith("*") or says_zero and json else ""
            fields.append(f"{proto[1]} {json or '^'} {code}{' ' + keep if keep else ''}")
            bare = code
            while bare[:2] in ("[]", "{}"):
                bare = bare[2:]
            if "." in bare or bare.startswith("items:"):
                queue.append(bare)
        done[name] = fields
    for name in sorted(done):
        print(name)
        for field in done[name]:
            print(field)


main()

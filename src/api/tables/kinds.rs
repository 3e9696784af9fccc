//! Rows of what pods run on, how they are reached, and what happened to them.

use schemas::Object;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Now, SHOWN_ITEMS, array, column, labels, or_none, shortened, text, wide};

pub(super) const PLAIN: &[Column] = &[NAME, AGE];

pub(super) fn plain(object: &Object, now: Now) -> Vec<Value> {
    vec![json!(object.name()), json!(now.age(object))]
}

pub(super) const NAMESPACE: &[Column] = &[NAME, column("Status", "Active or Terminating."), AGE];

pub(super) fn namespace(object: &Object, now: Now) -> Vec<Value> {
    let phase = if object.is_terminating() {
        "Terminating"
    } else {
        "Active"
    };
    vec![json!(object.name()), json!(phase), json!(now.age(object))]
}

pub(super) const NODE: &[Column] = &[
    NAME,
    column("Status", "Whether the node is ready and takes pods."),
    column("Roles", "The roles of the node."),
    AGE,
    column("Version", "Version of the agent."),
    wide("Internal-IP", "Address of the node in the cluster."),
    wide("External-IP", "Address of the node outside the cluster."),
    wide("OS-Image", "Operating system."),
    wide("Kernel-Version", "Kernel."),
    wide("Container-Runtime", "Container engine and its version."),
];

pub(super) fn node(object: &Object, now: Now) -> Vec<Value> {
    const ROLE: &str = "node-role.kubernetes.io/";
    let ready = array(object, "/status/conditions")
        .iter()
        .find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = object
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix(ROLE))
        .collect();
    roles.sort_unstable();
    let address = |kind: &str| {
        let found = array(object, "/status/addresses")
            .iter()
            .find(|address| address["type"] == kind);
        or_none(found.map_or("", |address| text(address, "address")))
    };
    let info = |field: &str| match object.str_at(&format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".to_owned(),
        value => value.to_owned(),
    };
    vec![
        json!(object.name()),
        json!(status),
        json!(or_none(roles.join(","))),
        json!(now.age(object)),
        json!(object.str_at("/status/nodeInfo/kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(info("osImage")),
        json!(info("kernelVersion")),
        json!(info("containerRuntimeVersion")),
    ]
}

pub(super) const SERVICE: &[Column] = &[
    NAME,
    column("Type", "How the service is reached."),
    column(
        "Cluster-IP",
        "Virtual address; None: its name gives the pods' addresses.",
    ),
    column("External-IP", "Address outside the cluster."),
    column("Port(s)", "Ports of the service."),
    AGE,
    wide("Selector", "Labels of the pods behind it."),
];

pub(super) fn service(object: &Object, now: Now) -> Vec<Value> {
    let kind = match object.str_at("/spec/type") {
        "" => "ClusterIP",
        kind => kind,
    };
    let ports: Vec<String> = array(object, "/spec/ports")
        .iter()
        .map(|port| {
            let protocol = match text(port, "protocol") {
                "" => "TCP",
                protocol => protocol,
            };
            match port["nodePort"].as_i64().unwrap_or_default() {
                0 => format!("{}/{protocol}", port["port"]),
                node_port => format!("{}:{node_port}/{protocol}", port["port"]),
            }
        })
        .collect();
    vec![
        json!(object.name()),
        json!(kind),
        json!(or_none(object.str_at("/spec/clusterIP"))),
        json!(external_address(object, kind)),
        json!(or_none(ports.join(","))),
        json!(now.age(object)),
        json!(labels(
            object.pointer("/spec/selector").and_then(Value::as_object)
        )),
    ]
}

fn external_address(service: &Object, kind: &str) -> String {
    let mut addresses: Vec<&str> = Vec::new();
    match kind {
        "ExternalName" => return or_none(service.str_at("/spec/externalName")),
        "LoadBalancer" => addresses.extend(balancer_addresses(service)),
        _ => {}
    }
    addresses.extend(
        array(service, "/spec/externalIPs")
            .iter()
            .filter_map(Value::as_str),
    );
    match (addresses.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        _ => or_none(addresses.join(",")),
    }
}

fn balancer_addresses(object: &Object) -> impl Iterator<Item = &str> {
    array(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|entry| match text(entry, "ip") {
            "" => text(entry, "hostname"),
            address => address,
        })
}

pub(super) const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", "Addresses and ports."), AGE];

pub(super) fn endpoints(object: &Object, now: Now) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in array(object, "/subsets") {
        let list = |field: &str| subset[field].as_array().cloned().unwrap_or_default();
        for address in list("addresses") {
            let ports = list("ports");
            if ports.is_empty() {
                all.push(text(&address, "ip").to_owned());
            }
            all.extend(
                ports
                    .iter()
                    .map(|port| format!("{}:{}", text(&address, "ip"), port["port"])),
            );
        }
    }
    vec![
        json!(object.name()),
        json!(or_none(shortened(&all))),
        json!(now.age(object)),
    ]
}

pub(super) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", "Kind of the addresses."),
    column("Ports", "Ports of the endpoints."),
    column("Endpoints", "Addresses."),
    AGE,
];

pub(super) fn endpoint_slice(object: &Object, now: Now) -> Vec<Value> {
    let ports: Vec<String> = array(object, "/ports")
        .iter()
        .map(|port| port["port"].to_string())
        .collect();
    let addresses: Vec<String> = array(object, "/endpoints")
        .iter()
        .filter_map(|endpoint| endpoint["addresses"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let unset = |text: String| {
        if text.is_empty() {
            "<unset>".to_owned()
        } else {
            text
        }
    };
    vec![
        json!(object.name()),
        json!(object.str_at("/addressType")),
        json!(unset(shortened(&ports))),
        json!(unset(shortened(&addresses))),
        json!(now.age(object)),
    ]
}

pub(super) const EVENT: &[Column] = &[
    column("Last Seen", "Time since it happened last."),
    column("Type", "Normal or Warning."),
    column("Reason", "Why, in one word."),
    column("Object", "What it is about."),
    wide("Subobject", "Which part of the object."),
    wide("Source", "Who saw it, and where."),
    column("Message", "What happened."),
    wide("First Seen", "Time since it happened first."),
    wide("Count", "How often it happened."),
    Column {
        name: "Name",
        kind: "string",
        format: "name",
        priority: 1,
        description: "Name of the event.",
    },
];

/// An Event of the newer kind says when in `eventTime` and `series`, and who in `reportingComponent` and `reportingInstance`.
pub(super) fn event(object: &Object, now: Now) -> Vec<Value> {
    let first_of = |pointers: [&str; 2]| {
        let said = pointers.map(|pointer| object.str_at(pointer));
        said.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
    };
    let first = first_of(["/firstTimestamp", "/eventTime"]);
    let last = match first_of(["/series/lastObservedTime", "/lastTimestamp"]) {
        "" => first,
        last => last,
    };
    let count = match object.pointer("/series") {
        Some(_) => object.i64_at("/series/count").unwrap_or_default(),
        None => object.i64_at("/count").filter(|count| *count != 0).unwrap_or(1),
    };
    let mut about = object.str_at("/involvedObject/kind").to_ascii_lowercase();
    if !object.str_at("/involvedObject/name").is_empty() {
        about = format!("{about}/{}", object.str_at("/involvedObject/name"));
    }
    let mut source = first_of(["/source/component", "/reportingComponent"]).to_owned();
    let instance = first_of(["/source/host", "/reportingInstance"]);
    if !instance.is_empty() {
        source = format!("{source}, {instance}");
    }
    vec![
        json!(now.since(last)),
        json!(object.str_at("/type")),
        json!(object.str_at("/reason")),
        json!(about),
        json!(object.str_at("/involvedObject/fieldPath")),
        json!(source),
        json!(object.str_at("/message").trim()),
        json!(now.since(first)),
        json!(count.to_string()),
        json!(object.name()),
    ]
}

/// A label selector as text: `app=web,tier in (a,b),!old`.
pub(super) fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else {
        return String::new();
    };
    let mut parts: Vec<String> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    parts.sort_unstable();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = text(expression, "key");
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match text(expression, "operator") {
            "In" => parts.push(format!("{key} in ({})", values.join(","))),
            "NotIn" => parts.push(format!("{key} notin ({})", values.join(","))),
            "Exists" => parts.push(key.to_owned()),
            "DoesNotExist" => parts.push(format!("!{key}")),
            _ => {}
        }
    }
    parts.join(",")
}

pub(super) const INGRESS: &[Column] = &[
    NAME,
    column("Class", "Which ingress controller serves it."),
    column("Hosts", "Host names of its rules."),
    column("Address", "Where it answers."),
    column("Ports", "Ports it answers on."),
    AGE,
];

pub(super) fn ingress(object: &Object, now: Now) -> Vec<Value> {
    let hosts: Vec<&str> = array(object, "/spec/rules")
        .iter()
        .map(|rule| text(rule, "host"))
        .filter(|host| !host.is_empty())
        .collect();
    let shown = match hosts.len() {
        0 => "*".to_owned(),
        count if count <= SHOWN_ITEMS => hosts.join(","),
        count => format!(
            "{} + {} more...",
            hosts[..SHOWN_ITEMS].join(","),
            count - SHOWN_ITEMS
        ),
    };
    let ports = if array(object, "/spec/tls").is_empty() {
        "80"
    } else {
        "80, 443"
    };
    vec![
        json!(object.name()),
        json!(or_none(object.str_at("/spec/ingressClassName"))),
        json!(shown),
        json!(balancer_addresses(object).collect::<Vec<_>>().join(",")),
        json!(ports),
        json!(now.age(object)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cells: fn(&Object, Now) -> Vec<Value>, object: Value, expected: &[Value]) {
        let object = Object::from_value(object).unwrap();
        assert_eq!(cells(&object, Now(60)), expected);
    }

    const BORN: &str = "1970-01-01T00:00:30Z";

    #[test]
    fn events_say_when_and_who_in_either_way() {
        let about = json!({"kind": "Pod", "name": "web", "fieldPath": "spec"});
        let older = json!({"metadata": {"name": "web.1"}, "involvedObject": about, "type": "Normal", "reason": "Told",
            "message": "twice\n", "source": {"component": "kubelet", "host": "n1"}, "reportingComponent": "other",
            "firstTimestamp": BORN, "lastTimestamp": "1970-01-01T00:00:50Z", "count": 2});
        let newer = json!({"metadata": {"name": "web.1"}, "involvedObject": {"kind": "Pod"}, "type": "Normal",
            "reason": "Told", "message": "often", "reportingComponent": "puller", "reportingInstance": "puller-1",
            "eventTime": "1970-01-01T00:00:30.000001Z"});
        let mut series = newer.clone();
        series["series"] = json!({"count": 7, "lastObservedTime": "1970-01-01T00:00:55.000001Z"});
        let row = |values: [&str; 10]| values.map(Value::from);
        let from = "puller, puller-1";
        check(
            event,
            older,
            &row([
                "10s",
                "Normal",
                "Told",
                "pod/web",
                "spec",
                "kubelet, n1",
                "twice",
                "30s",
                "2",
                "web.1",
            ]),
        );
        check(
            event,
            newer,
            &row([
                "30s", "Normal", "Told", "pod", "", from, "often", "30s", "1", "web.1",
            ]),
        );
        check(
            event,
            series,
            &row([
                "5s", "Normal", "Told", "pod", "", from, "often", "30s", "7", "web.1",
            ]),
        );
    }

    #[test]
    fn services_show_ports_and_addresses() {
        check(
            service,
            json!({"metadata": {"name": "web", "creationTimestamp": BORN}, "spec": {"clusterIP": "None",
                "selector": {"b": "2", "a": "1"}, "ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]}}),
            &[
                "web",
                "ClusterIP",
                "None",
                "<none>",
                "80/TCP,53:30053/UDP",
                "30s",
                "a=1,b=2",
            ]
            .map(Value::from),
        );
    }

    #[test]
    fn nodes_show_whether_they_take_pods() {
        check(
            |object, now| node(object, now)[..5].to_vec(),
            json!({"metadata": {"name": "n1", "creationTimestamp": BORN}, "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}}}),
            &["n1", "Ready,SchedulingDisabled", "<none>", "30s", "v1"].map(Value::from),
        );
    }
}

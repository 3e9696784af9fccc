//! Endpoints of services.

use super::*;

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

fn service(spec: Value) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default", "uid": "service-uid" }, "spec": spec,
    }))
}

fn web() -> Object {
    service(
        json!({ "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] }),
    )
}

fn pod(name: &str, node: &str, address: &str, ready: bool) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("{name}-uid"), "labels": { "app": "web" } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIP": address,
                    "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
    }))
}

fn of(service: &Object, pods: &[Object]) -> Projection {
    let pods: Vec<&Object> = pods.iter().collect();
    project(service, &pods, |node| node == "dead")
}

/// Address and readiness of all endpoints in all slices.
fn shown(projection: &Projection) -> Vec<(String, bool)> {
    let entries = projection
        .slices
        .iter()
        .flat_map(|slice| slice.0["endpoints"].as_array().unwrap());
    entries
        .map(|entry| {
            let address = entry["addresses"][0].as_str().unwrap().to_owned();
            (address, entry["conditions"]["ready"] == true)
        })
        .collect()
}

#[test]
fn endpoints_name_pod_node_and_target_port() {
    let projection = of(&web(), &[pod("a", "node1", "10.244.1.2", true)]);
    let slice = &projection.slices[0];
    assert_eq!(slice.kind(), Some(Kind::EndpointSlice));
    assert_eq!(slice.label(SERVICE_NAME_LABEL), Some("web"));
    assert_eq!(slice.name().len(), "web-".len() + SUFFIX_LENGTH);
    assert_eq!(
        slice.0["ports"],
        json!([{ "name": "http", "protocol": "TCP", "port": 8080 }])
    );
    let endpoint = &slice.0["endpoints"][0];
    assert_eq!(endpoint["nodeName"], "node1");
    assert_eq!(endpoint["targetRef"]["name"], "a");
    let subset = &projection.endpoints.0["subsets"][0];
    assert_eq!(subset["addresses"][0]["ip"], "10.244.1.2");
    assert_eq!(subset["ports"][0]["port"], 8080);
}

#[test]
fn only_living_pods_are_behind_a_service() {
    let mut other = pod("other", "node1", "10.244.1.9", true);
    other.set(&["metadata", "labels", "app"], "db");
    let mut done = pod("done", "node1", "10.244.1.8", true);
    done.set(&["status", "phase"], "Succeeded");
    let mut pending = pod("pending", "node1", "", false);
    pending.remove(&["status", "podIP"]);
    let mut terminating = pod("terminating", "node1", "10.244.1.4", true);
    terminating.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
    let pods = [
        other,
        done,
        pending,
        terminating,
        pod("lost", "dead", "10.244.7.7", true),
        pod("ready", "node1", "10.244.1.3", true),
        pod("unready", "node2", "10.244.2.3", false),
    ];
    let expected = [("10.244.1.3", true), ("10.244.1.4", false), ("10.244.2.3", false)];
    let expected = expected.map(|(address, ready)| (address.to_owned(), ready));
    assert_eq!(shown(&of(&web(), &pods)), expected);
}

#[test]
fn unready_pods_are_published_on_request() {
    let mut service = web();
    service.set(&["spec", "publishNotReadyAddresses"], true);
    let projection = of(&service, &[pod("a", "node1", "10.244.1.2", false)]);
    assert_eq!(shown(&projection), [("10.244.1.2".to_owned(), true)]);
    assert!(projection.endpoints.pointer("/subsets").unwrap()[0]["notReadyAddresses"].is_null());
}

#[test]
fn pods_that_resolve_a_port_differently_are_in_different_slices() {
    let mut other = pod("b", "node1", "10.244.1.3", true);
    other.set(
        &["spec", "containers"],
        json!([{ "name": "c", "ports": [{ "name": "http", "containerPort": 9090 }] }]),
    );
    let projection = of(&web(), &[pod("a", "node1", "10.244.1.2", true), other]);
    let ports: Vec<u64> = projection
        .slices
        .iter()
        .map(|slice| slice.0["ports"][0]["port"].as_u64().unwrap())
        .collect();
    assert_eq!(ports, [8080, 9090]);
    assert_ne!(projection.slices[0].name(), projection.slices[1].name());
}

#[test]
fn a_service_without_pods_has_an_empty_slice() {
    let projection = of(&web(), &[]);
    assert_eq!(projection.slices.len(), 1);
    assert_eq!(shown(&projection), []);
    assert_eq!(projection.endpoints.0["subsets"], json!([]));
}

#[test]
fn a_dead_node_that_came_back_under_its_name_is_not_dead() {
    let node = |name: &str, liveness| {
        let facts = crate::ports::NodeFacts {
            name: name.to_owned(),
            ..Default::default()
        };
        Arc::new(crate::ports::NodeObservation {
            liveness,
            since: Default::default(),
            in_sync: true,
            facts,
            pods: BTreeMap::new(),
        })
    };
    let nodes = [
        ("1", node("a", Liveness::Dead)),
        ("2", node("a", Liveness::Alive)),
        ("3", node("b", Liveness::Dead)),
        ("4", node("c", Liveness::AgentDown)),
    ];
    let cluster = Cluster {
        me: store::NodeId("2".to_owned()),
        nodes: nodes
            .into_iter()
            .map(|(id, node)| (store::NodeId(id.to_owned()), node))
            .collect(),
    };
    assert_eq!(dead_nodes(&cluster), BTreeSet::from(["b".to_owned()]));
}

#[test]
fn the_service_of_the_api_leads_to_every_live_node_that_serves_it() {
    let observation = |liveness, address: &str, api_port| {
        let facts = crate::ports::NodeFacts {
            address: address.parse().ok(),
            api_port,
            ..Default::default()
        };
        Arc::new(crate::ports::NodeObservation {
            liveness,
            since: crate::ports::Moment::default(),
            in_sync: true,
            facts,
            pods: BTreeMap::new(),
        })
    };
    let nodes = [
        ("1", observation(Liveness::Alive, "192.0.2.1", 8443)),
        ("2", observation(Liveness::Alive, "192.0.2.2", 8443)),
        ("3", observation(Liveness::Alive, "192.0.2.3", 9443)),
        ("4", observation(Liveness::Alive, "192.0.2.4", 0)),
        ("5", observation(Liveness::Dead, "192.0.2.5", 8443)),
    ];
    let cluster = Cluster {
        me: store::NodeId("1".to_owned()),
        nodes: nodes
            .map(|(id, node)| (store::NodeId(id.to_owned()), node))
            .into(),
    };
    let known = Known::of(&cluster);
    let mut service = service(json!({"ports": [{"name": "https", "port": 8443}]}));
    service.set(&["metadata", "creationTimestamp"], "2026-11-28T00:00:00Z");
    let projection = project_api(&service, &known.api);
    let expected = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| (address.to_owned(), true));
    assert_eq!(shown(&projection), expected);
    assert_eq!(
        projection.endpoints.pointer("/subsets"),
        Some(&json!([
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": [{"name": "https", "protocol": "TCP", "port": 8443}]},
            {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "https", "protocol": "TCP", "port": 9443}]},
        ]))
    );
    for object in projection.slices.iter().chain([&projection.endpoints]) {
        assert_eq!(schemas::validate::validate(object), [], "{object:?}");
    }
}

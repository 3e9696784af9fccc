//! Services, namespaces and endpoints: defaults and validation. Pods have [`crate::pod`].

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::choices;
use crate::defaults::{self, Tree};
use crate::names;
use crate::node::{Errors, Node};

/// Puts the defaults into a Service. Without a virtual address of its own (DESIGN §9) it is `clusterIP: None`.
pub(crate) fn default_service(root: &mut Tree) {
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    defaults::set_text(spec, "type", "ClusterIP");
    defaults::set_text(spec, "sessionAffinity", "None");
    if defaults::text(spec, "sessionAffinity") == "ClientIP" {
        let config = defaults::make(spec, "sessionAffinityConfig");
        if let Some(client) = config.and_then(|config| defaults::make(config, "clientIP")) {
            defaults::set(client, "timeoutSeconds", 10_800);
        }
    }
    let kind = defaults::text(spec, "type").to_owned();
    if kind != "ExternalName" {
        if spec.get("clusterIP") == Some(&json!("")) {
            spec.remove("clusterIP");
        }
        defaults::set(spec, "clusterIP", "None");
        let address = spec.get("clusterIP").cloned();
        defaults::set(spec, "clusterIPs", json!([address]));
        defaults::set(spec, "internalTrafficPolicy", "Cluster");
        // The pod network has no other addresses.
        defaults::set(spec, "ipFamilies", json!(["IPv4"]));
        defaults::set_text(spec, "ipFamilyPolicy", "SingleStack");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        defaults::set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in defaults::each(spec, "ports") {
        defaults::set_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        let is_unset =
            |target: &Value| matches!(target, Value::Null) || target == &json!(0) || target == &json!("");
        if port.get("targetPort").is_none_or(is_unset) && !number.is_null() {
            port.insert("targetPort".to_owned(), number);
        }
    }
}

/// Puts the label into a Namespace that selectors find it by.
pub(crate) fn default_namespace(root: &mut Tree) {
    let Some(metadata) = defaults::map(root, "metadata") else {
        return;
    };
    let name = metadata.get("name").cloned().unwrap_or_default();
    if let (Value::String(_), Some(labels)) = (&name, defaults::make(metadata, "labels")) {
        defaults::set(labels, "kubernetes.io/metadata.name", name);
    }
}

/// Puts the defaults into Endpoints.
pub(crate) fn default_endpoints(root: &mut Tree) {
    for subset in defaults::each(root, "subsets") {
        defaults::each(subset, "ports").for_each(|port| defaults::set_text(port, "protocol", "TCP"));
    }
}

/// Puts the defaults into an EndpointSlice.
pub(crate) fn default_endpoint_slice(root: &mut Tree) {
    for port in defaults::each(root, "ports") {
        defaults::set(port, "name", "");
        defaults::set(port, "protocol", "TCP");
    }
}

/// Checks a Service; `written` is the object without defaults.
pub(crate) fn validate_service(root: &Node<'_>, written: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    let kind = spec.at("type");
    errors.one_of(&kind, choices::SERVICE_TYPES);
    errors.one_of(&spec.at("sessionAffinity"), choices::SERVICE_AFFINITIES);
    crate::meta::validate_labels(&spec.at("selector"), errors);
    let external = kind.text() == "ExternalName";
    if external {
        let name = spec.at("externalName");
        match name.text().trim_end_matches('.') {
            "" => errors.required(&name, ""),
            trimmed => {
                if let Some(problem) = names::dns_subdomain(trimmed) {
                    errors.invalid(&name, problem);
                }
            }
        }
    }
    let address = spec.at("clusterIP");
    if !matches!(address.text(), "" | "None") {
        errors.address(&address);
    }
    spec.at("externalIPs")
        .items()
        .for_each(|address| errors.address(&address));

    let ports = spec.at("ports");
    let headless = written.at("spec").at("clusterIP").text() == "None";
    if ports.is_empty_list() && !external && !headless {
        errors.required(&ports, "");
    }
    let count = ports.items().count();
    let (mut port_names, mut numbers) = (HashSet::new(), HashSet::new());
    for port in ports.items() {
        let name = port.at("name");
        if name.text().is_empty() {
            if count > 1 {
                errors.required(&name, "");
            }
        } else {
            errors.form(&name, names::dns_label);
            if !port_names.insert(name.text()) {
                errors.duplicate(&name);
            }
        }
        let (number, protocol) = (port.at("port"), port.at("protocol"));
        errors.port(&number);
        errors.one_of(&protocol, choices::PROTOCOLS);
        if number.is_set() && !numbers.insert((number.int(), protocol.text())) {
            errors.duplicate(&port);
        }
        if port.at("targetPort").is_set() {
            errors.port(&port.at("targetPort"));
        }
        let node_port = port.at("nodePort");
        if node_port.int().is_some_and(|number| number != 0) {
            errors.port(&node_port);
            if !matches!(kind.text(), "NodePort" | "LoadBalancer") {
                errors.forbidden(
                    &node_port,
                    format!("may not be used when `type` is '{}'", kind.text()),
                );
            }
        }
    }
}

/// Checks Endpoints.
pub(crate) fn validate_endpoints(root: &Node<'_>, errors: &mut Errors) {
    for subset in root.at("subsets").items() {
        for list in ["addresses", "notReadyAddresses"] {
            subset
                .at(list)
                .items()
                .for_each(|address| errors.address(&address.at("ip")));
        }
        subset
            .at("ports")
            .items()
            .for_each(|port| errors.port(&port.at("port")));
    }
}

/// Checks an EndpointSlice.
pub(crate) fn validate_endpoint_slice(root: &Node<'_>, errors: &mut Errors) {
    let family = root.at("addressType");
    errors.one_of(&family, choices::ADDRESS_TYPES);
    for endpoint in root.at("endpoints").items() {
        let addresses = endpoint.at("addresses");
        if addresses.is_empty_list() {
            errors.required(&addresses, "must contain at least 1 endpoint");
        }
        for address in addresses.items() {
            let fits = match (family.text(), address.text().parse()) {
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => true,
                ("IPv4" | "IPv6", _) => false,
                _ => true,
            };
            if !fits {
                errors.invalid(&address, format!("must be a valid {} address", family.text()));
            }
        }
    }
}

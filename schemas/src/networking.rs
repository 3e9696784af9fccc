//! Ingresses, their classes and NetworkPolicies: defaults and validation.

use std::net::IpAddr;

use serde_json::json;

use crate::choices;
use crate::defaults::{self, Tree};
use crate::names;
use crate::node::{Errors, Node};
use crate::selector::LabelSelector;

/// Puts the defaults into an IngressClass.
pub(crate) fn default_ingress_class(root: &mut Tree) {
    if let Some(spec) = defaults::map(root, "spec")
        && let Some(parameters) = defaults::map(spec, "parameters")
    {
        defaults::set_text(parameters, "scope", "Cluster");
    }
}

/// Puts the defaults into a NetworkPolicy.
pub(crate) fn default_policy(root: &mut Tree) {
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    for rules in ["ingress", "egress"] {
        for rule in defaults::each(spec, rules) {
            defaults::each(rule, "ports").for_each(|port| defaults::set_text(port, "protocol", "TCP"));
        }
    }
    let is_empty = |field: &str| {
        spec.get(field)
            .and_then(|list| list.as_array())
            .is_none_or(Vec::is_empty)
    };
    if is_empty("policyTypes") {
        let types = if is_empty("egress") {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
        spec.insert("policyTypes".to_owned(), types);
    }
}

/// Checks the spec of an IngressClass.
pub(crate) fn validate_ingress_class(spec: &Node<'_>, errors: &mut Errors) {
    let controller = spec.at("controller");
    if controller.text().is_empty() {
        errors.required(&controller, "");
    } else if !controller.text().contains('/') {
        errors.invalid(
            &controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        );
    }
    let parameters = spec.at("parameters");
    if parameters.is_set() {
        for field in ["kind", "name"] {
            if parameters.at(field).text().is_empty() {
                errors.required(&parameters.at(field), "");
            }
        }
        let (scope, namespace) = (parameters.at("scope"), parameters.at("namespace"));
        errors.one_of(&scope, &["Cluster", "Namespace"]);
        match scope.text() {
            "Namespace" if namespace.text().is_empty() => {
                errors.required(&namespace, "`parameters.scope` is set to 'Namespace'");
            }
            "Cluster" if namespace.is_set() => {
                errors.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'");
            }
            _ => {}
        }
    }
}

/// Checks the spec of a NetworkPolicy.
pub(crate) fn validate_policy(spec: &Node<'_>, errors: &mut Errors) {
    validate_selector(&spec.at("podSelector"), errors);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(rules).items() {
            rule.at("ports")
                .items()
                .for_each(|port| validate_policy_port(&port, errors));
            rule.at(peers)
                .items()
                .for_each(|peer| validate_policy_peer(&peer, errors));
        }
    }
    for kind in spec.at("policyTypes").items() {
        errors.one_of(&kind, choices::POLICY_TYPES);
    }
}

fn validate_policy_port(entry: &Node<'_>, errors: &mut Errors) {
    errors.one_of(&entry.at("protocol"), choices::PROTOCOLS);
    let (port, end) = (entry.at("port"), entry.at("endPort"));
    if port.is_set() {
        errors.port(&port);
    }
    if end.is_set() {
        match port.int() {
            None if !port.is_set() => errors.required(&port, "must be specified when `endPort` is set"),
            None => errors.invalid(&end, "may not be specified when `port` is non-numeric"),
            Some(port) if end.int().is_some_and(|end| end < port) => {
                errors.invalid(&end, "must be greater than or equal to `port`");
            }
            Some(_) => errors.port(&end),
        }
    }
}

fn validate_policy_peer(peer: &Node<'_>, errors: &mut Errors) {
    let (pods, namespaces, block) = (
        peer.at("podSelector"),
        peer.at("namespaceSelector"),
        peer.at("ipBlock"),
    );
    validate_selector(&pods, errors);
    validate_selector(&namespaces, errors);
    let has_selector = pods.is_set() || namespaces.is_set();
    if !has_selector && !block.is_set() {
        errors.required(peer, "must specify a peer");
    }
    if !block.is_set() {
        return;
    }
    if has_selector {
        errors.forbidden(peer, "may not specify both ipBlock and another peer");
    }
    let (exceptions, whole) = (block.at("except"), range(block.at("cidr").text()));
    for exception in exceptions.items() {
        if let (Some(whole), Some(part)) = (whole, range(exception.text()))
            && !is_part(part, whole)
        {
            errors.invalid(&exception, "must be a strict subset of `cidr`");
        }
    }
    for range in [block.at("cidr")].into_iter().chain(exceptions.items()) {
        if range.text().is_empty() {
            errors.required(&range, "");
        } else if !is_range(range.text()) {
            errors.invalid(
                &range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
}

/// `address/bits`
fn is_range(text: &str) -> bool {
    range(text).is_some()
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let (address, bits) = (address.parse().ok()?, bits.parse().ok()?);
    let most = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    (bits <= most).then_some((address, bits))
}

/// Tells whether a range lies in another that is larger.
fn is_part((part, part_bits): (IpAddr, u8), (whole, whole_bits): (IpAddr, u8)) -> bool {
    // To the left, so that the network's bits come first in both families.
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let differing = number(part) ^ number(whole);
    part.is_ipv4() == whole.is_ipv4()
        && part_bits > whole_bits
        && differing.leading_zeros() >= u32::from(whole_bits)
}

/// Checks a label selector that is there.
pub(crate) fn validate_selector(selector: &Node<'_>, errors: &mut Errors) {
    if selector.is_set()
        && let Err(error) = LabelSelector::from_object(selector.value)
    {
        errors.invalid(selector, error.to_string());
    }
}

/// Checks an Ingress.
pub(crate) fn validate_ingress(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    let (rules, default_backend) = (spec.at("rules"), spec.at("defaultBackend"));
    if rules.is_empty_list() && !default_backend.is_set() {
        errors.invalid(&spec, "either `defaultBackend` or `rules` must be specified");
    }
    if default_backend.is_set() {
        validate_backend(&default_backend, errors);
    }
    let class = spec.at("ingressClassName");
    errors.form(&class, names::dns_subdomain);
    for tls in spec.at("tls").items() {
        tls.at("hosts")
            .items()
            .for_each(|host| validate_host(&host, errors));
    }
    for rule in rules.items() {
        let host = rule.at("host");
        if !host.text().is_empty() {
            validate_host(&host, errors);
        }
        let paths = rule.at("http").at("paths");
        if rule.at("http").is_set() && paths.is_empty_list() {
            errors.required(&paths, "");
        }
        for path in paths.items() {
            validate_path(&path, errors);
            validate_backend(&path.at("backend"), errors);
        }
    }
}

fn validate_host(host: &Node<'_>, errors: &mut Errors) {
    if host.text().parse::<IpAddr>().is_ok() {
        errors.invalid(host, "must be a DNS name, not an IP address");
    } else if host.text().contains('*') {
        errors.form(host, names::wildcard_dns_subdomain);
    } else {
        errors.form(host, names::dns_subdomain);
    }
}

fn validate_path(entry: &Node<'_>, errors: &mut Errors) {
    let (path, kind) = (entry.at("path"), entry.at("pathType"));
    if kind.text().is_empty() {
        errors.required(&kind, "pathType must be specified");
    } else {
        errors.one_of(&kind, choices::PATH_TYPES);
    }
    let text = path.text();
    if text.is_empty() && kind.text() == "ImplementationSpecific" {
        return;
    }
    if !text.starts_with('/') {
        return errors.invalid(&path, "must be an absolute path");
    }
    if kind.text() == "ImplementationSpecific" {
        return;
    }
    for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
        if text.contains(sequence) {
            errors.invalid(&path, format!("must not contain '{sequence}'"));
        }
    }
    for suffix in ["/..", "/."] {
        if text.ends_with(suffix) {
            errors.invalid(&path, format!("cannot end with '{suffix}'"));
        }
    }
}

fn validate_backend(backend: &Node<'_>, errors: &mut Errors) {
    let (service, resource) = (backend.at("service"), backend.at("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => errors.invalid(backend, "cannot set both resource and service backends"),
        (false, false) => errors.required(backend, "resource or service backend is required"),
        (false, true) => {}
        (true, false) => {
            errors.required_form(&service.at("name"), names::dns_1035_label);
            let port = service.at("port");
            let (name, number) = (port.at("name"), port.at("number"));
            let has_number = number.int().is_some_and(|number| number != 0);
            match (!name.text().is_empty(), has_number) {
                (true, true) => errors.invalid(&port, "cannot set both port name & port number"),
                (false, false) => errors.required(&port, "port name or number is required"),
                (true, false) => errors.form(&name, names::port_name),
                (false, true) => errors.port(&number),
            }
        }
    }
}

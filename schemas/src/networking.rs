//! Ingresses: validation. They have no defaults.

use std::net::IpAddr;

use crate::names;
use crate::node::{Errors, Node};

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
        errors.one_of(&kind, &["Exact", "ImplementationSpecific", "Prefix"]);
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

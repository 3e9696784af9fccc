//! Pods and pod templates: defaults and validation of `PodSpec`.
//!
//! Source: `pkg/apis/core/v1/defaults.go` and `pkg/apis/core/validation` of Kubernetes 1.33.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::choices;
use crate::defaults::{self, Tree};
use crate::fields;
use crate::node::{Errors, Node};
use crate::quantity::Quantity;
use crate::{Kind, deletion, names};

// ---------------------------------------------------------------- defaults

/// Puts the defaults into a pod's `spec`.
pub(crate) fn default_spec(spec: &mut Tree) {
    defaults::set_text(spec, "restartPolicy", "Always");
    defaults::set_text(spec, "dnsPolicy", "ClusterFirst");
    defaults::set(
        spec,
        "terminationGracePeriodSeconds",
        deletion::DEFAULT_GRACE_SECONDS,
    );
    defaults::set_text(spec, "schedulerName", "default-scheduler");
    defaults::set(spec, "securityContext", Tree::new());
    for list in ["initContainers", "containers"] {
        defaults::each(spec, list).for_each(default_container);
    }
    defaults::each(spec, "volumes").for_each(default_volume);
}

/// Puts the defaults into a pod's own spec; templates do not have all of them (`SetDefaults_Pod`).
pub(crate) fn default_pod(spec: &mut Tree) {
    default_spec(spec);
    defaults::set(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in defaults::each(spec, list) {
            for port in defaults::each(container, "ports").filter(|_| host_network) {
                if let Some(number) = port.get("containerPort").cloned() {
                    defaults::set(port, "hostPort", number);
                }
            }
            // A limit without a request is the request too.
            if let Some(resources) = defaults::map(container, "resources")
                && let Some(Value::Object(limits)) = resources.get("limits").cloned()
                && let Some(requests) = defaults::make(resources, "requests")
            {
                limits
                    .into_iter()
                    .for_each(|(name, limit)| defaults::set(requests, &name, limit));
            }
        }
    }
}

fn default_container(container: &mut Tree) {
    defaults::set_text(container, "terminationMessagePath", "/dev/termination-log");
    defaults::set_text(container, "terminationMessagePolicy", "File");
    let policy = default_pull_policy(defaults::text(container, "image"));
    defaults::set_text(container, "imagePullPolicy", policy);
    for port in defaults::each(container, "ports") {
        defaults::set_text(port, "protocol", "TCP");
    }
    for variable in defaults::each(container, "env") {
        let source = defaults::map(variable, "valueFrom");
        if let Some(reference) = source.and_then(|source| defaults::map(source, "fieldRef")) {
            defaults::set_text(reference, "apiVersion", "v1");
        }
    }
    defaults::set(container, "resources", Tree::new());
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = defaults::map(container, probe) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                // Zero is how Go writes "not set".
                if probe.get(field) == Some(&json!(0)) {
                    probe.remove(field);
                }
                defaults::set(probe, field, value);
            }
            default_handler(probe);
        }
    }
    if let Some(lifecycle) = defaults::map(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = defaults::map(lifecycle, hook) {
                default_handler(hook);
            }
        }
    }
}

fn default_handler(handler: &mut Tree) {
    if let Some(request) = defaults::map(handler, "httpGet") {
        defaults::set_text(request, "path", "/");
        defaults::set_text(request, "scheme", "HTTP");
    }
}

/// Returns the fields of a volume that say what it is made of.
fn volume_sources() -> impl Iterator<Item = &'static &'static str> {
    let union = fields::union_at(Kind::Pod, &["spec", "volumes"]);
    union.into_iter().flat_map(|union| union.members)
}

fn default_volume(volume: &mut Tree) {
    if !volume_sources().any(|source| volume.get(*source).is_some_and(|source| !source.is_null())) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(host_path) = defaults::map(volume, "hostPath") {
        defaults::set(host_path, "type", "");
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = defaults::map(volume, source) {
            defaults::set(source, "defaultMode", 0o644);
        }
    }
}

/// Returns the `imagePullPolicy` of a container that says none: `Always` for an image with the tag `latest` or none,
/// `IfNotPresent` for one with another tag or a digest.
pub fn default_pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

// ---------------------------------------------------------------- validation

/// Checks a pod's `spec`.
pub(crate) fn validate_spec(spec: &Node<'_>, errors: &mut Errors) {
    validate_spec_with_claims(spec, HashSet::new(), errors);
}

/// Checks the `spec` of pods that get volumes of these names beside their own: a StatefulSet's claims.
pub(crate) fn validate_spec_with_claims(spec: &Node<'_>, claims: HashSet<&str>, errors: &mut Errors) {
    errors.one_of(&spec.at("restartPolicy"), choices::RESTART_POLICIES);
    let dns_policy = spec.at("dnsPolicy");
    errors.one_of(&dns_policy, choices::DNS_POLICIES);
    let nameservers = spec.at("dnsConfig").at("nameservers");
    if dns_policy.text() == "None" && nameservers.is_empty_list() {
        errors.required(
            &nameservers,
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    nameservers.items().for_each(|address| errors.address(&address));
    errors.at_least(&spec.at("activeDeadlineSeconds"), 1);
    errors.at_least(&spec.at("terminationGracePeriodSeconds"), 0);
    for (field, form) in [
        ("hostname", names::dns_label as fn(&str) -> Option<String>),
        ("subdomain", names::dns_label),
        ("nodeName", names::dns_subdomain),
        ("serviceAccountName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
    ] {
        let node = spec.at(field);
        if !node.text().is_empty() {
            errors.form(&node, form);
        }
    }
    crate::meta::validate_labels(&spec.at("nodeSelector"), errors);
    for alias in spec.at("hostAliases").items() {
        errors.address(&alias.at("ip"));
        alias
            .at("hostnames")
            .items()
            .for_each(|name| errors.form(&name, names::dns_subdomain));
    }
    for toleration in spec.at("tolerations").items() {
        errors.one_of(&toleration.at("operator"), &["", "Equal", "Exists"]);
        errors.one_of(
            &toleration.at("effect"),
            &["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
    }
    validate_user(&spec.at("securityContext"), errors);
    let mut volumes = validate_volumes(&spec.at("volumes"), errors);
    volumes.extend(claims);

    let containers = spec.at("containers");
    if containers.is_empty_list() {
        errors.required(&containers, "");
    }
    let mut names = HashSet::new();
    let mut host_ports = HashSet::new();
    for container in containers.items() {
        validate_container(&container, &volumes, &mut names, errors);
        validate_ports(&container.at("ports"), &mut host_ports, errors);
        let restart = container.at("restartPolicy");
        if restart.is_set() {
            errors.forbidden(&restart, "may not be set for non-init containers");
        }
    }
    for container in spec.at("initContainers").items() {
        validate_container(&container, &volumes, &mut names, errors);
        // Ordinary init containers end before the others bind their ports.
        validate_ports(&container.at("ports"), &mut HashSet::new(), errors);
        errors.one_of(&container.at("restartPolicy"), &["Always"]);
        if container.at("restartPolicy").text() != "Always" {
            for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                let field = container.at(field);
                if field.is_set() {
                    errors.forbidden(
                        &field,
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
        }
    }
}

/// Checks the volumes and returns their names.
fn validate_volumes<'a>(volumes: &Node<'a>, errors: &mut Errors) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for volume in volumes.items() {
        let name = volume.at("name");
        errors.required_form(&name, names::dns_label);
        if !names.insert(name.text()) && !name.text().is_empty() {
            errors.duplicate(&name);
        }
        let mut found = volume_sources()
            .map(|source| volume.at(source))
            .filter(Node::is_set)
            .skip(1);
        if let Some(second) = found.next() {
            errors.forbidden(&second, "may not specify more than 1 volume type");
        }
        let host_path = volume.at("hostPath");
        let path = host_path.at("path");
        if path.text().split('/').any(|part| part == "..") {
            errors.invalid(&path, "must not contain '..'");
        }
        errors.one_of(&host_path.at("type"), choices::HOST_PATHS);
    }
    names
}

fn validate_container<'a>(
    container: &Node<'a>,
    volumes: &HashSet<&str>,
    names: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    let name = container.at("name");
    errors.required_form(&name, names::dns_label);
    if !names.insert(name.text()) && !name.text().is_empty() {
        errors.duplicate(&name);
    }
    let image = container.at("image");
    if image.text().is_empty() {
        errors.required(&image, "");
    } else if image.text() != image.text().trim() {
        errors.invalid(&image, "must not have leading or trailing whitespace");
    }
    errors.one_of(&container.at("imagePullPolicy"), choices::PULL_POLICIES);
    errors.one_of(
        &container.at("terminationMessagePolicy"),
        choices::MESSAGE_POLICIES,
    );
    container
        .at("env")
        .items()
        .for_each(|variable| validate_env(&variable, errors));
    validate_mounts(&container.at("volumeMounts"), volumes, errors);
    validate_resources(&container.at("resources"), errors);
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.at(field);
        if probe.is_set() {
            validate_probe(&probe, field, errors);
        }
    }
    for hook in ["postStart", "preStop"] {
        let hook = container.at("lifecycle").at(hook);
        if hook.is_set() {
            validate_handler(&hook, &["exec", "httpGet", "sleep", "tcpSocket"], errors);
        }
    }
    let security = container.at("securityContext");
    validate_user(&security, errors);
    let escalation = security.at("allowPrivilegeEscalation");
    if security.at("privileged").is_true() && escalation.value == &Value::Bool(false) {
        errors.invalid(
            &security,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
}

fn validate_user(security: &Node<'_>, errors: &mut Errors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        let id = security.at(field);
        if id
            .int()
            .is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id))
        {
            errors.invalid(&id, "must be between 0 and 2147483647, inclusive");
        }
    }
}

fn validate_ports(ports: &Node<'_>, host_ports: &mut HashSet<String>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for port in ports.items() {
        let name = port.at("name");
        if !name.text().is_empty() {
            errors.form(&name, names::port_name);
            if !names.insert(name.text()) {
                errors.duplicate(&name);
            }
        }
        errors.one_of(&port.at("protocol"), choices::PROTOCOLS);
        let number = port.at("containerPort");
        match number.int() {
            None | Some(0) => errors.required(&number, ""),
            Some(_) => errors.port(&number),
        }
        let host_ip = port.at("hostIP");
        if !host_ip.text().is_empty() {
            errors.address(&host_ip);
        }
        let host_port = port.at("hostPort");
        if let Some(number) = host_port.int().filter(|number| *number != 0) {
            errors.port(&host_port);
            let key = format!("{}/{}/{number}", port.at("protocol").text(), host_ip.text());
            if !host_ports.insert(key.clone()) {
                errors.duplicate(&Node {
                    value: &key.into(),
                    ..host_port
                });
            }
        }
    }
}

fn validate_env(variable: &Node<'_>, errors: &mut Errors) {
    errors.required_form(&variable.at("name"), names::env_name);
    let source = variable.at("valueFrom");
    if !source.is_set() {
        return;
    }
    if !variable.at("value").text().is_empty() {
        errors.invalid(&source, "may not be specified when `value` is not empty");
    }
    let members = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];
    match members.iter().filter(|member| source.at(member).is_set()).count() {
        0 => errors.invalid(
            &source,
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ),
        1 => {}
        _ => errors.invalid(&source, "may not have more than one field specified at a time"),
    }
    let path = source.at("fieldRef").at("fieldPath");
    let is_entry = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|prefix| {
            path.text()
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.ends_with("']"))
        });
    if path.is_set() && !is_entry {
        errors.one_of(
            &path,
            &[
                "metadata.name",
                "metadata.namespace",
                "metadata.uid",
                "spec.nodeName",
                "spec.serviceAccountName",
                "status.hostIP",
                "status.hostIPs",
                "status.podIP",
                "status.podIPs",
            ],
        );
    }
}

fn validate_mounts(mounts: &Node<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.at("name"), mount.at("mountPath"));
        if name.text().is_empty() {
            errors.required(&name, "");
        } else if !volumes.contains(name.text()) {
            errors.not_found(&name);
        }
        if path.text().is_empty() {
            errors.required(&path, "");
        } else if !paths.insert(path.text()) {
            errors.invalid(&path, "must be unique");
        }
        let sub_path = mount.at("subPath");
        if sub_path.text().starts_with('/') {
            errors.invalid(&sub_path, "must be a relative path");
        }
        if sub_path.text().split('/').any(|part| part == "..") {
            errors.invalid(&sub_path, "must not contain '..'");
        }
    }
}

fn validate_resources(resources: &Node<'_>, errors: &mut Errors) {
    let (limits, requests) = (resources.at("limits"), resources.at("requests"));
    for (_, amount) in limits.entries().chain(requests.entries()) {
        if Quantity::from_json(amount.value).is_ok_and(Quantity::is_negative) {
            errors.invalid(&amount, "must be greater than or equal to 0");
        }
    }
    for (name, request) in requests.entries() {
        let limit = limits.value.get(name).map(Quantity::from_json);
        if let (Ok(amount), Some(Ok(limit))) = (Quantity::from_json(request.value), limit)
            && amount > limit
        {
            let value = amount.to_string().into();
            let at = Node {
                value: &value,
                ..requests.clone()
            };
            errors.invalid(
                &at,
                format!("must be less than or equal to {name} limit of {limit}"),
            );
        }
    }
}

fn validate_probe(probe: &Node<'_>, field: &str, errors: &mut Errors) {
    validate_handler(probe, &["exec", "grpc", "httpGet", "tcpSocket"], errors);
    for number in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.at_least(&probe.at(number), 0);
    }
    let grace = probe.at("terminationGracePeriodSeconds");
    match field {
        "readinessProbe" if grace.is_set() => errors.invalid(&grace, "must not be set for readinessProbes"),
        "readinessProbe" => {}
        _ => {
            errors.at_least(&grace, 1);
            let successes = probe.at("successThreshold");
            if successes.int().is_some_and(|count| count != 1) {
                errors.invalid(&successes, "must be 1");
            }
        }
    }
}

fn validate_handler(handler: &Node<'_>, members: &[&str], errors: &mut Errors) {
    let mut set = members
        .iter()
        .map(|member| handler.at(member))
        .filter(Node::is_set);
    if set.next().is_none() {
        errors.required(handler, "must specify a handler type");
    }
    if let Some(second) = set.next() {
        errors.forbidden(&second, "may not specify more than 1 handler type");
    }
    let command = handler.at("exec").at("command");
    if handler.at("exec").is_set() && command.is_empty_list() {
        errors.required(&command, "");
    }
    let request = handler.at("httpGet");
    if request.is_set() {
        errors.port(&request.at("port"));
        errors.one_of(&request.at("scheme"), choices::SCHEMES);
    }
    for member in ["tcpSocket", "grpc"] {
        let member = handler.at(member);
        if member.is_set() {
            errors.port(&member.at("port"));
        }
    }
}

/// Checks a change of a pod: only what [`fields`] leaves mutable may change, a placement only once.
pub(crate) fn validate_update(old: &Node<'_>, new: &Node<'_>, errors: &mut Errors) {
    let (old_spec, new_spec) = (old.at("spec"), new.at("spec"));
    let placed = old_spec.at("nodeName");
    let moved = !placed.text().is_empty() && placed.value != new_spec.at("nodeName").value;
    let mut names = Vec::new();
    if moved || immutable_part(old_spec.value, &mut names) != immutable_part(new_spec.value, &mut names) {
        errors.forbidden(
            &new_spec,
            "pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
             existing tolerations),`spec.terminationGracePeriodSeconds`",
        );
    }
    let tolerations = new_spec.at("tolerations");
    let without_seconds = |toleration: Node<'_>| {
        let mut toleration = toleration.value.clone();
        if let Some(fields) = toleration.as_object_mut() {
            fields.remove("tolerationSeconds");
        }
        toleration
    };
    let kept: HashSet<Value> = tolerations.items().map(without_seconds).collect();
    let mut old = old_spec.at("tolerations").items().map(without_seconds);
    if !old.all(|toleration| kept.contains(&toleration)) {
        errors.forbidden(
            &tolerations,
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// Copies a pod's `spec` without the fields that may change. `names` is the path below `spec`.
fn immutable_part(value: &Value, names: &mut Vec<String>) -> Value {
    match value {
        Value::Array(list) => list.iter().map(|item| immutable_part(item, names)).collect(),
        Value::Object(map) => {
            let mut copy = Tree::new();
            for (name, field) in map {
                names.push(name.clone());
                let path: Vec<&str> = std::iter::once("spec")
                    .chain(names.iter().map(String::as_str))
                    .collect();
                let holds_mutable = matches!(path.as_slice(), ["spec", "containers" | "initContainers"]);
                if fields::is_immutable(Kind::Pod, &path) || holds_mutable {
                    copy.insert(name.clone(), immutable_part(field, names));
                }
                names.pop();
            }
            Value::Object(copy)
        }
        scalar => scalar.clone(),
    }
}

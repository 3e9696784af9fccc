//! The body of a container's creation, from our specification.
//!
//! Not through the builder of `podman-api`: it sends the log driver in Docker's form, which Podman's own API ignores, so that
//! on a machine with journald the logs could not be read.

use std::collections::BTreeMap;

use reconcilers::ports::{ContainerNetwork, ContainerSpec, labels};
use serde_json::{Map, Value, json};

/// Podman truncates the log at this size; as much as kubelet keeps of one container (five files of 10 MiB).
const LOG_BYTES_MAX: u64 = 50 << 20;

/// The kernel's period for CPU limits, as kubelet uses it.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// Renders the specification for `POST /containers/create` (Podman's SpecGenerator); `image` is the resolved name.
pub(super) fn body(spec: &ContainerSpec, image: &str, cluster: &str) -> Value {
    let mut all_labels = spec.labels.clone();
    all_labels.insert(labels::CLUSTER.to_owned(), cluster.to_owned());
    let environment: BTreeMap<&str, &str> = spec
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mounts: Vec<Value> = spec
        .mounts
        .iter()
        .map(|mount| {
            json!({
                "type": "bind",
                "source": mount.source,
                "destination": mount.target,
                "options": ["rbind", if mount.read_only { "ro" } else { "rw" }],
            })
        })
        .collect();
    let mut body = json!({
        "name": spec.name,
        "image": image,
        "labels": all_labels,
        "env": environment,
        // The agent's proxy settings are no business of the containers.
        "httpproxy": false,
        "mounts": mounts,
        "terminal": spec.tty,
        "stdin": spec.stdin,
        "privileged": spec.privileged,
        "read_only_filesystem": spec.read_only_root,
        "cap_add": spec.capabilities_add,
        "cap_drop": spec.capabilities_drop,
        "stop_timeout": spec.stop_timeout_seconds,
        "log_configuration": {"driver": "k8s-file", "size": LOG_BYTES_MAX},
        // Restarting is the reconciler's decision; Podman's own policies do not survive a reboot anyway.
        "restart_policy": "no",
        // Podman changes mounts and the stop signal where the command looks like systemd; Kubernetes does not.
        "systemd": "false",
        "resource_limits": resources(spec),
    });
    let mut put = |key: &str, value: Value| body[key] = value;
    if !spec.command.is_empty() {
        put("entrypoint", json!(spec.command));
    }
    if !spec.args.is_empty() {
        put("command", json!(spec.args));
    }
    if !spec.working_dir.is_empty() {
        put("work_dir", json!(spec.working_dir));
    }
    if let Some(user) = &spec.user {
        put("user", json!(user));
    }
    match &spec.network {
        ContainerNetwork::Host => put("netns", json!({"nsmode": "host"})),
        ContainerNetwork::Namespace(path) => {
            put("netns", json!({"nsmode": "path", "value": path}));
            if !spec.hostname.is_empty() {
                put("hostname", json!(spec.hostname));
            }
        }
    }
    if !spec.dns.servers.is_empty() {
        put("dns_server", json!(spec.dns.servers));
    }
    if !spec.dns.search.is_empty() {
        put("dns_search", json!(spec.dns.search));
    }
    if !spec.dns.options.is_empty() {
        put("dns_option", json!(spec.dns.options));
    }
    if !spec.hosts.is_empty() {
        let lines: Vec<String> = spec
            .hosts
            .iter()
            .map(|(name, address)| format!("{name}:{address}"))
            .collect();
        put("hostadd", json!(lines));
    }
    body
}

fn resources(spec: &ContainerSpec) -> Value {
    let mut cpu = Map::new();
    if let Some(millis) = spec.resources.cpu_limit_millis {
        cpu.insert("period".into(), CPU_PERIOD_MICROS.into());
        // 1000 thousandths are one whole period. The kernel refuses less than 1 ms.
        let quota = (millis.saturating_mul(CPU_PERIOD_MICROS) / 1000).max(1000);
        cpu.insert("quota".into(), quota.into());
    }
    if let Some(millis) = spec.resources.cpu_request_millis {
        // Kubernetes' arithmetic: 1024 shares are one CPU; the kernel takes 2 to 262144.
        let shares = (millis.saturating_mul(1024) / 1000).clamp(2, 262_144);
        cpu.insert("shares".into(), shares.into());
    }
    let mut resources = Map::new();
    if !cpu.is_empty() {
        resources.insert("cpu".into(), Value::Object(cpu));
    }
    if let Some(bytes) = spec.resources.memory_limit_bytes {
        resources.insert("memory".into(), json!({"limit": bytes}));
    }
    Value::Object(resources)
}

#[cfg(test)]
mod tests {
    use reconcilers::ports::ContainerResources;

    use super::*;

    #[test]
    fn the_cluster_label_cannot_be_left_out_or_forged() {
        let mut spec = ContainerSpec::default();
        spec.labels.insert(labels::CLUSTER.into(), "another".into());
        assert_eq!(body(&spec, "i", "mine")["labels"][labels::CLUSTER], "mine");
    }

    #[test]
    fn empty_command_and_args_leave_the_images_own() {
        let body = body(&ContainerSpec::default(), "i", "c");
        assert_eq!(body.get("entrypoint"), None);
        assert_eq!(body.get("command"), None);
    }

    #[test]
    fn cpu_and_memory_are_in_the_kernels_units() {
        let check = |limit, request, expected: Value| {
            let spec = ContainerSpec {
                resources: ContainerResources {
                    cpu_limit_millis: limit,
                    cpu_request_millis: request,
                    memory_limit_bytes: None,
                },
                ..Default::default()
            };
            assert_eq!(resources(&spec), expected);
        };
        check(None, None, json!({}));
        check(
            Some(500),
            None,
            json!({"cpu": {"period": 100_000, "quota": 50_000}}),
        );
        check(Some(1), None, json!({"cpu": {"period": 100_000, "quota": 1000}}));
        check(None, Some(250), json!({"cpu": {"shares": 256}}));
        check(None, Some(0), json!({"cpu": {"shares": 2}}));
        check(
            Some(u64::MAX),
            Some(u64::MAX),
            json!({"cpu": {"period": 100_000, "quota": u64::MAX / 1000, "shares": 262_144}}),
        );
    }
}

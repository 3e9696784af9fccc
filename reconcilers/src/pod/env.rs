//! The environment of a container: literal values, fields of the pod, resources, and `$(NAME)` in all of them.
//!
//! Services are not announced in the environment (Kubernetes' service links): names are what DNS is for.
//! Sources: Kubernetes API, `EnvVar`, `EnvVarSource`; `k8s.io/kubernetes/third_party/forked/golang/expansion`.

use k8s_openapi::api::core::v1::{Container, EnvVarSource, ResourceFieldSelector};

use super::spec::{ConfigError, Surroundings, thousandths, units};

/// Computes the environment in the order of the manifest. A name given twice has its last value.
pub(super) fn environment(
    surroundings: &Surroundings<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, ConfigError> {
    if let Some(source) = container.env_from.iter().flatten().next() {
        let (what, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(config_map), _) => ("configmap", &config_map.name, config_map.optional),
            (None, Some(secret)) => ("secret", &secret.name, secret.optional),
            (None, None) => return Err(ConfigError("envFrom without a source".to_owned())),
        };
        if optional != Some(true) {
            return Err(not_given(what, name));
        }
    }
    let mut environment: Vec<(String, String)> = Vec::new();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => match resolve(surroundings, container, source)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(variable.value.as_deref().unwrap_or_default(), &environment),
        };
        match environment.iter_mut().find(|(name, _)| *name == variable.name) {
            Some((_, slot)) => *slot = value,
            None => environment.push((variable.name.clone(), value)),
        }
    }
    Ok(environment)
}

/// Replaces `$(NAME)` by its value; an unknown name stays as written, `$$` is a dollar sign.
pub(super) fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match environment.iter().find(|(known, _)| known == name) {
                Some((_, value)) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Returns the value of a source; None where an optional one has none.
fn resolve(
    surroundings: &Surroundings<'_>,
    container: &Container,
    source: &EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    if let Some(field) = &source.field_ref {
        return field_value(surroundings, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(surroundings, container, resource).map(Some);
    }
    let (what, name, optional) = if let Some(config_map) = &source.config_map_key_ref {
        ("configmap", &config_map.name, config_map.optional)
    } else if let Some(secret) = &source.secret_key_ref {
        ("secret", &secret.name, secret.optional)
    } else {
        return Err(ConfigError("valueFrom without a source".to_owned()));
    };
    if optional == Some(true) {
        return Ok(None);
    }
    Err(not_given(what, name))
}

/// Whether the object is there or not: nothing reads it for pods.
fn not_given(what: &str, name: &str) -> ConfigError {
    ConfigError(format!("{what} \"{name}\" is of a kind that pods do not get yet"))
}

fn field_value(surroundings: &Surroundings<'_>, path: &str) -> Result<String, ConfigError> {
    let Surroundings {
        pod,
        node,
        attachment,
        ..
    } = surroundings;
    let spec = pod.spec();
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = keyed("metadata.labels['") {
        return Ok(pod.object.label(key).unwrap_or_default().to_owned());
    }
    if let Some(key) = keyed("metadata.annotations['") {
        return Ok(pod.object.annotation(key).unwrap_or_default().to_owned());
    }
    Ok(match path {
        "metadata.name" => pod.key.name.clone(),
        "metadata.namespace" => pod.key.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => spec
            .service_account_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("default")
            .to_owned(),
        "status.hostIP" | "status.hostIPs" => node.address.to_string(),
        "status.podIP" | "status.podIPs" => attachment.address.to_string(),
        other => return Err(ConfigError(format!("fieldPath \"{other}\" is not supported"))),
    })
}

fn resource_value(
    surroundings: &Surroundings<'_>,
    container: &Container,
    selector: &ResourceFieldSelector,
) -> Result<String, ConfigError> {
    let spec = surroundings.pod.spec();
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match name {
        None => container,
        Some(name) => spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .find(|other| other.name == name)
            .ok_or_else(|| ConfigError(format!("container \"{name}\" not found")))?,
    };
    let quantity = |requests_first: bool, resource: &str| {
        let resources = container.resources.as_ref()?;
        let requests = resources.requests.as_ref().filter(|_| requests_first);
        let limits = resources.limits.as_ref();
        let found = requests.and_then(|list| list.get(resource));
        Some(found.or_else(|| limits?.get(resource))?.0.clone())
    };
    // What is not limited may use the whole node, as in Kubernetes.
    let node = surroundings.node;
    let thousandths_of = match selector.resource.as_str() {
        "limits.cpu" => quantity(false, "cpu").map_or(Some(node.cpu_millis), |text| thousandths(&text)),
        "limits.memory" => quantity(false, "memory")
            .map_or(Some(node.memory_bytes), |text| units(&text))
            .and_then(|bytes| bytes.checked_mul(1000)),
        "requests.cpu" => quantity(true, "cpu").map_or(Some(0), |text| thousandths(&text)),
        "requests.memory" => quantity(true, "memory").map_or(Some(0), |text| thousandths(&text)),
        other => return Err(ConfigError(format!("resource \"{other}\" is not supported"))),
    };
    let divisor = match &selector.divisor {
        Some(divisor) if !divisor.0.is_empty() && divisor.0 != "0" => thousandths(&divisor.0),
        _ => Some(1000),
    };
    match (thousandths_of, divisor) {
        (Some(value), Some(divisor)) if divisor > 0 => Ok(value.div_ceil(divisor).to_string()),
        _ => Err(ConfigError(format!(
            "resource \"{}\" cannot be read",
            selector.resource
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_brackets_are_expanded_once() {
        let environment =
            [("A", "1"), ("B", "$(A)")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("ü$(A)", "ü1"),
        ] {
            assert_eq!(expand(text, &environment), expected, "{text}");
        }
    }
}

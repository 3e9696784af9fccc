//! `psctl logs`: what a container wrote, from whichever node it runs on.

use clap::Args;
use futures::TryStreamExt;
use http::Method;
use http_body_util::BodyExt;
use schemas::Kind;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::resource::{encode, object_path};
use super::{CliError, Client, Global};

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pod: String,
    /// The container, where the pod has several [default: the first]
    #[arg(long, short, value_name = "NAME")]
    container: Option<String>,
    /// Go on and print what comes
    #[arg(long, short)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
    /// The container before its last restart
    #[arg(long, short)]
    previous: bool,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, global: &Global, args: LogsArgs) -> Result<(), CliError> {
    let pod = args
        .pod
        .strip_prefix("pod/")
        .or_else(|| args.pod.strip_prefix("pods/"))
        .unwrap_or(&args.pod);
    let mut path = format!(
        "{}/log?follow={}&timestamps={}&previous={}",
        object_path(Kind::Pod, &global.namespace, pod),
        args.follow,
        args.timestamps,
        args.previous
    );
    let container = match args.container {
        Some(container) => Some(container),
        None => {
            let object = client
                .get_json(&object_path(Kind::Pod, &global.namespace, pod))
                .await?;
            default_container(&object)
        }
    };
    if let Some(container) = container {
        path += &format!("&container={}", encode(&container));
    }
    if let Some(lines) = args.tail {
        path += &format!("&tailLines={lines}");
    }
    let answer = client
        .send(Method::GET, &path, "text/plain, application/json", None)
        .await?;
    let mut body = answer.into_body().into_data_stream();
    let mut out = tokio::io::stdout();
    while let Some(chunk) = body.try_next().await.map_err(|error| client.broken(error))? {
        out.write_all(&chunk).await?;
        out.flush().await?;
    }
    Ok(())
}

/// Picks the first of several containers and says so, as kubectl does; None leaves the choice to the node: where there is
/// but one, or the pod's annotation names one.
fn default_container(pod: &Value) -> Option<String> {
    let names = |field: &str| -> Vec<&str> {
        pod.pointer(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|container| container.get("name").and_then(Value::as_str))
            .collect()
    };
    let (containers, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let annotated = pod
        .pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container")
        .and_then(Value::as_str);
    if containers.len() + init.len() < 2
        || annotated.is_some_and(|name| containers.contains(&name) || init.contains(&name))
    {
        return None;
    }
    let first = (*containers.first()?).to_owned();
    let init = init.iter().map(|name| format!("{name} (init)"));
    let all: Vec<String> = containers
        .iter()
        .map(|name| (*name).to_owned())
        .chain(init)
        .collect();
    eprintln!("Defaulted container {first:?} out of: {}", all.join(", "));
    Some(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_of_several_containers_is_the_default() {
        let both = json!([{"name": "a"}, {"name": "b"}]);
        let annotated = |name: &str| {
            json!({
                "metadata": {"annotations": {"kubectl.kubernetes.io/default-container": name}},
                "spec": {"containers": both},
            })
        };
        for (pod, expected) in [
            (json!({"spec": {"containers": [{"name": "a"}]}}), None),
            (json!({"spec": {"containers": both}}), Some("a")),
            (
                json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}}),
                Some("a"),
            ),
            (annotated("b"), None),
            (annotated("gone"), Some("a")),
            (json!({}), None),
        ] {
            assert_eq!(default_container(&pod).as_deref(), expected, "{pod}");
        }
    }
}

//! `psctl logs`: what a container wrote, from whichever node it runs on.

use clap::Args;
use futures::TryStreamExt;
use http::Method;
use http_body_util::BodyExt;
use schemas::Kind;
use tokio::io::AsyncWriteExt;

use super::resource::{encode, object_path};
use super::{CliError, Client, Global};

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pod: String,
    /// The container, where the pod has several
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
    if let Some(container) = &args.container {
        path += &format!("&container={}", encode(container));
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

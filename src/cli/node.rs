//! `psctl node remove`: takes a node out of the cluster through any other.

use std::io::{IsTerminal as _, Write as _};

use clap::Subcommand;
use http::Method;
use schemas::Kind;
use serde_json::Value;

use super::{CliError, Client, resource};

#[derive(Subcommand, Debug)]
pub(super) enum NodeCommand {
    /// Take a node out of the cluster for good; its pods are made anew elsewhere
    Remove {
        /// The node: its name, or its id where two have one name
        name: String,
        /// Also a node whose agent runs
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Carries out the command.
pub(super) async fn run(client: &Client, command: NodeCommand) -> Result<(), CliError> {
    let NodeCommand::Remove { name, force, yes } = command;
    let path = resource::object_path(Kind::Node, "", &name);
    let deletion =
        |dry_run: bool| format!("{path}?force={force}{}", if dry_run { "&dryRun=All" } else { "" });
    // Nobody is asked about what would be refused.
    client
        .send(Method::DELETE, &deletion(true), "application/json", None)
        .await?;
    eprintln!("{}", plan(client, &name).await?);
    if !yes {
        confirm(&format!("Remove node {name:?}?"))?;
    }
    client
        .send(Method::DELETE, &deletion(false), "application/json", None)
        .await?;
    writeln!(std::io::stdout(), "node {name:?} removed")?;
    Ok(())
}

/// Says what the removal will do.
async fn plan(client: &Client, name: &str) -> Result<String, CliError> {
    let selector = resource::encode(&format!("spec.nodeName={name}"));
    let pods = client
        .get_json(&format!("/api/v1/pods?fieldSelector={selector}"))
        .await?;
    let count = pods.get("items").and_then(Value::as_array).map_or(0, Vec::len);
    Ok(format!(
        "Node {name:?} will be removed from the cluster, with its API token:\n\
         - {count} pods are placed on it; their controllers make them anew on other nodes at once\n\
         - what it acknowledged and no other node has yet stays on its disk alone\n\
         - if its agent runs, or is started again, it stops its containers and ends; until then they run on\n\
         - to come back, it joins anew: `podman-swarm-agent leave` on it, then a start with --join and --join-token"
    ))
}

/// Asks on the terminal.
///
/// # Errors
/// There is no terminal to ask on, or the answer is not yes.
fn confirm(question: &str) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Usage {
            message: "there is no terminal to ask on".into(),
            hint: "give --yes to do it unasked",
        });
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::Declined),
    }
}

//! The command line `psctl`: its arguments, and what the commands share.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

mod apply;
mod backup;
mod client;
mod delete;
mod describe;
mod get;
mod leave;
mod logs;
mod resource;
mod restore;
mod settings;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::parse_arguments;
use client::{Client, ClientError};
use settings::{Settings, SettingsError};

pub use leave::leave;

/// Control a Podman Swarm cluster.
#[derive(Parser, Debug)]
#[command(name = "psctl", version, about, disable_version_flag = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug, Clone)]
struct Global {
    /// The API of any node, for instance https://10.0.0.1:8080
    #[arg(long, global = true, env = "PSCTL_SERVER", value_name = "URL")]
    server: Option<String>,
    /// A token of the API
    #[arg(
        long,
        global = true,
        env = "PSCTL_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<String>,
    /// A kubeconfig to take server, CA and token from
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the request
    #[arg(long, short, global = true, default_value = "default", value_name = "NAME")]
    namespace: String,
}

/// How `get` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    Json,
    Yaml,
    Wide,
    Name,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make the cluster hold what files say
    Apply(apply::ApplyArgs),
    /// List objects, or show some of them
    Get(get::GetArgs),
    /// Show all that is known of objects, with their events
    Describe(describe::DescribeArgs),
    /// Delete objects
    Delete(delete::DeleteArgs),
    /// Print what a pod's container wrote
    Logs(logs::LogsArgs),
    /// Write all that users put into the cluster to a file
    Backup(backup::BackupArgs),
    /// Bring back what a backup holds; shows a plan first
    Restore(restore::RestoreArgs),
    /// Show or change where psctl connects to
    #[command(subcommand)]
    Config(settings::ConfigCommand),
    /// Print the versions of psctl and of the node that answers
    Version {
        /// Only that of psctl; ask no node
        #[arg(long)]
        client: bool,
    },
}

/// What ended a command early.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{message}")]
    Usage { message: String, hint: &'static str },
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read {what}: {reason}")]
    Input { what: String, reason: String },
    /// What is wrong with manifests, a line each.
    #[error("{}", .0.join("\nerror: "))]
    Manifests(Vec<String>),
    #[error("{object} is still there after {seconds} s, and its deletion goes on")]
    StillThere { object: String, seconds: u64 },
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    /// Some of several things failed; each was reported already.
    #[error("")]
    Reported,
}

impl CliError {
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. } => Some(hint),
            Self::Settings(error) => error.hint(),
            Self::Client(error) => error.hint(),
            Self::StillThere { .. } => Some("psctl describe may show what holds it; --timeout waits longer"),
            Self::Input { .. } | Self::Manifests(_) | Self::Output(_) | Self::Reported => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(if matches!(self, Self::Usage { .. }) { 2 } else { 1 })
    }
}

/// Parses the arguments, does what they ask for, and reports.
pub async fn run() -> ExitCode {
    let cli: Cli = parse_arguments();
    match dispatch(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output is gone (`psctl get pods | head`): nothing to say to anyone.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let message = error.to_string();
            if !message.is_empty() {
                eprintln!("error: {message}");
            }
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            error.exit_code()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    let connect = || -> Result<Client, CliError> { Ok(Client::new(Settings::resolve(global)?)?) };
    match cli.command {
        Command::Apply(args) => apply::run(&connect()?, global, args).await,
        Command::Get(args) => get::run(&connect()?, global, args).await,
        Command::Describe(args) => describe::run(&connect()?, global, args).await,
        Command::Delete(args) => delete::run(&connect()?, global, args).await,
        Command::Logs(args) => logs::run(&connect()?, global, args).await,
        Command::Backup(args) => backup::run(&connect()?, args).await,
        Command::Restore(args) => restore::run(&connect()?, args).await,
        Command::Config(command) => settings::run(command),
        Command::Version { client } => version(connect, client).await,
    }
}

async fn version(connect: impl Fn() -> Result<Client, CliError>, only_client: bool) -> Result<(), CliError> {
    writeln!(std::io::stdout(), "psctl {}", env!("CARGO_PKG_VERSION"))?;
    if only_client {
        return Ok(());
    }
    let client = match connect() {
        // Nobody was named, so nobody failed to answer.
        Err(CliError::Settings(error @ SettingsError::NoServer)) => {
            eprintln!("{error}, so its version is not known");
            return Ok(());
        }
        connected => connected?,
    };
    let answer = client.get_json("/version").await?;
    writeln!(
        std::io::stdout(),
        "server {}",
        answer
            .pointer("/gitVersion")
            .and_then(|version| version.as_str())
            .unwrap_or("unknown")
    )?;
    Ok(())
}

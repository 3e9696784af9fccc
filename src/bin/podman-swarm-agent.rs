//! `podman-swarm-agent`: the program that runs on every machine of the cluster.

use std::process::ExitCode;

use podman_swarm::config::{Cli, Command, NoDefaultRoute, Task, parse_arguments};
use podman_swarm::{agent, cli};

/// The exit code of an agent whose node was removed from its cluster: no restart mends that.
const REMOVED: u8 = 3;

fn main() -> ExitCode {
    // Wrong usage ends here, with exit code 2.
    let parsed: Cli = parse_arguments();
    let task = match Task::resolve(parsed) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(if error.is::<NoDefaultRoute>() { 1 } else { 2 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match task {
        Task::Directory(Command::Leave, data_dir) if agent::needs_no_agent_to_leave(&data_dir) => {
            match agent::leave_without_agent(&data_dir) {
                Ok(()) => {
                    cli::print_left(&data_dir);
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error),
            }
        }
        Task::Directory(Command::Leave, data_dir) => runtime.block_on(cli::leave(&data_dir)),
        Task::Directory(Command::Check, data_dir) => agent::check(&data_dir),
        Task::Directory(Command::BackupIdentity, data_dir) => agent::print_backup_identity(&data_dir),
        Task::Run(config) => {
            let result = runtime.block_on(agent::run(*config));
            // What still runs is only what ignores its cancellation; the process ends anyway.
            runtime.shutdown_background();
            match result {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            }
        }
    }
}

/// Says why the agent ends.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if error.is::<agent::Removed>() {
        ExitCode::from(REMOVED)
    } else {
        ExitCode::FAILURE
    }
}

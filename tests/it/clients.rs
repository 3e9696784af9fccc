//! The Python client, as people use it, against two nodes: `tests/clients/python`, in a virtual environment of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::{Cluster, ROOT, needs_hosts};

const SUITE: &str = "tests/clients/python";

/// The environment's Python, made from PyPI when there is none for these requirements. The error says why it cannot be had.
fn environment() -> Result<PathBuf, String> {
    let directory = Path::new(ROOT).join("target/clients-python");
    let requirements = Path::new(ROOT).join(SUITE).join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let (python, stamp) = (directory.join("bin/python"), directory.join("requirements.txt"));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) && python.exists() {
        return Ok(python);
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&directory))?;
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--retries=1",
            "--timeout=20",
            "-r",
        ])
        .arg(&requirements))?;
    fs::write(&stamp, wanted).unwrap();
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&said)))
}

/// Returns from the test, saying why, where the client cannot be had: PyPI is somebody else's, and no reason to fail, in CI
/// neither.
macro_rules! needs_python {
    () => {
        match environment() {
            Ok(python) => python,
            Err(reason) => {
                eprintln!("skipped: there is no Python client from PyPI: {reason}");
                return;
            }
        }
    };
}

/// The command that runs a script of the suite on the LAN, which knows the nodes 1 and 2.
fn script(cluster: &Cluster, python: &Path, arguments: &[&str]) -> Command {
    let configs = [1, 2].map(|host| cluster.data(host).join("admin.kubeconfig").display().to_string());
    let mut command = cluster.on_lan(python);
    command
        .args(arguments)
        .current_dir(Path::new(ROOT).join(SUITE))
        .env("SWARM_KUBECONFIGS", configs.join(":"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[test]
fn the_python_client_does_what_it_does_with_kubernetes() {
    needs_hosts!();
    let python = needs_python!();
    let cluster = Cluster::with_agents(2);
    let output = script(&cluster, &python, &["-m", "unittest"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let count = said.lines().find(|line| line.starts_with("Ran "));
    let skipped = said.contains("skipped");
    assert!(
        count.is_some_and(|line| !line.starts_with("Ran 0")) && !skipped,
        "{said}"
    );
}

#[test]
fn a_python_informer_goes_over_from_a_stopped_node_and_misses_nothing() {
    needs_hosts!();
    let python = needs_python!();
    let cluster = Cluster::with_agents(2);
    let mut child = script(&cluster, &python, &["failover.py"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = child.stdin.take().unwrap();
    for order in BufReader::new(child.stdout.take().unwrap()).lines() {
        let order = order.unwrap();
        match order.split_once(' ') {
            Some(("stop", host)) => cluster.kill_agent(host.parse().unwrap()),
            Some(("start", host)) => {
                let host = host.parse().unwrap();
                cluster.start(host, &[]);
                cluster.wait_healthy(host);
                cluster.wait_nodes(2);
            }
            _ => panic!("{order}"),
        }
        answers.write_all(b"done\n").unwrap();
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "the script ended with {status}");
}

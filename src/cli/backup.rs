//! `psctl backup`: fetches a backup of the cluster into a file, which comes whole or not at all.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::Args;
use http::Method;
use http_body_util::BodyExt;

use super::{CliError, Client};
use crate::backup::is_sealed;

#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// The file to write, or - for standard output
    #[arg(long, short, value_name = "FILE|-")]
    output: String,
    /// Seal the file (age format) also where it holds no Secrets
    #[arg(long, conflicts_with = "plain_secrets")]
    encrypt: bool,
    /// Leave Secrets open, so that everyone who has the file can read them
    #[arg(long)]
    plain_secrets: bool,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, args: BackupArgs) -> Result<(), CliError> {
    let seal = match (args.encrypt, args.plain_secrets) {
        (true, _) => "always",
        (false, true) => "never",
        (false, false) => "confidential",
    };
    let path = format!("/api/v1/backup?seal={seal}");
    if args.output == "-" {
        let stdout = std::io::stdout();
        return fetch(client, &path, stdout.is_terminal(), &mut stdout.lock()).await;
    }
    let target = Path::new(&args.output);
    let unfinished = target.with_added_extension("unfinished");
    let written = write_file(client, &path, &unfinished).await;
    let written = written.and_then(|()| Ok(fs::rename(&unfinished, target)?));
    if written.is_err() {
        // The error that is told is the first one.
        _ = fs::remove_file(&unfinished);
    }
    written
}

async fn write_file(client: &Client, path: &str, unfinished: &Path) -> Result<(), CliError> {
    // Another mode of a leftover would stay.
    _ = fs::remove_file(unfinished);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(unfinished)?;
    fetch(client, path, false, &mut file).await?;
    Ok(file.sync_all()?)
}

async fn fetch(client: &Client, path: &str, to_terminal: bool, out: &mut impl Write) -> Result<(), CliError> {
    let mut body = client.send(Method::GET, path, "*/*", None).await?.into_body();
    let mut is_first = true;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| client.broken(error))?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        if std::mem::take(&mut is_first) && to_terminal && is_sealed(&chunk) {
            return Err(CliError::Usage {
                message: "a sealed backup is no text for a terminal".to_owned(),
                hint: "name a file with --output, or pipe it on",
            });
        }
        out.write_all(&chunk)?;
    }
    Ok(out.flush()?)
}

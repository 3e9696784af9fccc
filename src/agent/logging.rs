//! Where the agent's log goes and how it looks.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Flags, LogFormat};

/// Libraries that say more than a person wants to read: each query, each client that hangs up. automerge makes a span of each
/// change, and tells of each that is refused, as we do.
const QUIET: &str = "hickory_server=warn,hickory_proto=warn,hickory_resolver=warn,pingora_core=warn,pingora_proxy=off,\
                     automerge=off,chitchat=warn,sled=warn,h2=warn,hyper=warn,rustls=warn";

/// Logs to stderr, as `--log-level` and `--log-format` say; panics too, with RUST_BACKTRACE=1 from where.
///
/// # Errors
/// `--log-level` does not parse.
pub(super) fn init(flags: &Flags) -> Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", flags.log_level)).with_context(|| {
        format!(
            "--log-level: invalid value {:?}: expected error, warn, info, debug, trace or a filter",
            flags.log_level
        )
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match flags.log_format {
        LogFormat::Text => registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()))
            .try_init()?,
        LogFormat::Json => registry.with(layer.json()).try_init()?,
    }
    std::panic::set_hook(Box::new(|panicked| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%backtrace, "{panicked}");
    }));
    Ok(())
}

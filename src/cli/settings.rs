//! Where psctl connects to: flags and variables, then a kubeconfig that was named, else `~/.psctl/config` and then the
//! `admin.kubeconfig` of this node.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CliError, Global, client};

/// Server, token and CA of a connection.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) server: String,
    pub(super) token: Option<String>,
    /// PEM of the CA to trust; None: the machine's own.
    pub(super) ca: Option<Vec<u8>>,
}

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Save the address of a node's API
    SetServer { url: String },
    /// Save a token of the API
    SetToken { token: String },
    /// Save the CA that the nodes' certificates come from: ca.crt in the data directory of any node
    SetCa { file: PathBuf },
    /// Print the saved settings, the token hidden
    View,
    /// Print where they are saved
    GetLocation,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    #[error("no server to connect to")]
    NoServer,
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("invalid server {0:?}: expected http://HOST:PORT or https://HOST:PORT")]
    Server(String),
    #[error("HOME is not set, so there is no place for ~/.psctl/config")]
    NoHome,
}

impl SettingsError {
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Self::NoServer => Some(
                "run psctl as root on a node, or copy its admin.kubeconfig and set KUBECONFIG, or: psctl config set-server URL (and set-token, set-ca)",
            ),
            Self::File { .. } | Self::Server(_) | Self::NoHome => None,
        }
    }
}

/// `~/.psctl/config`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// PEM, the content of the file given: the file itself may move.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

impl Settings {
    /// Takes everything from one kubeconfig.
    pub(super) fn of_kubeconfig(path: &Path) -> Result<Self, SettingsError> {
        load_kubeconfig(path)
    }

    /// Finds the settings in the order that the module names.
    pub(super) fn resolve(global: &Global) -> Result<Self, SettingsError> {
        let (server, token, ca) = match named_kubeconfig(global)? {
            // Taken whole: a token that was saved for one cluster is not sent to another.
            Some(path) => {
                let config = load_kubeconfig(&path)?;
                (Some(config.server), config.token, config.ca)
            }
            None => {
                let saved = match saved_path() {
                    Ok(path) => load_saved(&path)?,
                    Err(_) => Saved::default(),
                };
                let found = local_kubeconfig().as_deref().map(load_kubeconfig).transpose()?;
                let (server, token, ca) = match found {
                    Some(found) => (Some(found.server), found.token, found.ca),
                    None => (None, None, None),
                };
                (
                    saved.server.or(server),
                    saved.token.or(token),
                    saved.ca.map(String::into_bytes).or(ca),
                )
            }
        };
        let server = global.server.clone().or(server);
        Ok(Self {
            server: check_server(&server.ok_or(SettingsError::NoServer)?)?,
            token: global.token.clone().or(token),
            ca,
        })
    }
}

/// Returns the kubeconfig that `--kubeconfig` or `KUBECONFIG` names: of several, the first that is there (kubectl merges them,
/// and the first that says something wins).
///
/// # Errors
/// None is there, and the flags alone do not say all.
fn named_kubeconfig(global: &Global) -> Result<Option<PathBuf>, SettingsError> {
    let Some(named) = &global.kubeconfig else {
        return Ok(None);
    };
    let mut paths = std::iter::once(named.clone()).chain(std::env::split_paths(named));
    match paths.find(|path| path.exists()) {
        Some(path) => Ok(Some(path)),
        None if global.server.is_some() && global.token.is_some() => Ok(None),
        None => Err(file_error(named, "there is no such file")),
    }
}

fn check_server(url: &str) -> Result<String, SettingsError> {
    let trimmed = url.trim_end_matches('/');
    let uri: http::Uri = trimmed
        .parse()
        .map_err(|_| SettingsError::Server(url.to_owned()))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(_)) => Ok(trimmed.to_owned()),
        _ => Err(SettingsError::Server(url.to_owned())),
    }
}

fn saved_path() -> Result<PathBuf, SettingsError> {
    let home = std::env::var_os("HOME").ok_or(SettingsError::NoHome)?;
    Ok(PathBuf::from(home).join(".psctl/config"))
}

fn load_saved(path: &Path) -> Result<Saved, SettingsError> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(Saved::default()),
        Ok(text) => serde_yaml::from_str(&text).map_err(|error| file_error(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Saved::default()),
        Err(error) => Err(file_error(path, error)),
    }
}

fn file_error(path: &Path, reason: impl std::fmt::Display) -> SettingsError {
    SettingsError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Returns the `admin.kubeconfig` of the agent on this machine, if we may read it.
fn local_kubeconfig() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state =
        state.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")));
    [
        std::env::var_os("DATA_DIR").map(PathBuf::from),
        Some("/var/lib/podman-swarm".into()),
        state.map(|directory| directory.join("podman-swarm")),
    ]
    .into_iter()
    .flatten()
    .map(|directory| directory.join("admin.kubeconfig"))
    .find(|path| std::fs::File::open(path).is_ok())
}

/// Reads the current context of a kubeconfig.
fn load_kubeconfig(path: &Path) -> Result<Settings, SettingsError> {
    let bad = |reason: &str| file_error(path, reason);
    let text = std::fs::read_to_string(path).map_err(|error| file_error(path, error))?;
    let config: Value = serde_yaml::from_str(&text).map_err(|error| file_error(path, error))?;
    let named = |list: &str, name: &Value, field: &str| -> Option<Value> {
        config
            .get(list)?
            .as_array()?
            .iter()
            .find(|entry| entry.get("name") == Some(name))?
            .get(field)
            .cloned()
    };
    let current = config
        .get("current-context")
        .ok_or_else(|| bad("no current-context"))?;
    let context =
        named("contexts", current, "context").ok_or_else(|| bad("the current context is not there"))?;
    let cluster = context
        .get("cluster")
        .and_then(|name| named("clusters", name, "cluster"))
        .ok_or_else(|| bad("the context's cluster is not there"))?;
    let user = context
        .get("user")
        .and_then(|name| named("users", name, "user"))
        .unwrap_or_default();
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let ca = match (
        text(&cluster, "certificate-authority-data"),
        text(&cluster, "certificate-authority"),
    ) {
        (Some(data), _) => Some(
            STANDARD
                .decode(data)
                .map_err(|_| bad("certificate-authority-data is not base64"))?,
        ),
        (None, Some(file)) => {
            // Relative paths count from the kubeconfig's own folder, as in kubectl.
            let file = path.parent().unwrap_or(Path::new(".")).join(file);
            Some(std::fs::read(&file).map_err(|error| file_error(&file, error))?)
        }
        (None, None) => None,
    };
    Ok(Settings {
        server: text(&cluster, "server").ok_or_else(|| bad("the cluster has no server"))?,
        token: text(&user, "token"),
        ca,
    })
}

/// Carries out `psctl config`.
pub(super) fn run(command: ConfigCommand) -> Result<(), CliError> {
    let path = saved_path()?;
    let mut saved = load_saved(&path)?;
    match command {
        ConfigCommand::SetServer { url } => {
            saved.server = Some(check_server(&url)?);
            save(&path, &saved)?;
            eprintln!("server saved in {}", path.display());
        }
        ConfigCommand::SetToken { token } => {
            saved.token = Some(token);
            save(&path, &saved)?;
            eprintln!("token saved in {}", path.display());
        }
        ConfigCommand::SetCa { file } => {
            saved.ca = Some(read_ca(&file)?);
            save(&path, &saved)?;
            eprintln!("CA saved in {}", path.display());
        }
        ConfigCommand::View => {
            let shown = Saved {
                token: saved.token.map(|_| "<hidden>".to_owned()),
                ..saved
            };
            let text = serde_yaml::to_string(&shown).map_err(|error| file_error(&path, error))?;
            write!(std::io::stdout(), "{text}")?;
        }
        ConfigCommand::GetLocation => writeln!(std::io::stdout(), "{}", path.display())?,
    }
    Ok(())
}

/// Reads the certificates of a PEM file.
fn read_ca(file: &Path) -> Result<String, SettingsError> {
    let text = std::fs::read_to_string(file).map_err(|error| file_error(file, error))?;
    match client::certificates(text.as_bytes()) {
        Ok(certificates) if certificates.is_empty() => Err(file_error(file, "it holds no certificate (PEM)")),
        Ok(_) => Ok(text),
        Err(error) => Err(file_error(file, error)),
    }
}

/// Writes the file whole or not at all, readable by its owner only.
fn save(path: &Path, saved: &Saved) -> Result<(), SettingsError> {
    let text = serde_yaml::to_string(saved).map_err(|error| file_error(path, error))?;
    let write = || -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let draft = path.with_extension("new");
        let _ = std::fs::remove_file(&draft);
        let mut file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|error| file_error(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_http_urls() {
        assert_eq!(
            check_server("https://10.0.0.1:8080/").unwrap(),
            "https://10.0.0.1:8080"
        );
        for bad in ["10.0.0.1:8080", "ftp://x", "", "https://"] {
            assert!(check_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kubeconfigs_give_server_token_and_ca() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(
            &path,
            "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
             clusters: [{name: k, cluster: {server: 'https://h:1', certificate-authority-data: UEVN}}]\n\
             users: [{name: u, user: {token: t}}]\n",
        )
        .unwrap();
        let settings = load_kubeconfig(&path).unwrap();
        assert_eq!(
            (settings.server.as_str(), settings.token.as_deref()),
            ("https://h:1", Some("t"))
        );
        assert_eq!(settings.ca.as_deref(), Some(&b"PEM"[..]));
    }

    #[test]
    fn of_several_kubeconfigs_the_first_that_is_there_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        for name in ["b", "c", "d:e"] {
            std::fs::write(path(name), "").unwrap();
        }
        let mut global = Global {
            server: None,
            token: None,
            kubeconfig: None,
            namespace: "default".into(),
        };
        let mut check = |named: String, expected: Option<&str>| {
            global.kubeconfig = Some(named.into());
            let found = named_kubeconfig(&global).ok().flatten();
            assert_eq!(found, expected.map(|name| path(name).into()));
        };
        check(path("c"), Some("c"));
        check(format!("{}:{}:{}", path("a"), path("b"), path("c")), Some("b"));
        check(path("d:e"), Some("d:e"));
        check(format!("{}:", path("a")), None);
        let error = named_kubeconfig(&global).unwrap_err().to_string();
        assert!(error.contains(&path("a")), "{error}");
        (global.server, global.token) = (Some("https://h:1".into()), Some("t".into()));
        assert!(named_kubeconfig(&global).unwrap().is_none(), "it is not needed");
    }

    #[test]
    fn only_certificates_are_saved_as_ca() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(&path, certificate.pem()).unwrap();
        assert_eq!(read_ca(&path).unwrap(), certificate.pem());
        for other in ["", "no PEM", &key.serialize_pem()] {
            std::fs::write(&path, other).unwrap();
            let error = read_ca(&path).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}

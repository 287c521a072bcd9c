//! Contexts: which clusters this command line can talk to, with which credential.
//!
//! The file is `$HANSE_CONFIG`, else `$XDG_CONFIG_HOME/hanse/config.toml`, else `~/.config/hanse/config.toml`:
//!
//! ```toml
//! default = "east"
//! [contexts.east]
//! credential = "east.json"      # relative to this file
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hanse_control::admin::AdminCall;
use hanse_control::client::{Client, ClientError, ClientErrorKind, Credential, is_signed_by};
use hanse_identity::{NodeName, SvidFacts};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::cli::Global;
use crate::errors::{Exit, Failure};

mod workload;

use workload::Workload;

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The context that is used where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One cluster, seen from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Credential file, as `hanse node credential` writes it; relative to the configuration file.
    pub credential: PathBuf,
}

/// A cluster that commands are sent to.
pub struct Connection {
    pub name: String,
    trust_domain: hanse_identity::TrustDomain,
    credential: RwLock<Credential>,
    /// Where the credential is kept, and which version of it was read.
    file: Option<(PathBuf, RwLock<Option<SystemTime>>)>,
    /// Where the credential comes from, if it is a workload's.
    workload: Option<Workload>,
    client: Mutex<Option<Arc<Client>>>,
    timeout: Duration,
}

/// Where the configuration is.
pub fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("HANSE_CONFIG") {
        return Some(path.into());
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").filter(|p| !p.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(base.join("hanse").join("config.toml"))
}

impl Configuration {
    /// Reads the file; none is an empty one.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::unreadable(path, error)),
        };
        let mut configuration: Self = toml::from_str(&text).map_err(|e| Failure::unreadable(path, e))?;
        let base = path.parent().unwrap_or(Path::new("."));
        for context in configuration.contexts.values_mut() {
            context.credential = base.join(&context.credential);
        }
        Ok(configuration)
    }

    /// The context that is meant: named, or the default, or the only one.
    pub fn choose(&self, named: Option<&str>) -> Result<(&str, &Context), Failure> {
        let known = || self.contexts.keys().cloned().collect::<Vec<_>>().join(", ");
        let name = match (named, &self.default) {
            (Some(name), _) => name,
            (None, Some(name)) => name,
            (None, None) if self.contexts.len() == 1 => {
                self.contexts.keys().next().expect("one context was counted just now")
            }
            (None, None) if self.contexts.is_empty() => {
                return Err(Failure::usage("no cluster to talk to: there is no context").fix(
                    "for the demo:  eval \"$(hanse demo env)\" and --context demo-east\nelse:          hanse node credential, and name its file in the configuration",
                ));
            }
            (None, None) => {
                return Err(Failure::usage("which cluster? --context NAME says it").what(known()));
            }
        };
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok((name, context)),
            None => Err(Failure::new(Exit::NotFound, "E1002", format!("there is no context {name:?}"))
                .what(format!("known: {}", known()))
                .fix("hanse context list")),
        }
    }
}

impl Connection {
    /// The cluster that the global flags mean.
    pub fn open(global: &Global) -> Result<Self, Failure> {
        if let Some(api) = &global.workload_api {
            let workload = Workload { api: api.clone(), control_nodes: global.control_node.clone() };
            return Self::of_workload(workload, global.timeout);
        }
        let configuration = match path() {
            Some(path) => Configuration::read(&path)?,
            None => Configuration::default(),
        };
        let (name, context) = configuration.choose(global.context.as_deref())?;
        Self::with_credential_file(name, &context.credential, global.timeout)
    }

    /// The cluster of the credential in that file, which is kept fresh there; dialled when it is first asked.
    pub fn with_credential_file(name: &str, path: &Path, timeout: Duration) -> Result<Self, Failure> {
        let read = modified(path);
        let credential =
            Credential::read(path).map_err(|e| Failure::new(Exit::Unreadable, "E1003", e.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            trust_domain: credential.trust_domain.clone(),
            credential: RwLock::new(credential),
            file: Some((path.to_owned(), RwLock::new(read))),
            workload: None,
            client: Mutex::default(),
            timeout,
        })
    }

    /// The cluster of the workload that this process is.
    fn of_workload(workload: Workload, timeout: Duration) -> Result<Self, Failure> {
        // Whoever opens a connection wants to know of a missing credential then, and only this kind has to be asked for.
        let fetched = workload.credential(timeout);
        let credential = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(fetched))?;
        Ok(Self {
            name: credential.cluster.to_string(),
            trust_domain: credential.trust_domain.clone(),
            credential: RwLock::new(credential),
            file: None,
            workload: Some(workload),
            client: Mutex::default(),
            timeout,
        })
    }

    /// The credential as it is now.
    pub fn credential(&self) -> Credential {
        self.credential.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The trust domain of the cluster that is talked to.
    pub fn trust_domain(&self) -> &hanse_identity::TrustDomain {
        &self.trust_domain
    }

    /// One question, one answer, within the timeout.
    pub async fn call<C: AdminCall>(&self, request: &C) -> Result<C::Reply, Failure> {
        let client = self.client().await?;
        client.call(request).await.map_err(|e| failure(&self.name, &e))
    }

    /// The client itself, for streams.
    pub async fn client(&self) -> Result<Arc<Client>, Failure> {
        let mut kept = self.client.lock().await;
        if self.read_again()? {
            *kept = None;
        }
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let mut credential = self.credential();
        let mut client = self.connect(&credential).await?;
        if self.file.is_some() && is_past_half_life(&credential) {
            // One that cannot be renewed will do for as long as it lasts.
            if let Ok(renewed) = client.renew(&credential).await {
                client = self.connect(&renewed).await?;
                self.put(&renewed)?;
                credential = renewed;
            }
        }
        drop(credential);
        Ok(kept.insert(Arc::new(client)).clone())
    }

    /// Has this administrator's credential renewed, and goes on with the new one.
    pub async fn renew(&self) -> Result<(), Failure> {
        let renewed = match &self.workload {
            Some(workload) => workload.credential(self.timeout).await?,
            None => {
                let renewed = self.client().await?.renew(&self.credential()).await;
                renewed.map_err(|e| failure(&self.name, &e))?
            }
        };
        let client = self.connect(&renewed).await?;
        let mut kept = self.client.lock().await;
        self.put(&renewed)?;
        *kept = Some(Arc::new(client));
        Ok(())
    }

    /// Sees to it that this administrator is still believed once that control node is revoked: whoever ordered it by a
    /// credential which the node has signed would see nothing of what comes of it.
    pub async fn outlive(&self, node: &NodeName) -> Result<(), Failure> {
        // Whatever another process has renewed meanwhile is read.
        self.client().await?;
        let credential = self.credential();
        if self.workload.is_some() || !is_signed_by(&credential, node) {
            return Ok(());
        }
        let renewed = Client::renew_apart_from(&credential, node).await;
        let renewed = renewed.map_err(|e| failure(&self.name, &e))?;
        let client = self.connect(&renewed).await?;
        let mut kept = self.client.lock().await;
        self.put(&renewed)?;
        *kept = Some(Arc::new(client));
        Ok(())
    }

    async fn connect(&self, credential: &Credential) -> Result<Client, Failure> {
        match tokio::time::timeout(self.timeout, Client::connect(credential)).await {
            Ok(Ok(client)) => Ok(client.with_deadline(self.timeout)),
            Ok(Err(error)) => Err(failure(&self.name, &error)),
            Err(_) => Err(Failure::new(
                Exit::Unreachable,
                "E3001",
                format!("no control node of {} answered within {:?}", self.name, self.timeout),
            )
            .fix("hanse demo status, or look at the nodes themselves; --timeout 2m waits longer")),
        }
    }

    /// Keeps a renewed credential, in the file too.
    fn put(&self, credential: &Credential) -> Result<(), Failure> {
        if let Some((path, read)) = &self.file {
            credential.write(path).map_err(|e| Failure::new(Exit::Unreadable, "E1003", e.to_string()))?;
            *read.write().unwrap_or_else(PoisonError::into_inner) = modified(path);
        }
        self.credential.write().unwrap_or_else(PoisonError::into_inner).clone_from(credential);
        Ok(())
    }

    /// Whether somebody else has renewed the credential in the file; then it is read.
    fn read_again(&self) -> Result<bool, Failure> {
        let Some((path, read)) = &self.file else { return Ok(false) };
        let modified = modified(path);
        if modified.is_none() || *read.read().unwrap_or_else(PoisonError::into_inner) == modified {
            return Ok(false);
        }
        let credential =
            Credential::read(path).map_err(|e| Failure::new(Exit::Unreadable, "E1003", e.to_string()))?;
        *self.credential.write().unwrap_or_else(PoisonError::into_inner) = credential;
        *read.write().unwrap_or_else(PoisonError::into_inner) = modified;
        Ok(true)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn is_past_half_life(credential: &Credential) -> bool {
    let half = |facts: &SvidFacts| facts.not_before + facts.not_after.since(facts.not_before) / 2;
    credential.svid().is_ok_and(|svid| crate::now() >= half(&svid.facts))
}

/// A client's error as the CLI reports it.
pub fn failure(context: &str, error: &ClientError) -> Failure {
    let (exit, code) = match error.kind {
        ClientErrorKind::Unreachable => (Exit::Unreachable, "E3001"),
        ClientErrorKind::NotAllowed => (Exit::NotAllowed, "E2004"),
        ClientErrorKind::NotFound => (Exit::NotFound, "E3005"),
        ClientErrorKind::Precondition => (Exit::Precondition, "E3006"),
        ClientErrorKind::NoQuorum => (Exit::NoLeader, "E3007"),
        ClientErrorKind::Timeout => (Exit::TimedOut, "E3008"),
        ClientErrorKind::Invalid => (Exit::Usage, "E1010"),
        ClientErrorKind::Internal => (Exit::Bug, "E9003"),
    };
    Failure::new(exit, code, format!("{context}: {}", error.what)).why(&error.why).fix(&error.fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(text: &str) -> Configuration {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_context_is_the_named_the_default_or_the_only_one() {
        let two = "[contexts.east]\ncredential = \"e\"\n[contexts.west]\ncredential = \"w\"\n";
        let name = |text: &str, named: Option<&str>| {
            configuration(text).choose(named).map(|(name, _)| name.to_owned()).map_err(|e| e.exit)
        };
        assert_eq!(name(two, Some("west")), Ok("west".to_owned()));
        assert_eq!(name(two, None), Err(Exit::Usage));
        assert_eq!(name(two, Some("north")), Err(Exit::NotFound));
        assert_eq!(name(&format!("default = \"east\"\n{two}"), None), Ok("east".to_owned()));
        assert_eq!(name("[contexts.east]\ncredential = \"e\"\n", None), Ok("east".to_owned()));
        assert_eq!(name("", None), Err(Exit::Usage));
    }

    #[test]
    fn credentials_are_relative_to_the_file_and_unknown_fields_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "[contexts.east]\ncredential = \"keys/e.json\"\n").unwrap();
        let read = Configuration::read(&path).unwrap();
        assert_eq!(read.contexts["east"].credential, directory.path().join("keys/e.json"));
        std::fs::write(&path, "[contexts.east]\ncredentials = \"e\"\n").unwrap();
        assert_eq!(Configuration::read(&path).unwrap_err().exit, Exit::Unreadable);
        assert_eq!(Configuration::read(&directory.path().join("none")).unwrap(), Configuration::default());
    }
}

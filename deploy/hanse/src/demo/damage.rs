//! Breaking and healing: what a request means in terms of processes and the wire, and doing it.

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::process::{END_TIMEOUT, ProcessState};
use super::spec::{DEPLOYMENTS, Key, Role};
use super::up::Demo;
use super::wire::{self, Mode};

/// What to break.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Damage {
    Kill(What),
    Pause(What),
    Partition { a: String, b: String, mode: Mode },
}

/// Which processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    Named(String),
    Leader(String),
    /// Every instance of a service or deployment: app and proxy.
    Service {
        service: String,
        cluster: String,
    },
    Gateways(String),
    Control(String),
    /// Every process of the cluster.
    Cluster(String),
}

impl What {
    /// From the words on the command line.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        match words {
            [name] => Ok(Self::Named(name.clone())),
            [kind, rest] => match kind.as_str() {
                "leader" => Ok(Self::Leader(rest.clone())),
                "service" => match rest.split_once('@') {
                    Some((service, cluster)) => {
                        Ok(Self::Service { service: service.to_owned(), cluster: cluster.to_owned() })
                    }
                    None => Err(format!("of which cluster? write {rest}@CLUSTER")),
                },
                "gateway" => Ok(Self::Gateways(rest.clone())),
                "control" => Ok(Self::Control(rest.clone())),
                "cluster" => Ok(Self::Cluster(rest.clone())),
                _ => Err(format!("{kind:?} is none of leader, service, gateway, control, cluster")),
            },
            _ => Err("name one thing to break".to_owned()),
        }
    }
}

impl Demo {
    /// The processes that are meant; at least one.
    pub async fn select(&self, what: &What) -> anyhow::Result<Vec<Key>> {
        let keys: Vec<Key> = self.supervisor.plans().into_iter().map(|p| p.key).collect();
        let of = |cluster: &String, role: Role| -> Vec<Key> {
            keys.iter().filter(|k| k.cluster == *cluster && k.role == role).cloned().collect()
        };
        let selected = match what {
            What::Named(name) => return named(&keys, name),
            What::Leader(cluster) => {
                let leader =
                    self.leader(cluster).await?.with_context(|| format!("{cluster} has no leader"))?;
                keys.into_iter()
                    .filter(|k| k.cluster == *cluster && k.role == Role::Control && k.name == leader)
                    .collect()
            }
            What::Service { service, cluster } => {
                let short = service.rsplit('/').next().unwrap_or(service);
                let deployments =
                    DEPLOYMENTS.iter().filter(|d| d.services.contains(&short) || d.name == short);
                let names: Vec<String> = deployments
                    .flat_map(|d| (1..=d.instances).map(move |n| format!("{}-{n}", d.name)))
                    .collect();
                let meant = |k: &Key| {
                    k.cluster == *cluster
                        && matches!(k.role, Role::App | Role::Proxy)
                        && names.contains(&k.name)
                };
                keys.into_iter().filter(meant).collect()
            }
            What::Gateways(cluster) => of(cluster, Role::Gateway),
            What::Control(cluster) => of(cluster, Role::Control),
            What::Cluster(cluster) => keys.into_iter().filter(|k| k.cluster == *cluster).collect(),
        };
        if selected.is_empty() {
            bail!("nothing in this demo is meant by that: {what:?}; hanse demo status lists what there is");
        }
        Ok(selected)
    }

    /// Does the damage; answers what was hit.
    pub async fn damage(&self, damage: &Damage) -> anyhow::Result<Vec<String>> {
        match damage {
            Damage::Kill(what) => {
                let keys = self.select(what).await?;
                self.kill(&keys).await?;
                Ok(keys.iter().map(|k| format!("killed {k}")).collect())
            }
            Damage::Pause(what) => {
                let keys = self.select(what).await?;
                let paused = keys.iter().filter(|k| self.supervisor.signal(k, Signal::SIGSTOP));
                Ok(paused.map(|k| format!("paused {k}")).collect())
            }
            Damage::Partition { a, b, mode } => {
                self.set_wire(&[a, b], *mode).await?;
                Ok(vec![format!("wire between {a} and {b}: {mode:?}").to_lowercase()])
            }
        }
    }

    /// kill -9, and waits until they are reaped.
    pub async fn kill(&self, keys: &[Key]) -> anyhow::Result<()> {
        keys.iter().for_each(|key| {
            self.supervisor.signal(key, Signal::SIGKILL);
        });
        anyhow::ensure!(self.supervisor.gone(keys, END_TIMEOUT).await, "a killed process is still there");
        Ok(())
    }

    pub async fn set_wire(&self, clusters: &[&String], mode: Mode) -> anyhow::Result<()> {
        let clusters = clusters.iter().map(|c| (*c).clone()).collect();
        wire::ask(&self.wire_socket, &wire::Request::Set { clusters, mode }).await?;
        Ok(())
    }

    /// Undoes damage: everything, or what is named. Control nodes first: the others wait for them.
    pub async fn heal(&self, names: &[String]) -> anyhow::Result<Vec<String>> {
        let mut keys: Vec<Key> = self.supervisor.plans().into_iter().map(|p| p.key).collect();
        if !names.is_empty() {
            let all = keys;
            keys = Vec::new();
            for name in names {
                let meant: Vec<Key> = all.iter().filter(|k| k.is_meant_by(name)).cloned().collect();
                anyhow::ensure!(!meant.is_empty(), "no process is called {name}");
                keys.extend(meant);
            }
        }
        keys.sort_by_key(|k| k.role);
        keys.dedup();
        let mut done = Vec::new();
        for key in &keys {
            match self.supervisor.state(key).map(|s| s.state) {
                Some(ProcessState::Stopped) if self.supervisor.signal(key, Signal::SIGCONT) => {
                    done.push(format!("continued {key}"));
                }
                Some(ProcessState::Exited) if self.supervisor.restart(key)? => {
                    done.push(format!("started {key}"));
                }
                _ => {}
            }
        }
        if names.is_empty() {
            let clusters: Vec<&String> = self.spec.clusters.iter().collect();
            let status = wire::ask(&self.wire_socket, &wire::Request::Status).await;
            let cut = status.is_ok_and(|s| s.modes.values().any(|m| *m != Mode::Open));
            if cut {
                self.set_wire(&clusters, Mode::Open).await?;
                done.push("opened the wire".to_owned());
            }
        }
        Ok(done)
    }
}

/// The one process that is meant by a name.
fn named(keys: &[Key], name: &str) -> anyhow::Result<Vec<Key>> {
    let meant: Vec<Key> = keys.iter().filter(|k| k.is_meant_by(name)).cloned().collect();
    match meant.len() {
        0 => bail!("no process is called {name}; hanse demo status lists them"),
        1 => Ok(meant),
        _ => {
            let list: Vec<String> = meant.iter().map(Key::to_string).collect();
            bail!("{name} may be {}", list.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn words_are_understood() {
        assert_eq!(What::parse(&words("leader east")), Ok(What::Leader("east".into())));
        let reviews = What::Service { service: "reviews".into(), cluster: "east".into() };
        assert_eq!(What::parse(&words("service reviews@east")), Ok(reviews));
        assert_eq!(What::parse(&words("ratings-1@west")), Ok(What::Named("ratings-1@west".into())));
        assert!(What::parse(&words("service reviews")).is_err());
        assert!(What::parse(&words("lighthouse east")).is_err());
    }

    #[test]
    fn an_ambiguous_name_is_refused_with_the_candidates() {
        let key = |cluster: &str, role| Key { cluster: cluster.into(), role, name: "ratings-1".into() };
        let keys = [key("east", Role::App), key("east", Role::Proxy), key("west", Role::Proxy)];
        let error = named(&keys, "ratings-1@east").unwrap_err().to_string();
        assert!(error.contains("app/ratings-1@east") && error.contains("proxy/ratings-1@east"), "{error}");
        assert_eq!(named(&keys, "proxy/ratings-1@west").unwrap(), [keys[2].clone()]);
        assert!(named(&keys, "nobody").is_err());
    }
}

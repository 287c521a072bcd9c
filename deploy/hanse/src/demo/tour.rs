//! `hanse demo tour`: what documents do, one after the other, on a demo that runs: the command, and what was measured before
//! and after it.
//!
//! Each document is applied by the very command that is printed, as a process of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hanse_control::admin::{PolicyGetRequest, ProxyListRequest, SubscriberKind};
use http::Request;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::app::Part;
use super::client::Client;
use super::keep::Keeper;
use super::process::DemoFile;
use super::spec::{LOAD_PROXY, NAMESPACE, Role, Spec, host};
use super::up::Demo;
use super::{find, keep, prepare};
use crate::cli::Global;
use crate::commands::Outcome;
use crate::context::{Configuration, Connection};
use crate::errors::{Exit, Failure};
use crate::output;

mod steps;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a document may take until every proxy has it in force.
const PROGRAMMED_WITHIN: Duration = Duration::from_secs(20);
/// How long one question to a control node may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that any one step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// One step that has been told.
#[derive(Debug, Serialize)]
pub struct Step {
    name: &'static str,
    ok: bool,
    /// What can be typed to have the same.
    command: String,
    /// What the document is to change.
    says: &'static str,
    before: String,
    after: String,
    ms: u64,
}

/// What a step has seen.
struct Seen {
    before: String,
    after: String,
    ok: bool,
}

/// The demo, as the tour needs it.
struct Tour {
    directory: PathBuf,
    home: String,
    executable: PathBuf,
    connection: Connection,
    client: Client,
    outbound: SocketAddr,
    /// `/metrics` of the proxy that all requests of the tour go through.
    admin: SocketAddr,
    /// Instances of reviews at home.
    instances: usize,
}

/// One answer, as the steps compare it.
#[derive(Clone, Debug)]
struct Answered {
    status: u16,
    reason: String,
    version: String,
    took: Duration,
}

/// Tours the demo that runs, or one that is started for it and ended after it.
pub async fn run(global: &Global, which: &super::cli::Which) -> Outcome {
    match find::find(which) {
        Ok(demo) => report(global, tour(global, &demo).await?),
        Err(failure) if failure.exit == Exit::NotFound && which.dir.is_none() => start(global).await,
        Err(failure) => Err(failure),
    }
}

async fn start(global: &Global) -> Outcome {
    let clusters = vec!["east".to_owned(), "west".to_owned()];
    let spec = Spec { clusters, nodes: 1, wan_latency_ms: 0, svid_lifetime_seconds: 0, rps: 1 };
    let directory = prepare::directory()?;
    let executable = std::env::current_exe().map_err(anyhow::Error::from)?;
    let quiet = global.quiet || global.output.is_json();
    let say = move |line: &str| {
        if !quiet {
            eprintln!("{line}");
        }
    };
    let demo = match Demo::start(&directory, spec, &executable, &say).await {
        Ok(demo) => Arc::new(demo),
        Err(error) => {
            find::remove(&directory)?;
            return Err(error.into());
        }
    };
    let keeper = Keeper::listen(&demo)?;
    let told = async { tour(global, &find::read(&directory)?).await }.await;
    keeper.close().await;
    keep::end(demo).await?;
    report(global, told?)
}

fn report(global: &Global, steps: Vec<Step>) -> Outcome {
    let ok = steps.iter().all(|step| step.ok);
    let good = steps.iter().filter(|step| step.ok).count();
    let text = format!("{good} of {} steps changed what they say; nothing of them is left\n", steps.len());
    output::print(global.output, "DemoTour", &json!({ "ok": ok, "steps": steps }), &text);
    Ok(if ok { Exit::Done } else { Exit::No })
}

/// Every step, and nothing of it left, even if it is interrupted.
async fn tour(global: &Global, demo: &DemoFile) -> Result<Vec<Step>, Failure> {
    let tour = Tour::of(demo)?;
    tour.ensure_untouched().await?;
    let steps = tokio::select! {
        steps = tell_all(global, &tour) => Ok(steps),
        () = super::signals::terminated() => Err(Failure::new(Exit::Interrupted, "E1008", "interrupted")),
    };
    tour.clean_up().await?;
    steps
}

async fn tell_all(global: &Global, tour: &Tour) -> Vec<Step> {
    let mut told = Vec::new();
    macro_rules! tell {
        ($($name:literal, $says:literal => $step:ident;)*) => {
            $(
                let started = Instant::now();
                let file = tour.file(told.len() + 1, $name);
                let seen = tokio::time::timeout(STEP_TIMEOUT, tour.$step(&file)).await;
                let seen = seen.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {STEP_TIMEOUT:?}")));
                let seen = seen.unwrap_or_else(|error| Seen {
                    before: String::new(),
                    after: format!("{error:#}"),
                    ok: false,
                });
                let step = Step {
                    name: $name,
                    ok: seen.ok,
                    command: tour.command(&file),
                    says: $says,
                    before: seen.before,
                    after: seen.after,
                    ms: started.elapsed().as_millis() as u64,
                };
                show(global, told.len() + 1, &step);
                // What a failed step has left would be measured by the next.
                if !step.ok && let Err(failure) = tour.clean_up().await {
                    failure.print(global.output.is_json());
                }
                told.push(step);
            )*
        };
    }
    tell! {
        "canary", "a tenth of the requests goes to v2" => canary;
        "header steering", "who sends x-beta: yes gets v2, everybody else v1" => steering;
        "mirroring", "v1 answers, and v2 gets a copy of every request" => mirroring;
        "faults", "half of the requests with x-chaos: on get 503, all of them after 300 ms" => faults;
        "breakers", "of 40 requests at once a few are let through (4 per proxy), the rest is told so at once" => breakers;
        "limits", "5 requests in an hour at most for each caller at each instance" => limits;
        "JWT", "nobody without a token of the issuer, whatever it says" => jwt;
    }
    told
}

fn show(global: &Global, number: usize, step: &Step) {
    let mark = if step.ok { "✓" } else { "✗" };
    let text = format!(
        "{mark} {number} {}: {}\n    $ {}\n    before  {}\n    after   {}\n",
        step.name, step.says, step.command, step.before, step.after
    );
    if !global.output.is_json() {
        output::data(&text);
    } else if !global.quiet {
        eprint!("{text}");
    }
}

impl Tour {
    fn of(demo: &DemoFile) -> Result<Self, Failure> {
        let home = demo.spec.clusters[0].clone();
        let configuration = Configuration::read(&prepare::configuration_path(&demo.data_dir))?;
        let (name, context) = configuration.choose(Some(&prepare::context_name(&home)))?;
        let connection = Connection::with_credential_file(name, &context.credential, CALL_TIMEOUT)?;
        let proxies = || demo.processes.iter().filter(|p| p.role == Role::Proxy && p.cluster == home);
        let load = proxies().find(|p| p.name == LOAD_PROXY);
        let address = |purpose: &str| {
            let address = load.and_then(|p| p.addresses.get(purpose)).and_then(|a| a.parse().ok());
            address.ok_or_else(|| {
                Failure::new(Exit::NotFound, "E1004", format!("the demo has no {LOAD_PROXY}@{home}"))
            })
        };
        Ok(Self {
            outbound: address("outbound")?,
            admin: address("admin")?,
            instances: proxies().filter(|p| p.name.starts_with("reviews-")).count(),
            directory: demo.data_dir.clone(),
            executable: std::env::current_exe().map_err(anyhow::Error::from)?,
            connection,
            client: Client::default(),
            home,
        })
    }

    /// What is there already would be measured too.
    async fn ensure_untouched(&self) -> Result<(), Failure> {
        let policies = self.connection.call(&PolicyGetRequest { kind: None, name: None }).await?;
        if policies.items.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = policies.items.iter().map(|i| i.key.to_string()).collect();
        Err(Failure::new(Exit::No, "E1009", format!("{} has policies already", self.home))
            .what(names.join(", "))
            .fix(
                "delete them first: hanse policy delete KIND NAME; or end the demo, and the tour starts one",
            ))
    }

    fn file(&self, number: usize, name: &str) -> PathBuf {
        self.directory.join("tour").join(format!("{number}-{}.yaml", name.to_lowercase().replace(' ', "-")))
    }

    fn command(&self, file: &std::path::Path) -> String {
        format!("hanse policy apply -f {} --context {}", file.display(), prepare::context_name(&self.home))
    }

    /// Writes the document, applies it by the command that the step shows, and waits until every proxy has it in force.
    async fn apply(&self, file: &std::path::Path, text: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.directory.join("tour"))?;
        std::fs::write(file, text)?;
        self.hanse(&["policy", "apply", "-f", &file.display().to_string()]).await
    }

    async fn delete(&self, kind: &str, names: &[&str]) -> anyhow::Result<()> {
        let names: Vec<String> = names.iter().map(|name| format!("{NAMESPACE}/{name}")).collect();
        let names = names.iter().map(String::as_str);
        self.hanse(&["policy", "delete", kind].into_iter().chain(names).collect::<Vec<_>>()).await
    }

    async fn hanse(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = tokio::process::Command::new(&self.executable)
            .args(arguments)
            .args(["--context", &prepare::context_name(&self.home)])
            .env("HANSE_CONFIG", prepare::configuration_path(&self.directory))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = output.await?;
        ensure!(
            output.status.success(),
            "hanse {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        self.programmed().await
    }

    /// Waits until every proxy at home has put in force what the log says now.
    async fn programmed(&self) -> anyhow::Result<()> {
        let wanted =
            self.connection.call(&PolicyGetRequest { kind: None, name: None }).await?.meta.raft_index;
        let late = Instant::now() + PROGRAMMED_WITHIN;
        loop {
            let proxies = self.connection.call(&ProxyListRequest {}).await?;
            let behind = |p: &&hanse_control::admin::ProxyItem| {
                p.kind != SubscriberKind::Agent && p.connected && p.applied < wanted
            };
            let behind: Vec<&str> = proxies.items.iter().filter(behind).map(|p| p.name.as_str()).collect();
            if behind.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < late,
                "not in force within {PROGRAMMED_WITHIN:?} at {}",
                behind.join(" ")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Takes away whatever the steps have left; a step that failed may have left something.
    async fn clean_up(&self) -> Result<(), Failure> {
        let policies = self.connection.call(&PolicyGetRequest { kind: None, name: None }).await?;
        let keys: Vec<_> = policies.items.into_iter().map(|item| item.key).collect();
        if !keys.is_empty() {
            self.connection.call(&hanse_control::admin::PolicyDeleteRequest { keys }).await?;
        }
        Ok(())
    }

    /// One request to reviews with these headers.
    async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answered> {
        let mut request = Request::get(path).header(http::header::HOST, host("reviews"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let started = Instant::now();
        let answer =
            self.client.send(self.outbound, request.body(Default::default())?, REQUEST_TIMEOUT).await?;
        let part: Option<Part> = serde_json::from_slice(&answer.body).ok();
        Ok(Answered {
            status: answer.status.as_u16(),
            reason: answer.header("x-hanse-reason").to_owned(),
            version: part.map(|part| part.version).unwrap_or_default(),
            took: started.elapsed(),
        })
    }

    /// So many of them, one after the other.
    async fn ask_each(&self, count: usize, headers: &[(&str, &str)]) -> anyhow::Result<Vec<Answered>> {
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            answers.push(self.ask("/", headers).await?);
        }
        Ok(answers)
    }

    /// So many of them at once.
    async fn ask_at_once(
        &self,
        count: usize,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Vec<Answered>> {
        futures_util::future::try_join_all((0..count).map(|_| self.ask(path, headers))).await
    }

    /// The sum of a family's samples at the proxy of the tour whose line has all of these in it.
    async fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<u64> {
        let answer = self.client.get(self.admin, "admin", "/metrics", REQUEST_TIMEOUT).await?;
        let text = String::from_utf8_lossy(&answer.body);
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
        let mut sum = 0;
        for line in lines {
            let value = line.rsplit(' ').next().context("a line of metrics has a value")?;
            sum += value.parse::<f64>()? as u64;
        }
        Ok(sum)
    }
}

/// How many gave each version.
fn versions(answers: &[Answered]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    let good = answers.iter().filter(|answer| answer.status == 200);
    good.for_each(|answer| *counts.entry(answer.version.as_str()).or_default() += 1);
    counts
}

/// `v1 ×181 · v2 ×19`.
fn told(answers: &[Answered]) -> String {
    let counts = versions(answers).into_iter().map(|(version, count)| format!("{version} ×{count}"));
    counts.collect::<Vec<_>>().join(" · ")
}

/// `200 ×20 · 503 fault ×20`.
fn statuses(answers: &[Answered]) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for answer in answers {
        *counts.entry(format!("{} {}", answer.status, answer.reason).trim().to_owned()).or_default() += 1;
    }
    counts.iter().map(|(status, count)| format!("{status} ×{count}")).collect::<Vec<_>>().join(" · ")
}

fn count(answers: &[Answered], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

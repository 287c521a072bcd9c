//! Keeping a demo that runs: its control socket, its end, and the background supervisor of `demo up -d`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::damage::Damage;
use super::process::ProcessStatus;
use super::spec::Spec;
use super::up::Demo;
use crate::errors::{Exit, Failure};

/// Requests to end that may wait.
const END_REQUESTS: usize = 4;
/// How long `demo up -d` waits for the demo to be there.
const UP_TIMEOUT: Duration = Duration::from_secs(180);
/// Where a background supervisor writes its progress, a line at a time.
const PROGRESS_FILE: &str = "progress";
/// Where it writes why there is no demo.
const ERROR_FILE: &str = "error";
/// The line after the last.
const READY_LINE: &str = "ready";

/// A request to the supervisor, one JSON line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    Status,
    Break(Damage),
    Heal { names: Vec<String> },
    Down,
}

/// Its answer, one JSON line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    #[serde(default)]
    pub done: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

/// What `demo status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub meta: Value,
    pub items: Vec<ProcessStatus>,
}

/// Answers requests until it is dropped or told to end the demo.
pub struct Keeper {
    ends: mpsc::Receiver<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Keeper {
    /// Listens on the demo's control socket.
    pub fn listen(demo: &Arc<Demo>) -> anyhow::Result<Self> {
        let socket = UnixListener::bind(super::find::socket(&demo.directory))?;
        let (end, ends) = mpsc::channel(END_REQUESTS);
        let demo = demo.clone();
        let task = tokio::spawn(async move {
            let mut conversations = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = socket.accept().await else { continue };
                conversations.spawn(converse(demo.clone(), stream, end.clone()));
                while conversations.try_join_next().is_some() {}
            }
        });
        Ok(Self { ends, task })
    }

    /// Waits until somebody asks for the end.
    pub async fn end_requested(&mut self) {
        let _ = self.ends.recv().await;
    }

    /// Stops listening, so that nobody else holds the demo.
    pub async fn close(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn converse(demo: Arc<Demo>, stream: UnixStream, end: mpsc::Sender<()>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(&demo, request, &end).await,
            Err(error) => Reply { error: Some(error.to_string()), ..Reply::default() },
        };
        let mut bytes = serde_json::to_vec(&reply).expect("a Reply has string keys only");
        bytes.push(b'\n');
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn answer(demo: &Demo, request: Request, end: &mpsc::Sender<()>) -> Reply {
    let done = match request {
        Request::Status => {
            return Reply { status: Some(status(demo).await), ..Reply::default() };
        }
        Request::Break(damage) => demo.damage(&damage).await,
        Request::Heal { names } => demo.heal(&names).await,
        Request::Down => {
            let _ = end.try_send(());
            Ok(vec!["ending".to_owned()])
        }
    };
    match done {
        Ok(done) => Reply { done, ..Reply::default() },
        Err(error) => Reply { error: Some(format!("{error:#}")), ..Reply::default() },
    }
}

/// Everything about a demo at this moment.
pub async fn status(demo: &Demo) -> Status {
    let file = demo.supervisor.status();
    let wire = super::wire::ask(&demo.wire_socket, &super::wire::Request::Status).await.ok();
    let stages: serde_json::Map<String, Value> = demo
        .stages
        .iter()
        .map(|(name, took)| (format!("{name}Ms"), json!(took.as_millis() as u64)))
        .collect();
    let meta = json!({
        "dataDir": file.data_dir,
        "supervisor": file.supervisor,
        "spec": file.spec,
        "observedAt": crate::now().to_string(),
        "load": demo.load.counted(),
        "wire": wire,
        "startup": stages,
    });
    Status { meta, items: file.processes }
}

/// Sends a request to the supervisor of the demo in `directory`.
pub async fn ask(directory: &Path, request: &Request) -> Result<Reply, Failure> {
    let reply: Reply = super::socket::ask(&super::find::socket(directory), request)
        .await
        .map_err(|e| Failure::new(Exit::Unreachable, "E1006", format!("the demo does not answer: {e:#}")))?;
    match reply.error {
        Some(error) => Err(Failure::new(Exit::No, "E1007", error)),
        None => Ok(reply),
    }
}

/// `demo supervise`: keeps a demo in the background until it is told to end.
pub async fn supervise(directory: PathBuf, spec: Spec) -> anyhow::Result<()> {
    // Away from the terminal: its Ctrl-C and its closing are not meant for us. Fails only for a group leader.
    let _ = nix::unistd::setsid();
    let progress = directory.join(PROGRESS_FILE);
    let talk = |line: &str| append(&progress, line);
    let executable = std::env::current_exe()?;
    let demo = match Demo::start(&directory, spec, &executable, &talk).await {
        Ok(demo) => Arc::new(demo),
        Err(error) => {
            // Whoever waits reads it there, and removes the directory.
            append(&directory.join(ERROR_FILE), &format!("{error:#}"));
            return Err(error);
        }
    };
    let mut keeper = Keeper::listen(&demo)?;
    talk(READY_LINE);
    tokio::select! {
        () = keeper.end_requested() => {}
        () = super::signals::terminated() => {}
    }
    keeper.close().await;
    end(demo).await?;
    Ok(())
}

/// Ends a demo that conversations may still hold for a moment.
pub async fn end(mut demo: Arc<Demo>) -> anyhow::Result<super::up::Ended> {
    loop {
        match Arc::try_unwrap(demo) {
            Ok(demo) => return demo.end().await,
            Err(shared) => demo = shared,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn append(path: &Path, line: &str) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{line}");
    }
}

/// `demo up -d`: starts the supervisor in the background and waits until the demo is there. On failure the
/// directory is the caller's to remove.
pub async fn detach(
    directory: &Path,
    spec: &Spec,
    talk: &(dyn Fn(&str) + Send + Sync),
) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["demo", "supervise", "--dir"])
        .arg(directory)
        .args(["--spec", &serde_json::to_string(spec)?])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the supervisor")?;
    let told = async {
        let mut shown = 0;
        loop {
            let text = std::fs::read_to_string(directory.join(PROGRESS_FILE)).unwrap_or_default();
            for line in text.lines().skip(shown) {
                if line == READY_LINE {
                    return;
                }
                talk(line);
                shown += 1;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = told => Ok(()),
        exit = child.wait() => {
            let text = std::fs::read_to_string(directory.join(ERROR_FILE)).unwrap_or_default();
            anyhow::bail!("the supervisor ended ({}): {}", exit?, text.trim())
        }
        () = tokio::time::sleep(UP_TIMEOUT) => anyhow::bail!("the demo was not there after {UP_TIMEOUT:?}"),
        () = super::signals::terminated() => {
            if let Some(pid) = child.id() {
                let pid = nix::unistd::Pid::from_raw(pid as i32);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            }
            let _ = child.wait().await;
            Err(Failure::new(Exit::Interrupted, "E1008", "interrupted").into())
        }
    }
}

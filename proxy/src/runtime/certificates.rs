//! Certificates of the user's own for clients outside: files on this host, read again when they change. Keys never leave it.
//!
//! `<name>.crt` is the chain and `<name>.key` its key, both PEM; a key that others may read is not used.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hanse_identity::tls::outside::web_identity;
use rustls::sign::CertifiedKey;

use super::drain::Stop;

/// What is in a directory.
pub struct Certificates {
    directory: PathBuf,
    held: ArcSwap<HashMap<String, Held>>,
}

#[derive(Clone)]
struct Held {
    stamp: [(i64, i64, u64, u64); 2],
    key: Arc<CertifiedKey>,
}

const LOOK_EVERY: Duration = Duration::from_secs(5);
const MAX_FILE_BYTES: u64 = 256 * 1024;
const MAX_CERTIFICATES: usize = 1024;
/// Who may do nothing with a key.
const OTHERS: u32 = 0o077;

impl Certificates {
    /// Reads a directory. `Err`: something in it cannot be used.
    pub fn open(directory: &Path) -> Result<Self, String> {
        let certificates = Self { directory: directory.to_owned(), held: ArcSwap::default() };
        match certificates.refresh().into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(certificates),
        }
    }

    pub fn get(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.held.load().get(name).map(|held| Arc::clone(&held.key))
    }

    /// Reads what has changed. What cannot be used stays what it was, and is told.
    pub fn refresh(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let before = self.held.load();
        let mut now = HashMap::new();
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) => return vec![format!("{}: {error}", self.directory.display())],
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_stem().and_then(|stem| stem.to_str());
            let Some(name) = name.filter(|_| path.extension().is_some_and(|e| e == "crt")) else { continue };
            if now.len() >= MAX_CERTIFICATES {
                problems.push(format!("{}: more than {MAX_CERTIFICATES}", self.directory.display()));
                break;
            }
            let held = before.get(name);
            match read(&path, held) {
                Ok(read) => drop(now.insert(name.to_owned(), read)),
                Err(problem) => {
                    problems.push(problem);
                    now.extend(held.map(|held| (name.to_owned(), held.clone())));
                }
            }
        }
        self.held.store(Arc::new(now));
        problems
    }
}

/// Looks at the files until the process ends.
pub async fn follow(certificates: Arc<Certificates>, mut stop: Stop) {
    let mut told = Vec::new();
    loop {
        tokio::select! {
            () = stop.ended() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let looked = Arc::clone(&certificates);
        let Ok(problems) = tokio::task::spawn_blocking(move || looked.refresh()).await else { return };
        if problems != told {
            for problem in &problems {
                tracing::warn!(problem, "certificate not taken: the one before it stays");
            }
            told = problems;
        }
    }
}

fn read(chain: &Path, held: Option<&Held>) -> Result<Held, String> {
    let key = chain.with_extension("key");
    let look = |path: &Path| std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()));
    let (of_chain, of_key) = (look(chain)?, look(&key)?);
    let stamp = [stamp(&of_chain), stamp(&of_key)];
    if let Some(held) = held.filter(|held| held.stamp == stamp) {
        return Ok(held.clone());
    }
    if of_key.mode() & OTHERS != 0 {
        let mode = of_key.mode() & 0o777;
        return Err(format!("{}: others may read it (mode {mode:o}); chmod 600", key.display()));
    }
    let text = |path: &Path, metadata: &Metadata| match metadata.len() > MAX_FILE_BYTES {
        true => Err(format!("{}: more than {MAX_FILE_BYTES} bytes", path.display())),
        false => std::fs::read(path).map_err(|e| format!("{}: {e}", path.display())),
    };
    let made = web_identity(&text(chain, &of_chain)?, &text(&key, &of_key)?);
    let key = made.map_err(|e| format!("{}: {e}", chain.display()))?;
    Ok(Held { stamp, key })
}

fn stamp(metadata: &Metadata) -> (i64, i64, u64, u64) {
    (metadata.mtime(), metadata.mtime_nsec(), metadata.len(), metadata.ino())
}

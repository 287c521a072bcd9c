//! SPIRE: a real `spire-server` that a test starts and ends, with its data in a directory of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hanse_identity::Bundle;
use hanse_identity::bundle::BundleDocument;
use serde_json::Value;

use crate::envoy::free_address;

/// Names the executable: see `tests/interop/spire`.
pub const SERVER: &str = "HANSE_INTEROP_SPIRE_SERVER";
/// How often its bundle should be fetched, as its document says.
pub const REFRESH_HINT: Duration = Duration::from_secs(5);
/// How long it may take until it answers.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// How its bundle endpoint is authenticated.
pub enum Endpoint {
    Spiffe,
    /// Certificate and key, PEM files.
    Web {
        certificate: PathBuf,
        key: PathBuf,
    },
}

/// A server of one trust domain; ended with the value.
pub struct Spire {
    binary: PathBuf,
    trust_domain: String,
    dir: PathBuf,
    /// What it believes of the web, in place of what the system does.
    web_roots: PathBuf,
    port: u16,
    child: Option<Child>,
}

/// The server that is installed here; else why there is none.
pub fn installed() -> Result<PathBuf, String> {
    let Some(path) = std::env::var_os(SERVER).map(PathBuf::from) else {
        return Err(format!("{SERVER} names no spire-server (tests/interop/spire/build DIR makes one)"));
    };
    match crate::envoy::is_elf(&path) {
        true => Ok(path),
        false => Err(format!("{SERVER} names {}, which is no executable", path.display())),
    }
}

impl Spire {
    /// Starts a server of that trust domain in `dir`, which must be empty, and waits until it answers.
    pub fn start(
        binary: &Path,
        dir: &Path,
        trust_domain: &str,
        endpoint: &Endpoint,
        web_roots: &Path,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (api, bundle) = (free_address()?, free_address()?);
        fs::write(
            dir.join("server.conf"),
            configuration(dir, trust_domain, api.port(), bundle.port(), endpoint),
        )?;
        let mut spire = Self {
            binary: binary.to_owned(),
            trust_domain: trust_domain.to_owned(),
            dir: dir.to_owned(),
            web_roots: web_roots.to_owned(),
            port: bundle.port(),
            child: None,
        };
        spire.begin()?;
        Ok(spire)
    }

    /// Starts it, or starts it again with what it had.
    pub fn begin(&mut self) -> Result<()> {
        let output = File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(&self.binary)
            .args(["run", "-config"])
            .arg(self.dir.join("server.conf"))
            .env("SSL_CERT_FILE", &self.web_roots)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} cannot be run", self.binary.display()))?;
        self.child = Some(child);
        let began = Instant::now();
        while let Err(error) = self.run(["healthcheck"]) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            let goes_on = ended.is_none() && began.elapsed() < STARTS_WITHIN;
            ensure!(goes_on, "spire-server is not up ({ended:?}): {error:#}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends it; its data stays.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Where its bundle is served; `host` is a name of this machine.
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/", self.port)
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Who answers at its bundle endpoint.
    pub fn endpoint_id(&self) -> String {
        format!("spiffe://{}/spire/server", self.trust_domain)
    }

    /// Runs one of its commands; what it prints.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = Command::new(&self.binary);
        let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        command.args(&arguments).arg("-socketPath").arg(self.dir.join("api.sock"));
        let output = command.output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "spire-server {arguments:?}: {}\n{out}{err}", output.status);
        Ok(out.into_owned())
    }

    /// The same, of a command that prints JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.run(arguments.iter().chain(&["-output", "json"]))?;
        serde_json::from_str(&said).with_context(|| format!("{arguments:?} says {said}"))
    }

    /// Its own bundle, as the document that it hands to partners.
    pub fn own_document(&self) -> Result<String> {
        self.run(["bundle", "show", "-format", "spiffe"])
    }

    /// Its own bundle.
    pub fn own_bundle(&self) -> Result<BundleDocument> {
        read(&self.trust_domain, &self.own_document()?)
    }

    /// What it keeps of another trust domain.
    pub fn bundle_of(&self, trust_domain: &str) -> Result<BundleDocument> {
        let id = format!("spiffe://{trust_domain}");
        let said = self.run(["bundle", "list", "-id", &id, "-format", "spiffe"])?;
        read(trust_domain, &said)
    }

    /// The end of its log, for a failed assertion.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // Past the test harness, which would keep it to itself.
            let _ =
                writeln!(std::io::stderr(), "the spire-server of {} did not end: {error}", self.trust_domain);
        }
    }
}

fn read(trust_domain: &str, document: &str) -> Result<BundleDocument> {
    Bundle::from_jwks(&trust_domain.parse()?, document)
        .with_context(|| format!("of {trust_domain}: {document}"))
}

fn configuration(dir: &Path, trust_domain: &str, api: u16, bundle: u16, endpoint: &Endpoint) -> String {
    let dir = dir.display();
    let profile = match endpoint {
        Endpoint::Spiffe => "profile \"https_spiffe\" {}".to_owned(),
        Endpoint::Web { certificate, key } => format!(
            "profile \"https_web\" {{ serving_cert_file {{
                cert_file_path = \"{}\"
                key_file_path = \"{}\"
                file_sync_interval = \"1m\"
            }} }}",
            certificate.display(),
            key.display()
        ),
    };
    let hint = REFRESH_HINT.as_secs();
    format!(
        "server {{
            bind_address = \"127.0.0.1\"
            bind_port = \"{api}\"
            socket_path = \"{dir}/api.sock\"
            trust_domain = \"{trust_domain}\"
            data_dir = \"{dir}\"
            federation {{ bundle_endpoint {{
                address = \"127.0.0.1\"
                port = {bundle}
                refresh_hint = \"{hint}s\"
                {profile}
            }} }}
        }}
        plugins {{
            DataStore \"sql\" {{ plugin_data {{
                database_type = \"sqlite3\"
                connection_string = \"{dir}/data.sqlite3\"
            }} }}
            KeyManager \"disk\" {{ plugin_data {{ keys_path = \"{dir}/keys.json\" }} }}
            NodeAttestor \"join_token\" {{ plugin_data {{}} }}
        }}
        "
    )
}

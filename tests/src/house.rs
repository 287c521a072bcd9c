//! House: the `hanse` binary, built and run as a user would, and a demo that is taken down when the test ends.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The binary under test: `HANSE_BIN`, or built now in the profile that the caller was built in.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HANSE_BIN") {
        return Ok(path.into());
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--bin", "hanse"]);
    if cfg!(debug_assertions) {
        // With the features that `cargo test --workspace` chose, those of tests among them: what it has compiled is
        // taken as it is. With those of `-p hanse` nearly everything would be compiled a second time.
        build.args(["--workspace", "--test", "tidy"]);
    } else {
        build.args(["-p", "hanse", "--release"]);
    }
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cargo cannot be run")?;
    ensure!(status.success(), "the hanse binary does not build");
    let here = std::env::current_exe()?;
    let profile_dir = here.ancestors().find(|dir| dir.join("hanse").is_file());
    Ok(profile_dir.context("no hanse binary beside this one")?.join("hanse"))
}

/// A running demo of this test's own.
pub struct Demo {
    binary: PathBuf,
    dir: PathBuf,
    processes: Vec<Value>,
}

impl Demo {
    /// `demo up -d` with these further arguments; returns when it is up.
    pub fn up<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<Self> {
        Self::up_in(arguments, &[])
    }

    /// The same, with these further variables in the environment of all its processes.
    pub fn up_in<A: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let binary = binary()?;
        let mut up = Command::new(&binary);
        up.args(["demo", "up", "-d", "-o", "json"]).args(arguments).envs(environment.iter().copied());
        let output = up.output()?;
        let said = checked(output)?;
        let status: Value = serde_json::from_slice(&said).context("demo up -o json")?;
        let dir = status.pointer("/meta/dataDir").and_then(Value::as_str).context("no meta.dataDir")?;
        let mut demo = Self { binary, dir: dir.into(), processes: Vec::new() };
        demo.refresh()?;
        Ok(demo)
    }

    /// Reads `demo status` again: after a kill or a heal.
    pub fn refresh(&mut self) -> Result<()> {
        let status: Value = serde_json::from_slice(&self.run(["demo", "status", "-o", "json"])?)?;
        self.processes = status["items"].as_array().context("no items")?.clone();
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `hanse` with these arguments against this demo; its standard output, or an error with all it said.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Vec<u8>> {
        checked(self.command(arguments).output()?)
    }

    /// The same, whatever it answers.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("HANSE_DEMO_DIR", &self.dir)
            .env("HANSE_CONFIG", self.dir.join("config.toml"));
        command
    }

    /// One process of `demo status`.
    pub fn process(&self, cluster: &str, role: &str, name: &str) -> Result<&Value> {
        let is_it = |p: &&Value| p["cluster"] == cluster && p["role"] == role && p["name"] == name;
        self.processes.iter().find(is_it).with_context(|| format!("no {role} {name} in {cluster}"))
    }

    /// Every process of that role, in every cluster.
    pub fn all<'d>(&'d self, role: &'d str) -> impl Iterator<Item = &'d Value> {
        self.processes.iter().filter(move |p| p["role"] == role)
    }

    /// Every process, of every role.
    pub fn processes(&self) -> &[Value] {
        &self.processes
    }

    /// An address of a process by its purpose.
    pub fn address(&self, cluster: &str, role: &str, name: &str, purpose: &str) -> Result<String> {
        let process = self.process(cluster, role, name)?;
        let address = process["addresses"][purpose].as_str();
        Ok(address.with_context(|| format!("{role} {name} has no {purpose} address"))?.to_owned())
    }

    pub fn pid(&self, cluster: &str, role: &str, name: &str) -> Result<u32> {
        let pid = self.process(cluster, role, name)?["pid"].as_u64().context("no pid")?;
        Ok(u32::try_from(pid)?)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Err(error) = self.run(["demo", "down"]) {
            eprintln!("the demo in {} did not go down: {error:#}", self.dir.display());
        }
    }
}

fn checked(output: Output) -> Result<Vec<u8>> {
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("exit {}\n--- stdout\n{out}\n--- stderr\n{err}", output.status);
    }
    Ok(output.stdout)
}

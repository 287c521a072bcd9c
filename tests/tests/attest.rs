//! Hosts that prove themselves by a certificate of their own, with whole processes: control nodes, an agent without a join
//! token, a workload at its socket, the command line.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hanse_tests::house;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;

const NODES: usize = 3;
const WEB: &str = "spiffe://east.example/ns/shop/sa/web";
const DEPLOYER: &str = "spiffe://east.example/ns/ops/sa/deployer";
/// The longest that anything here may take.
const SOON: Duration = Duration::from_secs(120);
/// `hanse help exit-codes`.
const UNREACHABLE: i32 = 3;
const NOT_ALLOWED: i32 = 4;

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One cluster of control nodes, as its operator has set it up by hand.
struct East {
    binary: PathBuf,
    directory: tempfile::TempDir,
    addresses: Vec<String>,
    _nodes: Vec<Running>,
}

impl East {
    fn found() -> Result<Self> {
        let binary = house::binary()?.canonicalize()?;
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let listeners: Vec<TcpListener> =
            (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let addresses: Vec<String> =
            listeners.iter().map(|l| Ok(l.local_addr()?.to_string())).collect::<Result<_>>()?;
        let mut records: Vec<Value> = Vec::new();
        for (n, address) in addresses.iter().enumerate() {
            let (name, id, data) = (format!("east-{}", n + 1), (n + 1).to_string(), at(&format!("east-{n}")));
            let mut init = Command::new(&binary);
            init.args([
                "node",
                "init",
                "--cluster",
                "east",
                "--trust-domain",
                "east.example",
                "--name",
                &name,
            ]);
            init.args(["--raft-id", &id, "--advertise", address, "--data-dir"]).arg(&data);
            said(&mut init)?;
            records.push(serde_json::from_slice(&fs::read(data.join("node.json"))?)?);
        }
        fs::write(at("nodes.json"), serde_json::to_vec(&records)?)?;
        let mut mint = Command::new(&binary);
        mint.args(["node", "credential", "--data-dir"]).arg(at("east-0"));
        mint.arg("--initial-nodes").arg(at("nodes.json")).arg("--out").arg(at("admin.json"));
        said(&mut mint)?;
        fs::write(at("config.toml"), "[contexts.east]\ncredential = \"admin.json\"\n")?;
        drop(listeners);
        let mut nodes = Vec::new();
        for (n, address) in addresses.iter().enumerate() {
            let log = File::create(at(&format!("east-{n}.log")))?;
            let mut control = Command::new(&binary);
            control.args(["control", "--listen", address, "--data-dir"]).arg(at(&format!("east-{n}")));
            control.arg("--initial-nodes").arg(at("nodes.json")).stdout(Stdio::null()).stderr(log);
            nodes.push(Running(control.spawn()?));
        }
        Ok(Self { binary, directory, addresses, _nodes: nodes })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Asks until there is an answer: with no leader, or a slow machine, there is none at first.
    fn hanse(&self, arguments: &[&str]) -> Result<String> {
        let began = Instant::now();
        loop {
            let mut command = Command::new(&self.binary);
            command.args(arguments).env("HANSE_CONFIG", self.at("config.toml"));
            let output = command.output()?;
            if !matches!(output.status.code(), Some(3 | 7 | 8 | 9)) || began.elapsed() >= SOON {
                let why = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "{arguments:?}: {}: {why}", output.status);
                return Ok(String::from_utf8(output.stdout)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How the cluster sees the agent web-1.
    fn state(&self) -> Result<String> {
        let list: Value = serde_json::from_str(&self.hanse(&["agent", "list", "-o", "json"])?)?;
        let all = list["items"].as_array().context("no items")?;
        let item = all.iter().find(|agent| agent["agent"] == "web-1");
        Ok(item.map_or("unknown", |agent| agent["state"].as_str().unwrap_or_default()).to_owned())
    }

    fn is(&self, state: &str) -> Result<()> {
        until(&format!("web-1 is {state}"), || Ok(self.state()? == state))
    }

    /// An agent with no token, whose host has that certificate; what it says goes to a file of that name.
    fn agent(&self, data: &str, certificate: &Path, log: &str) -> Result<Running> {
        let mut agent = Command::new(&self.binary);
        agent.args(["agent", "--name", "web-1", "--trust-domain", "east.example"]);
        for address in &self.addresses {
            agent.args(["--control", address]);
        }
        agent.arg("--data-dir").arg(self.at(data)).arg("--socket").arg(self.at("agent.sock"));
        agent.arg("--trust-bundle").arg(self.at("east.pem"));
        agent
            .arg("--x509pop-cert")
            .arg(certificate)
            .arg("--x509pop-key")
            .arg(certificate.with_extension("key"));
        Ok(Running(agent.stdout(Stdio::null()).stderr(File::create(self.at(log))?).spawn()?))
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    fn says(&self, log: &str, text: &str) -> Result<()> {
        let said = || Ok(self.log(log).contains(text));
        until(&format!("{log} has {text:?}"), said).with_context(|| self.log(log))
    }

    /// An agent that is not let in ends, and says why.
    fn is_refused(&self, data: &str, certificate: &Path, why: &str) -> Result<()> {
        let mut agent = self.agent(data, certificate, "refused.log")?;
        until("the agent ends", || Ok(agent.0.try_wait()?.is_some_and(|status| !status.success())))?;
        let said = self.log("refused.log");
        ensure!(
            said.contains("every control node refuses") && said.contains(why),
            "{why:?} is not in: {said}"
        );
        Ok(())
    }

    fn api(&self) -> String {
        format!("unix://{}", self.at("agent.sock").display())
    }
}

fn said(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn until(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !so()? {
        ensure!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A company's root, and a certificate of `web-1.corp.example` by it, as files.
fn company(directory: &Path, name: &str) -> Result<[PathBuf; 2]> {
    let named = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut root = named(name);
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_pem = root.self_signed(&root_key)?.pem();
    let mut host = named("web-1.corp.example");
    host.subject_alt_names = vec![SanType::DnsName("web-1.corp.example".try_into()?)];
    host.is_ca = IsCa::ExplicitNoCa;
    host.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    host.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let host_pem = host.signed_by(&key, &Issuer::new(root, root_key))?.pem();
    let at = |end: &str| directory.join(format!("{name}-{end}"));
    fs::write(at("root.pem"), root_pem)?;
    fs::write(at("host.pem"), host_pem)?;
    fs::write(at("host.key"), key.serialize_pem())?;
    Ok([at("root.pem"), at("host.pem")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_joins_by_its_certificate_serves_its_workloads_and_stays_out_once_it_is_put_out() {
    let east = East::found().unwrap();
    let told = story(&east).await;
    let logs = (0..NODES).map(|n| east.log(&format!("east-{n}.log"))).collect::<Vec<_>>();
    told.unwrap_or_else(|why| panic!("{why:?}\n{}", logs.join("\n---\n")));
}

async fn story(east: &East) -> Result<()> {
    let [root, host] = company(east.directory.path(), "company")?;
    let [_, foreign] = company(east.directory.path(), "others")?;
    let root = root.to_str().context("a path is text")?;
    east.hanse(&["agent", "trust-ca", "set", root, "--dns-domain", "corp.example"])?;
    let shown = east.hanse(&["agent", "trust-ca", "show"])?;
    ensure!(shown.contains("CN=company") && shown.contains("corp.example"), "{shown}");
    let bundle = east.hanse(&["trust", "bundle", "show", "--cluster", "east", "--format", "pem"])?;
    fs::write(east.at("east.pem"), bundle)?;

    // A host of somebody else's, and one that shows another's certificate, are told why.
    east.is_refused("nobody", &foreign, "not signed by")?;
    let stolen = east.at("stolen.pem");
    fs::copy(&host, &stolen)?;
    fs::copy(foreign.with_extension("key"), stolen.with_extension("key"))?;
    let mut thief = east.agent("nobody", &stolen, "thief.log")?;
    until("the thief's agent ends", || Ok(thief.0.try_wait()?.is_some_and(|status| !status.success())))?;
    ensure!(east.log("thief.log").contains("key"), "{}", east.log("thief.log"));
    ensure!(east.state()? == "unknown", "nobody has joined");

    // Its own: it joins without a token, and its workload gets an SVID.
    let agent = east.agent("data", &host, "first.log")?;
    east.is("connected").with_context(|| east.log("first.log"))?;
    ensure!(east.log("first.log").contains("joined the cluster"), "{}", east.log("first.log"));
    let shown: Value = serde_json::from_str(&east.hanse(&["agent", "show", "web-1", "-o", "json"])?)?;
    ensure!(shown["items"][0]["certificate"]["subject"] == "CN=web-1.corp.example", "{shown}");
    let uid = format!("unix:uid:{}", fs::metadata(east.directory.path())?.uid());
    let me = format!("unix:path:{}", std::env::current_exe()?.canonicalize()?.display());
    east.hanse(&["workload", "register", WEB, "--agent", "web-1", "--selector", &uid, "--selector", &me])?;
    let first = workload(east).await?;
    command_line(east, &uid)?;

    // A restart is no join: its own SVID proves the host again. Without its data directory it is another host, by
    // the same certificate.
    drop(agent);
    let agent = east.agent("data", &host, "second.log")?;
    east.says("second.log", "connected to a control node")?;
    ensure!(!east.log("second.log").contains("joined the cluster"), "{}", east.log("second.log"));
    ensure!(workload(east).await? != first, "keys do not outlive the agent");
    drop(agent);
    east.is_refused("lost", &host, "has joined already")?;
    ensure!(east.log("refused.log").contains("hanse agent allow web-1"), "{}", east.log("refused.log"));

    // Put out it stays out, and comes back without a restart once that is allowed.
    let _agent = east.agent("data", &host, "third.log")?;
    east.is("connected")?;
    east.hanse(&["agent", "evict", "web-1", "--yes", "--no-wait"])?;
    east.says("third.log", "hanse agent allow web-1")?;
    ensure!(east.state()? == "evicted", "{}", east.state()?);
    east.hanse(&["agent", "allow", "web-1"])?;
    east.is("connected")?;
    let again = workload(east).await?;
    east.hanse(&["agent", "ban", "web-1", "--reason", "key-compromise", "--yes", "--no-wait"])?;
    east.says("third.log", "agent web-1 is banned")?;
    ensure!(east.state()? == "banned", "{}", east.state()?);
    east.hanse(&["agent", "unban", "web-1"])?;
    ensure!(east.state()? == "evicted", "the end of a ban lets nobody in: {}", east.state()?);
    east.hanse(&["agent", "allow", "web-1"])?;
    east.is("connected")?;
    ensure!(workload(east).await? != again, "what it had before the ban is dead");
    Ok(())
}

/// The serial number of the SVID that this process is given, as a client of the standard that nobody here wrote reads it.
async fn workload(east: &East) -> Result<Vec<u8>> {
    let began = Instant::now();
    loop {
        let asked = async {
            let client = spiffe::WorkloadApiClient::connect_to(east.api()).await?;
            anyhow::Ok(client.fetch_x509_svid().await?)
        };
        match tokio::time::timeout(SOON, asked).await? {
            Ok(svid) => {
                ensure!(svid.spiffe_id().to_string() == WEB, "{}", svid.spiffe_id());
                return Ok(svid.leaf().as_bytes().to_vec());
            }
            Err(why) => ensure!(began.elapsed() < SOON, "no SVID in time: {why:#}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The command line as a workload of that host: it is who the Workload API says it is, shows its own SVID without its key,
/// and is an administrator for as long as a registration and a role say so.
fn command_line(east: &East, uid: &str) -> Result<()> {
    let path = format!("unix:path:{}", east.binary.display());
    let parent = "spiffe://east.example/hanse/agent/web-1";
    let register =
        ["workload", "register", DEPLOYER, "--parent", parent, "--selector", uid, "--selector", &path];
    let (api, node) = (east.api(), east.addresses[0].as_str());
    let as_itself = |arguments: &[&str]| {
        Command::new(&east.binary).args(arguments).env("HANSE_CONFIG", "nowhere.toml").output()
    };
    let ask = || -> Result<i32> {
        let asked = ["--workload-api", &api, "--control-node", node, "service", "list", "-o", "name"];
        as_itself(&asked)?.status.code().context("it was killed")
    };
    ensure!(ask()? == UNREACHABLE, "it is nobody yet");
    east.hanse(&register)?;
    until("a workload that is no administrator is refused", || Ok(ask()? == NOT_ALLOWED))?;

    let pem = as_itself(&["identity", "show", &api, "--pem"])?;
    let pem = String::from_utf8(pem.stdout)?;
    ensure!(pem.starts_with("-----BEGIN CERTIFICATE-----") && !pem.contains("PRIVATE KEY"), "{pem}");
    fs::write(east.at("own.pem"), &pem)?;
    let own = east.at("own.pem");
    let own = own.to_str().context("a path is text")?;
    let believed = east.hanse(&["identity", "verify", own])?;
    ensure!(believed.contains(DEPLOYER), "{believed}");
    let shown = as_itself(&["identity", "show", &api, "-o", "json"])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains(DEPLOYER) && shown.contains("notAfter"), "{shown}");
    let another = || Ok(as_itself(&["identity", "show", &api, "--pem"])?.stdout);
    revoked(east, own, another)?;

    east.hanse(&["role", "bind", DEPLOYER, "viewer"])?;
    ensure!(ask()? == NOT_ALLOWED, "no registration says that it is an administrator");
    east.hanse(&[&register[..], &["--admin"]].concat())?;
    until("it is an administrator", || Ok(ask()? == 0))?;
    east.hanse(&["workload", "delete", DEPLOYER, "--agent", "web-1"])?;
    until("without its registration it is nobody", || Ok(ask()? != 0))
}

/// A certificate that was left lying about is revoked by its file: believed no more, listed, in the published lists,
/// replaced at its workload; and taken back, which is in the trail like the order.
fn revoked(east: &East, own: &str, another: impl Fn() -> Result<Vec<u8>>) -> Result<()> {
    let order = ["revoke", "--cert", own, "--reason", "superseded", "--note", "left on a disk", "--yes"];
    let items = |arguments: &[&str]| -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&east.hanse(&[arguments, &["-o", "json"]].concat())?)?;
        Ok(list["items"].as_array().context("no items")?.clone())
    };
    let listed = || -> Result<u64> {
        let lists = items(&["revoke", "export", "--crl"])?;
        ensure!(lists.len() == NODES, "one list for each authority: {lists:?}");
        Ok(lists.iter().filter_map(|list| list["entries"].as_u64()).max().unwrap_or_default())
    };
    let is_believed = || -> Result<bool> {
        let mut verify = Command::new(&east.binary);
        verify.args(["identity", "verify", own]).env("HANSE_CONFIG", east.at("config.toml"));
        Ok(verify.output()?.status.success())
    };
    east.hanse(&[&order[..], &["--dry-run"]].concat())?;
    ensure!(items(&["revoke", "list"])?.is_empty() && is_believed()?, "a dry run writes nothing");
    east.hanse(&[&order[..], &["--no-wait"]].concat())?;
    let revocations = items(&["revoke", "list"])?;
    ensure!(revocations.len() == 1 && revocations[0]["note"] == "left on a disk", "{revocations:?}");
    until("it is believed no more", || Ok(!is_believed()?))?;
    until("the published lists have it", || Ok(listed()? == 1))?;
    let before = fs::read(own)?;
    until("its workload has another one", || {
        let now = another()?;
        Ok(!now.is_empty() && now != before)
    })?;
    let id = revocations[0]["id"].as_str().context("no id")?;
    east.hanse(&["revoke", "clear", id, "--yes"])?;
    until("it is believed again", is_believed)?;
    let trail = east.hanse(&["audit", "list"])?;
    for deed in ["host-trust-set", "agent-attest", "workload-register", "revoke ", "revoke-clear"] {
        ensure!(trail.contains(deed), "{deed} is not in the trail: {trail}");
    }
    Ok(())
}

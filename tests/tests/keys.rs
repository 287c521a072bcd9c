//! The key sweep: a demo lives for a while with all logs at TRACE, and then no private key is anywhere but in the few
//! files that are meant to hold one; and no process of ours leaves a core dump.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hanse_control::io::key_store::{FileKeyStore, KeyPurpose, KeyStore as _, Secret};
use hanse_control::io::keys::Credential;
use hanse_tests::house::{self, Demo};
use hanse_tests::sweep::{Hit, Needles, Sweep};

const EAST: [&str; 2] = ["--context", "demo-east"];
const CLUSTERS: [&str; 2] = ["east", "west"];
const NODES: usize = 3;
const WORKLOAD: &str = "spiffe://east.example/ns/shop/sa/swept";
/// The longest that anything here may take.
const SOON: Duration = Duration::from_secs(120);
/// A user that owns nothing.
const NOBODY: u32 = 65534;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t24_no_private_key_is_where_none_is_meant_to_be() {
    let demo = Demo::up_in(["--rps", "1"], &[("RUST_LOG", "trace")]).unwrap();
    let stolen = some_life(&demo).await.unwrap();
    let began = Instant::now();
    let sweep = needles(&demo, &stolen).unwrap().ready().unwrap();
    the_files_that_hold_keys_hold_them(&demo, &sweep).unwrap();
    every_other_file_has_none(&demo, &sweep).unwrap();
    no_process_shows_one(&demo, &sweep).unwrap();
    println!("swept in {:.1?}", began.elapsed());
}

/// What went out to a workload and to an operator: secrets that the test has in its hands.
struct Stolen {
    workload_key: Vec<u8>,
    join_token: String,
    /// The signature of a JWT-SVID: who has it has the token. One that was validated, and one that was refused.
    jwt_signature: String,
}

/// Join tokens, a workload's identity, its revocation. (The clusters have joined, and load flows.)
async fn some_life(demo: &Demo) -> Result<Stolen> {
    let token = patiently(demo, &["agent", "token", "create", "host-9"])?;
    let join_token = String::from_utf8(token)?.trim().to_owned();
    patiently(demo, &["cluster", "token", "create", "--for", "north"])?;
    let me = std::env::current_exe()?.canonicalize()?;
    let (uid, path) = (fs::metadata(demo.dir())?.uid(), me.display());
    let selectors = [format!("unix:uid:{uid}"), format!("unix:path:{path}")];
    let register = ["workload", "register", WORKLOAD, "--agent", "agent-1"];
    let selectors = ["--selector", &selectors[0], "--selector", &selectors[1]];
    patiently(demo, &[&register[..], &selectors].concat())?;
    let agent = format!("unix://{}", demo.address("east", "agent", "agent-1", "socket")?);
    let source = spiffe::X509SourceBuilder::new().endpoint(&agent).build();
    let source = tokio::time::timeout(SOON, source).await.context("no SVID in time")??;
    let workload_key = source.svid()?.private_key().as_bytes().to_vec();
    let tokens = spiffe::WorkloadApiClient::connect_to(&agent);
    let tokens = tokio::time::timeout(SOON, tokens).await.context("no Workload API in time")??;
    let began = Instant::now();
    let jwt = loop {
        match tokens.fetch_jwt_svid(["swept"], None).await {
            Ok(jwt) => break jwt,
            // A key that signs is published first.
            Err(why) => ensure!(began.elapsed() < SOON, "no JWT-SVID in time: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokens.validate_jwt_token("swept", jwt.token()).await?;
    ensure!(tokens.validate_jwt_token("elsewhere", jwt.token()).await.is_err(), "of another audience");
    let jwt_signature = jwt.token().rsplit('.').next().context("no signature")?.to_owned();
    // Who has applied it is another test's question.
    let revoke = ["revoke", "--identity", WORKLOAD, "--reason", "key-compromise", "--no-wait", "--yes"];
    patiently(demo, &revoke)?;
    source.shutdown_with_timeout(SOON).await?;
    Ok(Stolen { workload_key, join_token, jwt_signature })
}

/// Runs a command against east, again while it has no outcome: that many processes writing that much log are slow.
fn patiently(demo: &Demo, arguments: &[&str]) -> Result<Vec<u8>> {
    let began = Instant::now();
    loop {
        let output = demo.command(arguments.iter().chain(&EAST)).output()?;
        // No leader or quorum, no answer in time, somebody behind (hanse help exit-codes).
        let again = matches!(output.status.code(), Some(3 | 7 | 8 | 9)) && began.elapsed() < SOON;
        if !again {
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
            return Ok(output.stdout);
        }
    }
}

/// The forms that all keys have, and every secret of the demo that can be known.
fn needles(demo: &Demo, stolen: &Stolen) -> Result<Needles> {
    let mut needles = Needles::forms();
    needles.secret("workload", scalar(&stolen.workload_key)?);
    // Its middle: what comes first is the same in all, and the end may be padding.
    let middle = stolen.join_token.len() / 2;
    needles.text("join token", &stolen.join_token[middle..middle + 40]);
    needles.text("JWT-SVID", &stolen.jwt_signature);
    for cluster in CLUSTERS {
        let encryption_key = encryption_key(demo, cluster);
        needles.secret(&format!("key-encryption key of {cluster}"), &fs::read(&encryption_key)?);
        let credential = Credential::read(&credential(demo, cluster))?;
        needles.secret(&format!("credential for {cluster}"), scalar(&credential.svid()?.key)?);
        let trust_domain = credential.trust_domain;
        for node in 1..=NODES {
            let data = demo.dir().join(cluster).join(format!("control-{node}"));
            let secret = Secret::of_file(&encryption_key, &data)?;
            let store = FileKeyStore::new(&data, trust_domain.clone(), Some(secret));
            let mut authorities = 0;
            for purpose in [KeyPurpose::Authority, KeyPurpose::Jwt] {
                for id in store.list(purpose)? {
                    let key = store.open(purpose, &id)?.to_pkcs8().context("the key is not in a file")?;
                    needles.secret(&format!("{purpose} key of {cluster}/control-{node}"), scalar(&key)?);
                    authorities += usize::from(purpose == KeyPurpose::Authority);
                }
            }
            ensure!(authorities >= 1, "{} has no authority's key", data.display());
        }
    }
    Ok(needles)
}

/// The 32 bytes of the secret number in the PKCS#8 of a P-256 key.
fn scalar(pkcs8: &[u8]) -> Result<&[u8]> {
    ensure!(pkcs8.get(33..36) == Some(&[0x01, 0x04, 0x20]), "not PKCS#8 of a P-256 key");
    pkcs8.get(36..68).context("cut off")
}

fn credential(demo: &Demo, cluster: &str) -> PathBuf {
    demo.dir().join(format!("credentials/{cluster}.json"))
}

fn encryption_key(demo: &Demo, cluster: &str) -> PathBuf {
    demo.dir().join(format!("credentials/{cluster}-keys.key"))
}

/// Every file of a demo that is meant to hold a secret; nobody but its owner may read them.
fn meant_to_hold_keys(demo: &Demo) -> Vec<PathBuf> {
    CLUSTERS
        .iter()
        .flat_map(|cluster| {
            [
                // The administrator's credential: an SVID with its key.
                credential(demo, cluster),
                // What the nodes' keys are encrypted under.
                encryption_key(demo, cluster),
                // The agent's own SVID with its key.
                demo.dir().join(cluster).join("agent-1/agent.json"),
                // The one-time token with which it joined; it has been used.
                demo.dir().join(cluster).join("agent-1.token"),
            ]
        })
        .collect()
}

/// They do, so the sweep sees what it looks for.
fn the_files_that_hold_keys_hold_them(demo: &Demo, sweep: &Sweep) -> Result<()> {
    for path in meant_to_hold_keys(demo).into_iter().filter(|p| p.exists()) {
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", path.display());
        let is_token = path.extension().is_some_and(|e| e == "token");
        ensure!(is_token || !sweep.file(&path)?.is_empty(), "nothing was found in {}", path.display());
    }
    Ok(())
}

/// Data directories with the Raft log and its snapshot as each node has it (what goes between nodes is these bytes,
/// inside TLS), authorities' keys as they are at rest, logs, documents.
fn every_other_file_has_none(demo: &Demo, sweep: &Sweep) -> Result<()> {
    let mut but = meant_to_hold_keys(demo);
    // The program itself.
    but.push(demo.dir().join("bin"));
    let (hits, bytes) = sweep.folder(demo.dir(), &but)?;
    nothing(&hits)?;
    println!("{} MB of files", bytes >> 20);
    // What was swept is what was meant: logs at TRACE, and a Raft log in which the life can be read.
    let mut known = Needles::default();
    known.text("TRACE", " TRACE ");
    known.text("workload", WORKLOAD);
    let known = known.ready()?;
    for process in demo.all("control").chain(demo.all("agent")).chain(demo.all("proxy")) {
        let log = Path::new(process["log"].as_str().context("no log")?);
        let found = known.file(log)?;
        ensure!(found.iter().any(|hit| hit.needle == "TRACE"), "{} is not at TRACE", log.display());
    }
    for node in 1..=NODES {
        let log = demo.dir().join(format!("east/control-{node}/state.redb"));
        let found = known.file(&log)?;
        ensure!(
            found.iter().any(|hit| hit.needle == "workload"),
            "{} does not tell of the life",
            log.display()
        );
    }
    Ok(())
}

/// Arguments and environment of every process, and what of their memory could leave them.
fn no_process_shows_one(demo: &Demo, sweep: &Sweep) -> Result<()> {
    let mut looked_at = 0;
    for process in demo.processes() {
        let (name, role) = (process["name"].as_str().unwrap_or("?"), process["role"].as_str().unwrap_or("?"));
        let Some(pid) = process["pid"].as_u64() else { continue };
        let place = |file: &str| format!("/proc/{pid}/{file}");
        nothing(&sweep.bytes(&format!("arguments of {name}"), &fs::read(place("cmdline"))?))?;
        // Of a process that cannot be looked into, only root may read the environment and the filter.
        let shut = matches!(role, "control" | "agent");
        match fs::read(place("environ")) {
            Ok(environment) => nothing(&sweep.bytes(&format!("environment of {name}"), &environment))?,
            Err(e) => ensure!(shut && e.kind() == std::io::ErrorKind::PermissionDenied, "{name}: {e}"),
        }
        match fs::read_to_string(place("coredump_filter")) {
            Ok(filter) => ensure!(filter.trim() == "00000000", "{name}: coredump_filter {filter}"),
            Err(e) => ensure!(shut && e.kind() == std::io::ErrorKind::PermissionDenied, "{name}: {e}"),
        }
        ensure!(no_core_file(pid)?, "{name} may leave a core file");
        looked_at += 1;
    }
    ensure!(looked_at >= 30, "only {looked_at} processes were looked at");
    Ok(())
}

/// Whether its limit lets no core file be made: a byte at most.
fn no_core_file(pid: u64) -> Result<bool> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max core file size")).context("no core limit")?;
    let limits: Vec<_> = line.split_whitespace().take(2).collect();
    Ok(limits == ["1", "1"] || limits == ["0", "0"])
}

fn nothing(hits: &[Hit]) -> Result<()> {
    ensure!(hits.is_empty(), "private keys were found: {hits:#?}");
    Ok(())
}

/// A control node, stopped where it waits for its passphrase: looked at from outside, then killed as by a crash.
#[test]
fn t25_a_control_node_cannot_be_looked_into_and_leaves_no_core_dump() {
    let dir = tempfile::tempdir().unwrap();
    // Where nobody can get at it, whoever runs this.
    let binary = dir.path().join("hanse");
    fs::copy(house::binary().unwrap(), &binary).unwrap();
    let data = dir.path().join("data");
    let init = [
        "node",
        "init",
        "--cluster",
        "east",
        "--trust-domain",
        "east.example",
        "--name",
        "east-1",
        "--raft-id",
        "1",
        "--advertise",
        "127.0.0.1:7443",
        "--data-dir",
    ];
    assert!(Command::new(&binary).args(init).arg(&data).output().unwrap().status.success());
    for path in [dir.path(), &data] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut control = Command::new(&binary);
    control.args(["control", "--listen", "127.0.0.1:0", "--key-passphrase-fd", "0", "--data-dir"]).arg(&data);
    control.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(dir.path());
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if root {
        // Root may look into everything; so that something can be seen, it is run as somebody else.
        control.uid(NOBODY).gid(NOBODY);
    }
    let mut control = control.spawn().unwrap();
    let pid = u64::from(control.id());
    let began = Instant::now();
    while !no_core_file(pid).unwrap() || owner(pid, "environ") != 0 {
        assert!(began.elapsed() < SOON, "its memory is not shut");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The kernel shows the process as its user's, and what could tell of its memory as root's.
    assert_eq!(owner(pid, "status"), 0);
    if !root {
        let denied = fs::read(format!("/proc/{pid}/environ")).unwrap_err();
        assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
    }
    let aborted = Command::new("kill").args(["-ABRT", &pid.to_string()]).status().unwrap();
    assert!(aborted.success());
    let ended = control.wait().unwrap();
    assert_eq!(ended.signal(), Some(6), "{ended:?}");
    assert!(!ended.core_dumped(), "{ended:?}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("core")), "{left:?}");
}

fn owner(pid: u64, file: &str) -> u32 {
    fs::metadata(format!("/proc/{pid}/{file}")).unwrap().uid()
}

/// The same through the command line: encrypted at birth, refused under another passphrase, plain keys converted.
#[test]
fn t24_keys_are_encrypted_at_rest_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let hanse = |arguments: &[&str], passphrase: Option<&str>| {
        let mut command = Command::new(house::binary().unwrap());
        command.args(arguments).current_dir(dir.path()).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read it may have ended already.
        let _ = stdin.write_all(passphrase.unwrap_or_default().as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    };
    let init = |data: &str, flags: &[&str], passphrase| {
        let node = [
            "node",
            "init",
            "--cluster",
            "east",
            "--trust-domain",
            "east.example",
            "--name",
            "east-1",
            "--raft-id",
            "1",
            "--advertise",
            "127.0.0.1:7443",
            "--data-dir",
            data,
        ];
        hanse(&[&node[..], flags].concat(), passphrase)
    };
    let credential = |data: &str, flags: &[&str], passphrase| {
        let node = format!("{data}/node.json");
        let mint =
            ["node", "credential", "--data-dir", data, "--initial-nodes", &node, "--out", "admin.json"];
        hanse(&[&mint[..], flags].concat(), passphrase)
    };
    let sweep = Needles::forms().ready().unwrap();
    let plain_keys = |data: &str| sweep.folder(&dir.path().join(data), &[]).unwrap().0;

    assert!(hanse(&["node", "encryption-key", "--out", "keys.key"], None).status.success());
    let again = hanse(&["node", "encryption-key", "--out", "keys.key"], None);
    assert_eq!(again.status.code(), Some(6), "{again:?}");
    let under_file = ["--key-encryption-file", "keys.key"];
    assert!(init("sealed", &under_file, None).status.success());
    assert_eq!(plain_keys("sealed"), []);
    assert!(credential("sealed", &under_file, None).status.success());
    let without = credential("sealed", &[], None);
    assert_eq!(without.status.code(), Some(2), "{without:?}");
    assert!(String::from_utf8_lossy(&without.stderr).contains("--key-encryption-file"));

    assert!(init("plain", &[], None).status.success());
    assert!(!plain_keys("plain").is_empty(), "the sweep sees what it looks for");
    let under_passphrase = ["--key-passphrase-fd", "0"];
    let convert = ["node", "encrypt-keys", "--data-dir", "plain", "--key-passphrase-fd", "0"];
    let converted = hanse(&convert, Some("correct horse battery\n"));
    assert!(converted.status.success(), "{converted:?}");
    assert_eq!(plain_keys("plain"), []);
    assert!(credential("plain", &under_passphrase, Some("correct horse battery\n")).status.success());
    let wrong = credential("plain", &under_passphrase, Some("incorrect horse battery\n"));
    assert_eq!(wrong.status.code(), Some(4), "{wrong:?}");
}

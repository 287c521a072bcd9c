//! Programs that know nothing of a mesh, in two network namespaces: curl, redis-cli, dig, grpcio and a shell's TCP on one host,
//! their servers on the other, a sidecar beside each, and the kernel that turns connections to it.
//!
//! The namespaces have no names: this thread is in the one, `cat` keeps the other, and both are gone with their last process.
//! Skipped, with a word on stderr, without root, `nft`, `ip`, `curl` or `dig`; without redis that part is.

#[path = "capture/grpc.rs"]
mod grpc;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hanse::demo::process::DIE_WITH_STDIN;
use hanse_tests::bare::{AGENT, Cluster};
use hanse_tests::house;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use super::{SOON, skipped};

/// The server's host, in whose namespace this thread is, and the client's.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const NETWORK: [(&str, &str); 2] = [("10.77.0.1/24", "fd77::1/64"), ("10.77.0.2/24", "fd77::2/64")];
/// Users of the two sidecars, and of the programs.
const CLIENT_PROXY: &str = "41337";
const SERVER_PROXY: &str = "41338";
const NOBODY: &str = "65534";
/// Of the app: HTTP, and a server that speaks first.
const HTTP: u16 = 9080;
const GREETS: u16 = 3306;
const REDIS: u16 = 6379;
/// Of the app too, in the range of ports that the kernel gives to who asks others: of a connection that is older than capture,
/// and one to ask from.
const APP_RANGE: &str = "40000-40010";
const OLD: u16 = 40007;
const ASKS: u16 = 40008;
/// Of a server that is not in the mesh, and what others' names are answered with.
const OUTSIDE: u16 = 8088;
const OUTSIDE_ADDRESS: [u8; 4] = [192, 0, 2, 7];
const WEB: &str = "web.shop.svc.clusterset.local";
const CACHE: &str = "cache.shop.svc.clusterset.local";
const CLIENT_ADMIN: &str = "127.0.0.1:15000";

#[test]
fn programs_that_know_nothing_of_a_mesh_are_in_it() {
    if let Some(missing) = missing() {
        return skipped("capture", &missing);
    }
    // A namespace is a thread's: the others of this process stay where they are.
    let told = std::thread::spawn(|| -> Result<()> {
        let story = Story::set()?;
        story.told().with_context(|| story.logs())
    });
    told.join().unwrap().unwrap();
}

fn missing() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("namespaces are made by root".to_owned());
    }
    let has = |program: &&&str| Command::new(program).arg("--version").output().is_err();
    let tools = ["nft", "ip", "curl", "dig", "nsenter"];
    tools.iter().find(has).map(|program| format!("{program} is not installed"))
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Story {
    cluster: Cluster,
    client: Client,
    binary: String,
    _sidecars: [Running; 2],
    redis: Option<Running>,
    dir: tempfile::TempDir,
}

/// The other host: a namespace that lives as long as this process.
struct Client(Running);

impl Client {
    /// A program there, as that user.
    fn command(&self, user: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.0.id()));
        command.args(["-S", user, "-G", user, "--", program]);
        command
    }

    /// What is opened in the client's namespace stays there.
    fn inside<T: Send + 'static>(
        &self,
        open: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.0.id()))?;
        let opened = std::thread::spawn(move || -> Result<T> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(open()?)
        });
        opened.join().unwrap()
    }

    /// What it prints; an error where it fails.
    fn run(&self, user: &str, line: &[&str]) -> Result<String> {
        said(line, &self.command(user, line[0]).args(&line[1..]).output()?)
    }
}

impl Story {
    fn set() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
        let keeper = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn()?;
        let client = Client(Running(keeper));
        connect(&client)?;
        serve()?;
        let dir = tempfile::tempdir()?;
        open_to_all(dir.path())?;
        let binary = house::binary()?.canonicalize()?.display().to_string();
        let cluster = Cluster::found_at(dir.path(), "east", SERVER.into(), &[Vec::new()])?;
        register(&cluster, "client", CLIENT_PROXY, &[])?;
        register(&cluster, "server", SERVER_PROXY, &["shop/web", "shop/cache"])?;
        let redis = Command::new("redis-server")
            .args(["--port", &REDIS.to_string(), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .ok()
            .map(Running);
        let sidecars = [
            sidecar(
                &cluster,
                dir.path(),
                "client",
                client.command(CLIENT_PROXY, &binary),
                &[
                    "--capture-port=15001",
                    "--dns-port=15053",
                    &format!("--dns-server={SERVER}:5300"),
                    &format!("--admin={CLIENT_ADMIN}"),
                ],
            )?,
            sidecar(
                &cluster,
                dir.path(),
                "server",
                as_user(SERVER_PROXY, &binary),
                &[
                    "--service=shop/web",
                    "--service=shop/cache",
                    &format!("--inbound={SERVER}:15006"),
                    &format!("--app=127.0.0.1:{HTTP}"),
                    &format!("--tcp-port={REDIS}=127.0.0.1:{REDIS}"),
                    &format!("--tcp-port={GREETS}=127.0.0.1:{GREETS}"),
                    "--admin=127.0.0.1:15000",
                ],
            )?,
        ];
        Ok(Self { cluster, client, binary, _sidecars: sidecars, redis, dir })
    }

    fn told(&self) -> Result<()> {
        let direct = format!("http://{SERVER}:{HTTP}/");
        ensure!(
            self.curl(&[&direct])?.contains("hello"),
            "before capture the app can be reached past its proxy"
        );
        let counter = grpc::App::serve(self)?;
        self.is_ready()?;
        self.capture_is_refused()?;
        let old = self.connection_of_before()?;
        self.capture()?;
        self.names()?;
        self.calls()?;
        counter.is_called(self)?;
        self.is_not_passed(&direct)?;
        is_no_way_past(old)?;
        self.asks_others()?;
        self.is_told_of_changes()?;
        self.is_taken_away()
    }

    /// The client's sidecar knows the services, and the server's has announced them.
    fn is_ready(&self) -> Result<()> {
        until("both sidecars are ready", || {
            let known =
                self.client.run("0", &["curl", "-sf", &format!("http://{CLIENT_ADMIN}/addresses")])?;
            ensure!(known.contains(WEB) && known.contains(CACHE), "{known}");
            self.client.run("0", &["curl", "-sf", &format!("http://{CLIENT_ADMIN}/readyz")])?;
            let services = self.cluster.run(["service", "list"])?;
            ensure!(String::from_utf8_lossy(&services).contains("web"), "no endpoint yet");
            Ok(())
        })
    }

    /// A redirection that would turn the proxy's own connections to it is not set.
    fn capture_is_refused(&self) -> Result<()> {
        let wrong = ["proxy", "capture", "up", "--uid", "41340", "--capture-port", "15001"];
        let output = self.client.command("0", &self.binary).args(wrong).output()?;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && why.contains("E5201") && why.contains(CLIENT_PROXY), "{why}");
        let absent = self.hanse(&["show"])?;
        ensure!(absent.starts_with("down"), "{absent}");
        Ok(())
    }

    fn capture(&self) -> Result<()> {
        for _ in 0..2 {
            self.hanse(&["up", "--uid", CLIENT_PROXY, "--capture-port", "15001", "--dns-port", "15053"])?;
        }
        let ports = [HTTP, REDIS, GREETS].map(|port| format!("--app-port={port}"));
        let range = format!("--app-port={APP_RANGE}");
        let up = ["proxy", "capture", "up", "--uid", SERVER_PROXY, "--inbound-port", "15006"];
        let mut here = Command::new(&self.binary);
        said(&up, &here.args(up).args(ports).arg(range).output()?)?;
        ensure!(self.hanse(&["show"])?.starts_with("up\n"), "it is set");
        Ok(())
    }

    fn names(&self) -> Result<()> {
        let dig = |line: &[&str]| self.client.run(NOBODY, &[&["dig", "+tries=1", "+time=5"], line].concat());
        let v4 = dig(&["+short", WEB])?;
        ensure!(v4.trim().parse::<Ipv4Addr>()?.octets()[0] == 240, "{v4}");
        ensure!(dig(&["+short", "+tcp", WEB])? == v4, "by TCP the same");
        ensure!(dig(&["+short", "@198.51.100.1", WEB])? == v4, "whichever server is asked");
        ensure!(dig(&["+short", WEB, "AAAA"])?.starts_with("fd68:616e:7365:"), "no IPv6 address");
        ensure!(dig(&["+short", "-x", v4.trim()])?.trim() == format!("{WEB}."), "no name of {v4}");
        let nothing = dig(&["nothing.shop.svc.clusterset.local"])?;
        ensure!(nothing.contains("status: NXDOMAIN") && nothing.contains("SOA"), "{nothing}");
        let no_data = dig(&[WEB, "MX"])?;
        ensure!(no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0"), "{no_data}");
        let outside = dig(&["+short", "www.example.org"])?;
        ensure!(outside.trim() == Ipv4Addr::from(OUTSIDE_ADDRESS).to_string(), "forwarded: {outside}");
        Ok(())
    }

    fn calls(&self) -> Result<()> {
        let url = format!("http://{WEB}/");
        for how in ["-4", "-6", "--http2-prior-knowledge"] {
            let answer = self.curl(&[how, &url]).context(how)?;
            let host = format!("host: {WEB}");
            ensure!(answer.contains("hello") && answer.to_lowercase().contains(&host), "{how}: {answer}");
            ensure!(answer.contains("sa/client"), "{how}: the app is not told of the caller: {answer}");
        }
        let greeting = format!("exec 3<>/dev/tcp/{CACHE}/{GREETS}; head -c 8 <&3; echo thanks >&3");
        ensure!(
            self.client.run(NOBODY, &["bash", "-c", &greeting])? == "greeting",
            "a server that speaks first"
        );
        let outside = self.curl(&[&format!("http://{SERVER}:{OUTSIDE}/")])?;
        ensure!(outside.contains("hello") && !outside.contains("sa/client"), "passed through: {outside}");
        if self.redis.is_none() {
            skipped("redis", "it is not installed");
        } else {
            let redis =
                |line: &[&str]| self.client.run(NOBODY, &[&["redis-cli", "-h", CACHE], line].concat());
            ensure!(redis(&["SET", "key", "value"])?.trim() == "OK", "redis-cli SET");
            ensure!(redis(&["GET", "key"])?.trim() == "value", "redis-cli GET");
        }
        let metrics = self.client.run("0", &["curl", "-sf", &format!("http://{CLIENT_ADMIN}/metrics")])?;
        for family in
            ["to=\"http\"", "to=\"tcp\"", "to=\"passthrough\"", "answer=\"mesh\"", "answer=\"forwarded\""]
        {
            ensure!(metrics.contains(family), "{family} is not counted\n{metrics}");
        }
        let unknown = self.curl(&["http://240.240.0.0/"]);
        ensure!(unknown.is_err(), "nobody has that address: {unknown:?}");
        Ok(())
    }

    /// From the other host nobody gets plain text of the app, not even whom nobody captures.
    fn is_not_passed(&self, direct: &str) -> Result<()> {
        for url in [direct, &format!("http://[fd77::1]:{HTTP}/")] {
            let past = self.client.run(CLIENT_PROXY, &["curl", "-sS", "-m", "5", "--noproxy", "*", url]);
            ensure!(past.is_err(), "past the proxy: {past:?}");
        }
        let past = format!("exec 3<>/dev/tcp/{SERVER}/{GREETS}; timeout 5 head -c 8 <&3");
        let past = self.client.run(CLIENT_PROXY, &["bash", "-c", &past]);
        ensure!(!past.as_ref().is_ok_and(|said| said.contains("greeting")), "past the proxy: {past:?}");
        // The app's own host reaches it still.
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, GREETS))?;
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting)?;
        ensure!(&greeting == b"greeting", "{greeting:?}");
        Ok(())
    }

    /// A client's end and the app's of a connection that is open before anything is captured.
    fn connection_of_before(&self) -> Result<(TcpStream, TcpStream)> {
        let app = TcpListener::bind((SERVER, OLD))?;
        let client = self.client.inside(|| TcpStream::connect((SERVER, OLD)))?;
        Ok((client, app.accept()?.0))
    }

    /// What this host asks of others is answered, also where the port that it asks from is among the app's.
    fn asks_others(&self) -> Result<()> {
        let from = SocketAddr::from((SERVER, ASKS));
        let (listener, udp) = self
            .client
            .inside(|| Ok((TcpListener::bind((CLIENT, OUTSIDE))?, UdpSocket::bind((CLIENT, OUTSIDE))?)))?;
        let answers = std::thread::spawn(move || -> std::io::Result<()> {
            listener.accept()?.0.write_all(b"answer")?;
            let (_, whom) = udp.recv_from(&mut [0; 16])?;
            udp.send_to(b"answer", whom).map(drop)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ask = async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(from)?;
            let mut answer = [0; 6];
            let mut stream = socket.connect((CLIENT, OUTSIDE).into()).await?;
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await?;
            let socket = tokio::net::UdpSocket::bind(from).await?;
            socket.send_to(b"question", (CLIENT, OUTSIDE)).await?;
            let (length, _) = socket.recv_from(&mut answer).await?;
            ensure!(length == 6, "{length} bytes");
            Ok(())
        };
        let asked = runtime.block_on(async { tokio::time::timeout(SOON, ask).await });
        asked.context("no answer came back to a port of the app's")??;
        answers.join().unwrap()?;
        Ok(())
    }

    fn is_told_of_changes(&self) -> Result<()> {
        let up = ["up", "--uid", CLIENT_PROXY, "--capture-port", "15001", "--dns-port", "15053"];
        self.client.run("0", &["nft", "add", "rule", "inet", "hanse", "outbound", "accept"])?;
        let show = self
            .client
            .command("0", &self.binary)
            .args(["proxy", "capture", "show", "-o", "json"])
            .output()?;
        let shown: Value = serde_json::from_slice(&show.stdout)?;
        ensure!(show.status.code() == Some(1) && shown["state"] == "changed", "{shown}");
        ensure!(shown["plan"]["outbound"]["port"] == 15001, "{shown}");
        // Without `ip` it cannot be set, and what was set stays.
        let half = self.dir.path().join("half");
        fs::create_dir_all(&half)?;
        std::os::unix::fs::symlink(
            said(&["which", "nft"], &Command::new("which").arg("nft").output()?)?.trim(),
            half.join("nft"),
        )?;
        let up_without_ip = [&[self.binary.as_str(), "proxy", "capture"], up.as_slice()].concat();
        let mut env = self.client.command("0", "env");
        let failed = env.arg(format!("PATH={}", half.display())).args(up_without_ip).output()?;
        let why = String::from_utf8_lossy(&failed.stderr);
        ensure!(!failed.status.success() && why.contains("E5203"), "{why}");
        let again = self.client.command("0", &self.binary).args(["proxy", "capture", "show"]).output()?;
        ensure!(String::from_utf8_lossy(&again.stdout).starts_with("changed"), "it stays as it was");
        self.hanse(&up)?;
        ensure!(self.hanse(&["show"])?.starts_with("up\n"), "it is set anew");
        Ok(())
    }

    fn is_taken_away(&self) -> Result<()> {
        for _ in 0..2 {
            ensure!(self.hanse(&["down"])?.starts_with("down"), "again is no error");
            let here = ["proxy", "capture", "down"];
            said(&here, &Command::new(&self.binary).args(here).output()?)?;
        }
        ensure!(self.hanse(&["show"])?.starts_with("down"), "it is gone");
        ensure!(!self.client.run("0", &["nft", "list", "tables"])?.contains("hanse"), "the table is left");
        ensure!(
            !self.client.run("0", &["ip", "route", "show", "table", "local"])?.contains("240.240"),
            "a route is left"
        );
        let direct = self.curl(&[&format!("http://{SERVER}:{HTTP}/")])?;
        ensure!(direct.contains("hello"), "the app can be reached again: {direct}");
        Ok(())
    }

    fn curl(&self, arguments: &[&str]) -> Result<String> {
        self.client.run(NOBODY, &[&["curl", "-sSf", "-m", "20", "--noproxy", "*"], arguments].concat())
    }

    /// `hanse proxy capture` on the client's host.
    fn hanse(&self, arguments: &[&str]) -> Result<String> {
        self.client.run("0", &[&[self.binary.as_str(), "proxy", "capture"], arguments].concat())
    }

    fn logs(&self) -> String {
        self.cluster.logs()
    }
}

impl Drop for Story {
    /// The tables go with the namespaces; what is kept of them in files does not.
    fn drop(&mut self) {
        let _ = self.hanse(&["down"]);
        let _ = Command::new(&self.binary).args(["proxy", "capture", "down"]).output();
    }
}

/// An identity for what a user of either host runs.
fn register(cluster: &Cluster, workload: &str, user: &str, services: &[&str]) -> Result<()> {
    let (id, uid) = (format!("spiffe://east.example/ns/shop/sa/{workload}"), format!("unix:uid:{user}"));
    let services = services.iter().flat_map(|service| ["--service", *service]);
    let line = ["workload", "register", &id, "--agent", AGENT, "--selector", &uid];
    cluster.run(line.into_iter().chain(services)).map(drop)
}

fn as_user(user: &str, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", program]);
    command
}

fn sidecar(
    cluster: &Cluster,
    dir: &Path,
    name: &str,
    mut command: Command,
    more: &[&str],
) -> Result<Running> {
    let log = File::create(dir.join(format!("{name}.log")))?;
    let socket = cluster.file("agent.sock");
    command.args(["proxy", "--name", name, "--socket", &socket, "--control", &cluster.nodes()[0]]);
    command
        .args(["--workers", "2"])
        .args(more)
        .env(DIE_WITH_STDIN, "1")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(Running(command.spawn()?))
}

/// A cable between the two hosts. The client's has a default route, as hosts have.
fn connect(client: &Client) -> Result<()> {
    let other = client.0.0.id().to_string();
    until("the other namespace is made", || {
        let theirs = fs::read_link(format!("/proc/{other}/ns/net"))?;
        ensure!(theirs != fs::read_link("/proc/thread-self/ns/net")?, "it is in ours");
        Ok(())
    })?;
    let here = |line: &str| -> Result<String> {
        let line: Vec<&str> = line.split(' ').collect();
        said(&line, &Command::new(line[0]).args(&line[1..]).output()?)
    };
    let there = |line: &str| client.run("0", &line.split(' ').collect::<Vec<_>>());
    here(&format!("ip link add cable0 type veth peer name cable1 netns {other}"))?;
    let [(own, own6), (theirs, theirs6)] = NETWORK;
    for line in [
        "ip link set lo up".to_owned(),
        "ip link set cable0 up".to_owned(),
        format!("ip addr add {own} dev cable0"),
        format!("ip -6 addr add {own6} dev cable0 nodad"),
    ] {
        here(&line)?;
    }
    for line in [
        "ip link set lo up".to_owned(),
        "ip link set cable1 up".to_owned(),
        format!("ip addr add {theirs} dev cable1"),
        format!("ip -6 addr add {theirs6} dev cable1 nodad"),
        format!("ip route add default via {SERVER}"),
    ] {
        there(&line)?;
    }
    Ok(())
}

/// Neither end's bytes get to the other, not even when the app speaks first.
fn is_no_way_past((mut client, mut app): (TcpStream, TcpStream)) -> Result<()> {
    // Long enough for what is sent again once.
    let long_enough = Some(Duration::from_millis(500));
    for stream in [&client, &app] {
        stream.set_read_timeout(long_enough)?;
    }
    let mut byte = [0];
    app.write_all(b"x")?;
    ensure!(client.read(&mut byte).is_err(), "the app's went past");
    client.write_all(b"x")?;
    ensure!(app.read(&mut byte).is_err(), "the client's went past");
    Ok(())
}

/// The app's servers, one that is no app's, and a name server, each a thread of this namespace for as long as the process.
fn serve() -> Result<()> {
    for port in [HTTP, OUTSIDE] {
        listen(port, |stream| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
                head.push(byte[0]);
            }
            let body = [b"hello\n", head.as_slice()].concat();
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
            stream.write_all(&body)
        })?;
    }
    listen(GREETS, |stream| {
        stream.write_all(b"greeting")?;
        stream.read(&mut [0; 16]).map(drop)
    })?;
    let socket = UdpSocket::bind((SERVER, 5300))?;
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&an_address(&question[..length]), from);
        }
    });
    Ok(())
}

fn listen(
    port: u16,
    answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Copy + Send + 'static,
) -> Result<()> {
    let listener = TcpListener::bind(("::", port))?;
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || answer(&mut stream));
        }
    });
    Ok(())
}

/// The answer to any question: one address (RFC 1035 §4.1).
fn an_address(question: &[u8]) -> Vec<u8> {
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap_or_default();
    let asked = &question[12..12 + name + 5];
    let counts = [0, 1, 0, 1, 0, 0, 0, 0];
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4];
    [&question[..2], &[0x81, 0x80], &counts, asked, &record, &OUTSIDE_ADDRESS].concat()
}

/// Agents and proxies of other users have files here too.
fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?)
}

fn said(line: &[&str], output: &Output) -> Result<String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{line:?}: {}\n{out}{err}", output.status);
    }
    Ok(out.into_owned())
}

fn until(what: &str, holds: impl Fn() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        match holds() {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > SOON => return Err(error.context(format!("in time: {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

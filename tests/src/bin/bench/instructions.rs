//! Instructions per request in user space, by callgrind: what else the machine does moves them far less than it moves times. Ours
//! and the bound of hyper with HTTP/2, one worker each.
//!
//! An agent knows a sidecar by its executable, which under valgrind is valgrind's tool: each sidecar has a copy of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hanse_tests::house;

use crate::bare::{self, Mode};
use crate::load::{self, Target};
use crate::process::{Process, free_address};
use crate::{Arguments, House, LOCAL, mesh, target};

const TOOL: &str = "callgrind-amd64-linux";
/// Where systems keep valgrind's tools.
const LIBRARIES: [&str; 3] =
    ["/usr/libexec/valgrind", "/usr/lib/valgrind", "/usr/lib/x86_64-linux-gnu/valgrind"];
/// A program under valgrind takes its time to begin.
const LISTENS_WITHIN: Duration = Duration::from_secs(90);
/// So many are counted, on connections that are open: as many on a slow machine, where what is done from time to time is done
/// more often among them.
const REQUESTS: usize = 5000;
/// callgrind counts `rep movsb` by the byte, which no processor does.
const COPIES_IN_BLOCKS: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// Two hops, the second first.
struct Hops {
    name: &'static str,
    target: Target,
    hops: [Counted; 2],
}

/// A process whose instructions are counted once it is told so.
struct Counted {
    process: Process,
    output: PathBuf,
}

pub fn run(arguments: &Arguments, house: &House) -> Result<()> {
    let library = LIBRARIES.iter().map(Path::new).find(|path| path.join(TOOL).is_file());
    let Some(library) = library else {
        println!("\ninstructions: left out, valgrind for x86-64 is not installed");
        return Ok(());
    };
    let both = [ours(arguments, house, library)?, bound(arguments, house, library)?];
    println!("\ninstructions per request in user space, by callgrind, {} byte answers", arguments.body);
    println!("{:<28} {:>12} {:>10} {:>10} {:>10} {:>8}", "", "connections", "A", "B", "two hops", "ours/it");
    for connections in &arguments.connections {
        let mut of_ours = None;
        for hops in &both {
            let [b, a] = hops.count(*connections)?;
            let two = a + b;
            let ratio = of_ours.map(|ours: f64| format!("{:.2}", ours / two)).unwrap_or_default();
            println!("{:<28} {connections:>12} {a:>10.0} {b:>10.0} {two:>10.0} {ratio:>8}", hops.name);
            of_ours.get_or_insert(two);
        }
    }
    Ok(())
}

fn ours(arguments: &Arguments, house: &House, library: &Path) -> Result<Hops> {
    const SERVICE: &str = "shop/bench-counted";
    const HOST: &str = "bench-counted.shop.svc.cluster.local";
    let (inbound, outbound) = (free_address()?, free_address()?);
    let sidecar = |name: &str, service: Option<&str>, flags: &[String], listens| {
        let tools = house.demo.dir().join("bin").join(name);
        copy(library, &tools)?;
        mesh::register_sidecar(&house.demo, "east", name, service, &tools.join(TOOL))?;
        let mut arguments = vec!["proxy".to_owned(), "--workers=1".to_owned(), format!("--name={name}")];
        arguments.push(format!("--admin={}", free_address()?));
        arguments.extend_from_slice(flags);
        arguments.extend(mesh::links(&house.demo, "east")?);
        counted(&tools, &house::binary()?, &arguments, listens)
    };
    let serves = [
        format!("--service={SERVICE}"),
        format!("--inbound={inbound}"),
        format!("--app={}", house.app_address),
    ];
    let target_hop = sidecar("bench-counted-target", Some(SERVICE), &serves, inbound)?;
    let calls = [format!("--outbound={outbound}")];
    let caller = sidecar("bench-counted-caller", None, &calls, outbound)?;
    Ok(Hops { name: LOCAL, target: target(outbound, HOST, arguments.body), hops: [target_hop, caller] })
}

fn bound(arguments: &Arguments, house: &House, library: &Path) -> Result<Hops> {
    let (near, between) = (free_address()?, free_address()?);
    let this = std::env::current_exe()?;
    let end = |end: &str, listen: SocketAddr, to: SocketAddr| {
        let files = house.certificates.directory().display().to_string();
        let line =
            [end.to_owned(), Mode::Http2.argument().to_owned(), listen.to_string(), to.to_string(), files];
        let tools = house.demo.dir().join("bin").join(format!("counted-{end}"));
        copy(library, &tools)?;
        counted(&tools, &this, &line, listen)
    };
    let server = end(bare::SERVER, between, house.app_address)?;
    let client = end(bare::CLIENT, near, between)?;
    let target = target(near, "bench", arguments.body);
    Ok(Hops { name: Mode::Http2.name(), target, hops: [server, client] })
}

fn copy(library: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(library)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn counted(tools: &Path, program: &Path, arguments: &[String], listens: SocketAddr) -> Result<Counted> {
    let output = tools.join("counts");
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind", "--instr-atstart=no"]);
    command.arg(format!("--callgrind-out-file={}", output.display())).arg(program).args(arguments);
    command.env("VALGRIND_LIB", tools).env("GLIBC_TUNABLES", COPIES_IN_BLOCKS).env("RUST_LOG", "error");
    Ok(Counted { process: Process::listening_within(command, listens, LISTENS_WITHIN)?, output })
}

impl Hops {
    /// Of each hop, per request.
    fn count(&self, connections: usize) -> Result<[f64; 2]> {
        load::run(load::answers(&self.target))?;
        for hop in &self.hops {
            hop.control("--instr=on")?;
        }
        // What is done once has been done.
        load::run(load::repeated(&self.target, connections, 2, || Ok(())))?;
        let each = REQUESTS.div_ceil(connections);
        let zero = || self.hops.iter().try_for_each(|hop| hop.control("--zero"));
        load::run(load::repeated(&self.target, connections, each, zero))?;
        let mut counts = [0.0; 2];
        for (hop, count) in self.hops.iter().zip(&mut counts) {
            hop.control("--dump")?;
            hop.control("--instr=off")?;
            *count = hop.total()? as f64 / (each * connections) as f64;
        }
        Ok(counts)
    }
}

impl Counted {
    fn control(&self, what: &str) -> Result<()> {
        let pid = self.process.pid().to_string();
        let mut command = Command::new("callgrind_control");
        let status = command.args([what, &pid]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "callgrind_control {what} {pid}: {status}");
        Ok(())
    }

    /// What was counted until the last dump; the file is named by the output's name and a number that goes up.
    fn total(&self) -> Result<u64> {
        let directory = self.output.parent().context("it is in a directory")?;
        let mut last = (0, None);
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("counts.").and_then(|number| number.parse::<u64>().ok());
            if let Some(number) = number.filter(|number| *number > last.0) {
                last = (number, Some(name));
            }
        }
        let text = std::fs::read_to_string(directory.join(last.1.context("callgrind has written nothing")?))?;
        let total = text.lines().rev().find_map(|line| {
            let counts = line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:"))?;
            counts.split_whitespace().next()?.parse().ok()
        });
        total.context("callgrind has written no total")
    }
}

//! Attestation against the real kernel: this process itself, and children that this process starts.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_lc_rs::digest;
use hanse_identity::{Evidence, NodeName, Registration};

use super::process::Credentials;
use super::*;

/// Where a child of the reuse tests connects to.
const SOCKET: &str = "HANSE_TEST_SOCKET";

/// A child that ends when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own_ids() -> (u32, u32) {
    let Credentials { uid, gid, .. } = Credentials::of(std::process::id()).unwrap();
    (uid, gid)
}

fn peer_of(pid: u32) -> Peer {
    let (uid, gid) = own_ids();
    Peer { uid, gid, pid: Some(i32::try_from(pid).unwrap()), pidfd: None, accepted: None }
}

fn sha256_of(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    digest::digest(&digest::SHA256, &bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn attests_this_process_over_a_real_socket() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let client = UnixStream::connect(dir.path().join("s")).unwrap();
    let (server, _) = listener.accept().unwrap();
    let peer = Peer::of(&server).unwrap();

    let caller = Attestor::default().attest(&peer).unwrap();

    let exe = std::env::current_exe().unwrap();
    assert_eq!(caller.process.pid, std::process::id());
    assert_eq!((caller.uid, caller.gid), own_ids());
    assert_eq!(caller.path.as_deref(), exe.to_str());
    assert_eq!(caller.sha256(), None, "nobody has asked for it");
    assert!(!caller.selectors().iter().any(|s| matches!(s, Selector::Sha256(_))));
    caller.hash_executable();
    assert_eq!(caller.sha256(), Some(sha256_of(&exe).as_str()));
    assert!(caller.selectors().contains(&Selector::Sha256(sha256_of(&exe))));
    let path = Selector::Path(exe.to_str().unwrap().to_owned());
    assert!(caller.selectors().contains(&path));
    assert!(caller.selectors().contains(&Selector::Uid(caller.uid)));
    let credentials = Credentials::of(std::process::id()).unwrap();
    assert_eq!(caller.supplementary_gids, credentials.supplementary);
    drop(client);
}

#[test]
fn a_deleted_executable_has_no_path_but_a_digest() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("waits");
    std::fs::copy("/bin/sleep", &copy).unwrap();
    let digest = sha256_of(&copy);
    let child = Running(Command::new(&copy).arg("600").stdout(Stdio::null()).spawn().unwrap());
    std::fs::remove_file(&copy).unwrap();

    let caller = Attestor::default().attest(&peer_of(child.0.id())).unwrap();

    caller.hash_executable();
    assert_eq!(caller.path, None);
    assert_eq!(caller.sha256(), Some(digest.as_str()));
}

#[test]
fn a_process_that_ended_is_refused() {
    let mut child = Command::new("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    let refused = Attestor::default().attest(&peer_of(child.id()));
    assert!(matches!(refused, Err(AttestError::Unreadable { .. })), "{refused:?}");
}

#[test]
fn another_user_than_the_one_that_connected_is_refused() {
    let pid = std::process::id();
    let peer = Peer { uid: own_ids().0 + 1, ..peer_of(pid) };
    assert_eq!(Attestor::default().attest(&peer), Err(AttestError::UserChanged { pid }));
}

#[test]
fn no_pid_is_refused() {
    for pid in [None, Some(0), Some(-1)] {
        let peer = Peer { pid, ..peer_of(1) };
        assert_eq!(Attestor::default().attest(&peer), Err(AttestError::NoPid));
    }
}

#[test]
fn a_changed_file_is_hashed_again_and_the_memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let executables = Executables::default();
    std::fs::write(&path, "one").unwrap();
    let first = executables.at(&path).unwrap();
    let digest = first.hash(&path).unwrap();
    assert_eq!(executables.at(&path).unwrap().digest(), Some(digest), "known to everyone who runs it");
    assert_eq!(executables.known.lock().unwrap().len(), 1);
    std::fs::write(&path, "longer than one").unwrap();
    let second = executables.at(&path).unwrap();
    assert_ne!(second, first);
    assert_eq!(second.digest(), None);
    assert_ne!(second.hash(&path), Some(digest));
    for n in 0..MAX_REMEMBERED_EXECUTABLES + 10 {
        let path = dir.path().join(n.to_string());
        std::fs::write(&path, n.to_string()).unwrap();
        executables.at(&path).unwrap();
    }
    assert_eq!(executables.known.lock().unwrap().len(), MAX_REMEMBERED_EXECUTABLES);
}

#[test]
fn hashing_is_bounded_in_size_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, "0123456789").unwrap();
    let executable = Executables::default().at(&path).unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(executable.hash_within(&path, 9, minute), None);
    assert_eq!(executable.hash_within(&path, 10, Duration::ZERO), None);
    assert_eq!(executable.hash_within(&path, 10, minute), Some(sha256_of(&path).as_str()));
    let directory = Executables::default().at(dir.path()).unwrap();
    assert_eq!(directory.hash(dir.path()), None, "a directory has no content");
}

#[test]
fn what_has_taken_the_place_of_an_executable_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("f"), dir.path().join("g"));
    std::fs::write(&path, "one").unwrap();
    std::fs::write(&other, "two").unwrap();
    let executable = Executables::default().at(&path).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(executable.hash(&path), None);
    assert_eq!(executable.digest(), None);
}

/// A file that is renamed over the running one: what runs is the old one, and the path is the new one's.
#[test]
fn a_replaced_executable_has_no_path_and_the_digest_of_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (running, new) = (dir.path().join("app"), dir.path().join("app.new"));
    std::fs::copy("/bin/sleep", &running).unwrap();
    std::fs::copy("/bin/cat", &new).unwrap();
    let child = Running(Command::new(&running).arg("600").stdout(Stdio::null()).spawn().unwrap());
    let attestor = Attestor::default();
    let before = attestor.attest(&peer_of(child.0.id())).unwrap();
    before.hash_executable();
    assert_eq!(before.path.as_deref(), running.to_str());

    std::fs::rename(&new, &running).unwrap();

    let after = attestor.attest(&peer_of(child.0.id())).unwrap();
    after.hash_executable();
    assert_eq!((&after.path, after.sha256()), (&None, before.sha256()));
    assert!(after.sha256().is_some_and(|digest| digest != sha256_of(&running)));
}

/// Every kind of selector against a process of which each is known: it is given its identity by what is so and by
/// nothing that is not, alone and together with something that is.
#[test]
fn the_whole_matrix_of_selectors() {
    let (uid, gid) = own_ids();
    let root = uid == 0;
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app");
    std::fs::copy("/bin/sleep", &app).unwrap();
    std::fs::write(dir.path().join("users"), format!("me:x:{uid}:\nsomeone:x:4242:\n")).unwrap();
    std::fs::write(dir.path().join("groups"), format!("mine:x:{gid}:\nfirst:x:{}:\nother:x:9:\n", gid + 1))
        .unwrap();
    let mut command = Command::new(&app);
    command.arg("600").stdout(Stdio::null());
    if root {
        // Only root may choose the groups of its children.
        command.groups_of(&[gid + 1, gid + 2]);
    }
    let child = Running(command.spawn().unwrap());
    let became_app = || process::executable_link(child.0.id()).as_deref() == app.to_str();
    while !became_app() {
        std::thread::yield_now();
    }
    let attestor = Attestor {
        users: NameTable::new(dir.path().join("users")),
        groups: NameTable::new(dir.path().join("groups")),
        ..Attestor::default()
    };
    let mut caller = attestor.attest(&peer_of(child.0.id())).unwrap();
    // Not every host is run by systemd; `process` has the tests of reading it.
    caller.unit = Some("app.service".to_owned());
    caller.hash_executable();

    let digest = sha256_of(&app);
    let path = app.to_str().unwrap();
    let mut so = vec![
        format!("unix:uid:{uid}"),
        format!("unix:gid:{gid}"),
        "unix:user:me".to_owned(),
        "unix:group:mine".to_owned(),
        format!("unix:path:{path}"),
        format!("unix:sha256:{digest}"),
        "systemd:unit:app.service".to_owned(),
    ];
    if root {
        so.extend([
            format!("unix:supplementary-gid:{}", gid + 1),
            format!("unix:supplementary-gid:{}", gid + 2),
            "unix:supplementary-group:first".to_owned(),
        ]);
    }
    let not_so = [
        format!("unix:uid:{}", uid + 1),
        format!("unix:gid:{}", gid + 1),
        "unix:user:someone".to_owned(),
        "unix:user:root2".to_owned(),
        "unix:group:first".to_owned(),
        format!("unix:supplementary-gid:{}", gid + 77),
        "unix:supplementary-group:other".to_owned(),
        "unix:supplementary-group:mine2".to_owned(),
        format!("unix:path:{path}2"),
        "unix:path:/bin/sleep".to_owned(),
        format!("unix:sha256:{}", "0".repeat(64)),
        "systemd:unit:other.service".to_owned(),
    ];
    let agent: NodeName = "host-1".parse().unwrap();
    let evidence = Evidence { agent: agent.clone(), selectors: caller.selectors() };
    let given = |selectors: &[&String]| {
        let selectors = selectors.iter().map(|s| s.parse::<Selector>().unwrap());
        let id = "spiffe://east.example/app".parse().unwrap();
        Registration::new(id, agent.clone(), selectors).matches(&evidence)
    };
    for fact in &so {
        assert!(given(&[fact]), "{fact} of {evidence:?}");
        for wrong in &not_so {
            assert!(!given(&[wrong]), "{wrong}");
            assert!(!given(&[fact, wrong]), "{fact} and {wrong}");
        }
    }
    assert!(given(&so.iter().collect::<Vec<_>>()), "all of them together");
    assert!(!given(&[]), "no selector is no evidence");
    let unknown: Selector = serde_json::from_str("\"tpm:ek:4711\"").unwrap();
    let newer = Registration::new("spiffe://east.example/app".parse().unwrap(), agent.clone(), [unknown]);
    assert!(!newer.matches(&evidence), "what this version does not know, nobody has");
}

/// Sets the further groups of a child.
trait GroupsOf {
    fn groups_of(&mut self, groups: &[u32]);
}

impl GroupsOf for Command {
    /// With the tool that every Linux has for it: the standard library's own call is not stable yet.
    fn groups_of(&mut self, groups: &[u32]) {
        let list: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let program = self.get_program().to_owned();
        let arguments: Vec<_> = self.get_args().map(ToOwned::to_owned).collect();
        let mut wrapped = Command::new("setpriv");
        wrapped
            .arg(format!("--groups={}", list.join(",")))
            .arg(program)
            .args(arguments)
            .stdout(Stdio::null());
        *self = wrapped;
    }
}

/// The child of the tests below: connects, says nothing, and ends when the other side closes or at once.
#[test]
fn as_a_child_this_connects_and_goes() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let stream = UnixStream::connect(&path).unwrap();
    if std::env::var_os("HANSE_TEST_STAYS").is_some() {
        let _ = std::io::Read::read(&mut &stream, &mut [0]);
    }
}

fn child_that_connects(path: &Path, stays: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "attest::tests::as_a_child_this_connects_and_goes"]).env(SOCKET, path);
    if stays {
        command.env("HANSE_TEST_STAYS", "1");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Callers that end while they are attested, again and again: whoever is attested is the one that connected. The
/// child is waited for at a moment that differs from round to round, so that it ends before, within and after.
#[test]
fn a_caller_that_ends_is_never_taken_for_another() {
    const ROUNDS: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let attestor = Attestor::default();
    let own = sha256_of(&std::env::current_exe().unwrap());
    // Known before the race, so that the rounds are short.
    let exe = std::env::current_exe().unwrap();
    attestor.executables.at(&exe).unwrap().hash(&exe).unwrap();
    let (mut attested, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = child_that_connects(&dir.path().join("s"), false);
        let (server, _) = listener.accept().unwrap();
        let peer = Peer::of(&server).unwrap();
        let reaper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 50));
            child.wait().unwrap();
            child.id()
        });
        if round % 3 == 0 {
            // Certainly over: its number is free, and some other process may have it.
            let pid = reaper.join().unwrap();
            let refusal = attestor.attest(&peer).unwrap_err();
            let gone = matches!(&refusal, AttestError::Replaced(p) | AttestError::Unreadable { pid: p, .. } if *p == pid);
            assert!(gone, "{refusal}");
            refused += 1;
            continue;
        }
        match attestor.attest(&peer) {
            Ok(caller) => {
                assert_eq!(Some(i32::try_from(caller.process.pid).unwrap()), peer.pid);
                // A process that has ended and was not waited for has no executable any more.
                assert!(caller.sha256().is_none_or(|sha256| sha256 == own), "another process was attested");
                attested += 1;
            }
            Err(AttestError::Timeout | AttestError::NoPid) => panic!("neither is so"),
            Err(_) => refused += 1,
        }
        reaper.join().unwrap();
    }
    assert_eq!(attested + refused, ROUNDS);
    assert!(refused >= ROUNDS / 3);
}

/// The number of a caller that has ended is given to another process of the same user on purpose: neither with a
/// pidfd nor, as on an older kernel, with the start time alone is that one taken for the caller.
#[test]
fn the_next_process_with_the_same_number_is_not_attested() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let attestor = Attestor::default();
    for _ in 0..50 {
        let mut child = child_that_connects(&dir.path().join("s"), false);
        let (server, _) = listener.accept().unwrap();
        let mut peer = Peer::of(&server).unwrap();
        let pid = child.id();
        child.wait().unwrap();
        // Past the clock tick of the connection: the start time has no finer one.
        std::thread::sleep(Duration::from_millis(30));
        if std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_err() {
            eprintln!("skipped: only root may choose the next process number");
            return;
        }
        let other = Running(Command::new("/bin/sleep").arg("600").spawn().unwrap());
        if other.0.id() != pid {
            // Something else on this host was faster.
            continue;
        }
        if peer.pidfd.is_some() {
            assert_eq!(attestor.attest(&peer), Err(AttestError::Replaced(pid)), "with a pidfd");
        }
        peer.pidfd = None;
        assert_eq!(attestor.attest(&peer), Err(AttestError::Replaced(pid)), "by the start time");
        peer.accepted = None;
        assert!(
            attestor.attest(&peer).is_ok(),
            "else nobody would have noticed: the test is about something"
        );
        return;
    }
    panic!("the number could not be had in 50 attempts");
}

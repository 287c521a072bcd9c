//! Attestation against the real kernel: this process itself, and children that this process starts.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use super::*;

/// A child that ends when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own_ids() -> (u32, u32) {
    effective_ids(std::process::id()).unwrap()
}

fn peer_of(pid: u32) -> Peer {
    let (uid, gid) = own_ids();
    Peer { uid, gid, pid: Some(i32::try_from(pid).unwrap()) }
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
    server.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let credentials =
        runtime.block_on(async { tokio::net::UnixStream::from_std(server).unwrap().peer_cred().unwrap() });
    let peer = Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };

    let caller = attest(peer, &Executables::default()).unwrap();

    let exe = std::env::current_exe().unwrap();
    assert_eq!(caller.process.pid, std::process::id());
    assert_eq!((caller.uid, caller.gid), own_ids());
    assert_eq!(caller.path.as_deref(), exe.to_str());
    assert_eq!(caller.sha256, Some(sha256_of(&exe)));
    let path = Selector::Path(exe.to_str().unwrap().to_owned());
    assert!(caller.selectors().contains(&path));
    assert!(caller.selectors().contains(&Selector::Uid(caller.uid)));
    assert_eq!(caller.selectors().len(), 4);
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

    let caller = attest(peer_of(child.0.id()), &Executables::default()).unwrap();

    assert_eq!(caller.path, None);
    assert_eq!(caller.sha256, Some(digest));
}

#[test]
fn a_process_that_ended_is_refused() {
    let mut child = Command::new("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    let refused = attest(peer_of(child.id()), &Executables::default());
    assert!(matches!(refused, Err(AttestError::Unreadable { .. })), "{refused:?}");
}

#[test]
fn another_user_than_the_one_that_connected_is_refused() {
    let pid = std::process::id();
    let peer = Peer { uid: own_ids().0 + 1, ..peer_of(pid) };
    assert_eq!(attest(peer, &Executables::default()), Err(AttestError::UserChanged { pid }));
}

#[test]
fn no_pid_is_refused() {
    for pid in [None, Some(0), Some(-1)] {
        let peer = Peer { pid, ..peer_of(1) };
        assert_eq!(attest(peer, &Executables::default()), Err(AttestError::NoPid));
    }
}

#[test]
fn a_command_cannot_forge_its_start_time() {
    let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
    assert_eq!(parse_start_time(&format!("7 (a) S 1 1 1) {fields}")), Some(4711));
    assert_eq!(parse_start_time("7 (cut short) S 1"), None);
}

#[test]
fn effective_ids_are_the_second_number() {
    let status = "Name:\tUid: 5 5\nUid:\t1000\t0\t1000\t0\nGid:\t1\t2\t3\t4\n";
    assert_eq!(parse_effective_id(status, "Uid:"), Some(0));
    assert_eq!(parse_effective_id(status, "Gid:"), Some(2));
    assert_eq!(parse_effective_id("Name: x", "Uid:"), None);
}

#[test]
fn a_changed_file_is_hashed_again_and_the_memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let executables = Executables::default();
    std::fs::write(&path, "one").unwrap();
    let first = executables.digest(&path).unwrap();
    assert_eq!(executables.digest(&path), Some(first.clone()));
    assert_eq!(executables.known.lock().unwrap().len(), 1);
    std::fs::write(&path, "longer than one").unwrap();
    assert_ne!(executables.digest(&path), Some(first));
    for n in 0..MAX_REMEMBERED_EXECUTABLES + 10 {
        let path = dir.path().join(n.to_string());
        std::fs::write(&path, n.to_string()).unwrap();
        executables.digest(&path).unwrap();
    }
    assert_eq!(executables.known.lock().unwrap().len(), MAX_REMEMBERED_EXECUTABLES);
}

//! The wire on real sockets: it carries, delays, falls silent without losing a byte, and resets.

use super::*;

struct Fixture {
    _dir: tempfile::TempDir,
    control: PathBuf,
    listen: SocketAddr,
    echo: TcpListener,
}

async fn fixture(latency: Duration) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("wire.sock");
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relay =
        Relay { cluster: "west".into(), name: "w".into(), listen, target: echo.local_addr().unwrap() };
    let socket = control.clone();
    tokio::spawn(async move { serve(vec![relay], &socket, latency).await });
    while ask(&control, &Request::Status).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Fixture { _dir: dir, control, listen, echo }
}

async fn set(fixture: &Fixture, mode: Mode) {
    ask(&fixture.control, &Request::Set { clusters: vec!["west".into()], mode }).await.unwrap();
}

#[tokio::test]
async fn bytes_cross_with_the_latency_asked_for() {
    let fixture = fixture(Duration::from_millis(60)).await;
    let mut near = TcpStream::connect(fixture.listen).await.unwrap();
    let (mut far, _) = fixture.echo.accept().await.unwrap();
    let started = Instant::now();
    near.write_all(b"ahoy").await.unwrap();
    let mut buffer = [0; 4];
    far.read_exact(&mut buffer).await.unwrap();
    far.write_all(&buffer).await.unwrap();
    near.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ahoy");
    assert!(started.elapsed() >= Duration::from_millis(60));
    let status = ask(&fixture.control, &Request::Status).await.unwrap();
    assert_eq!(status.relays["w"].bytes, 8);
    assert_eq!(status.relays["w"].connections, 1);
}

#[tokio::test]
async fn silence_holds_bytes_and_lets_them_pass_after_the_heal() {
    let fixture = fixture(Duration::ZERO).await;
    let mut near = TcpStream::connect(fixture.listen).await.unwrap();
    let (mut far, _) = fixture.echo.accept().await.unwrap();
    set(&fixture, Mode::Silent).await;
    near.write_all(b"held").await.unwrap();
    let mut buffer = [0; 4];
    let early = tokio::time::timeout(Duration::from_millis(150), far.read_exact(&mut buffer)).await;
    assert!(early.is_err(), "a byte passed through silence");
    set(&fixture, Mode::Open).await;
    let mut buffer = [0; 4];
    far.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"held");
}

#[tokio::test]
async fn a_reset_breaks_live_connections_and_new_ones() {
    let fixture = fixture(Duration::ZERO).await;
    let mut near = TcpStream::connect(fixture.listen).await.unwrap();
    let _far = fixture.echo.accept().await.unwrap();
    set(&fixture, Mode::Reset).await;
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut again = TcpStream::connect(fixture.listen).await.unwrap();
    assert!(again.read_u8().await.is_err());
    let nowhere = Request::Set { clusters: vec!["nowhere".into()], mode: Mode::Open };
    assert!(ask(&fixture.control, &nowhere).await.is_err());
}

//! Tests: streams through the kernel, small messages past it, and what becomes of pipes.

use tokio::net::TcpListener;

use super::*;
use crate::telemetry::GatewayTelemetry;

const STREAM_BYTES: usize = 16 << 20;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn stream_of_bytes() -> Vec<u8> {
    (0..STREAM_BYTES).map(|n| (n / 251 + n) as u8).collect()
}

/// A relay under way: the two ends, and what became of it.
async fn started(pipes: &Arc<Pipes>) -> (TcpStream, TcpStream, tokio::task::JoinHandle<io::Result<()>>) {
    let ((client, dialler), (target, server)) = (pair().await, pair().await);
    let (open, pipes) = (GatewayTelemetry::default().open("east", "passthrough"), Arc::clone(pipes));
    (client, server, tokio::spawn(async move { relay_tcp(dialler, target, open, &pipes).await }))
}

fn idle(pipes: &Pipes) -> usize {
    pipes.idle.lock().unwrap().len()
}

/// What the server sends arrives, and a word after its end, the other way.
async fn sends_a_stream(mut client: TcpStream, mut server: TcpStream) {
    let sending = tokio::spawn(async move {
        server.write_all(&stream_of_bytes()).await.unwrap();
        server.shutdown().await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert!(got == stream_of_bytes(), "{} of {STREAM_BYTES} bytes, or others", got.len());
    client.write_all(b"thanks").await.unwrap();
    drop(client);
    assert_eq!(sending.await.unwrap(), b"thanks");
}

#[tokio::test]
async fn a_stream_is_moved_by_the_kernel_and_small_messages_are_not() {
    let pipes = Arc::new(Pipes::default());
    let (mut client, mut server, relayed) = started(&pipes).await;
    for n in 0..100u8 {
        client.write_all(&[n; 100]).await.unwrap();
        let mut asked = [0; 100];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, [n; 100]);
        server.write_all(&[n]).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), n);
    }
    assert_eq!((idle(&pipes), pipes.places.available_permits()), (0, MAX_PIPES));
    sends_a_stream(client, server).await;
    relayed.await.unwrap().unwrap();
    assert_eq!((idle(&pipes), pipes.places.available_permits()), (1, MAX_PIPES - 1), "kept for the next");
}

#[tokio::test]
async fn without_a_pipe_it_is_copied() {
    let pipes = Arc::new(Pipes { places: Arc::new(Semaphore::new(0)), idle: Mutex::default() });
    let (client, server, relayed) = started(&pipes).await;
    sends_a_stream(client, server).await;
    relayed.await.unwrap().unwrap();
    assert_eq!(idle(&pipes), 0);
}

#[tokio::test]
async fn whoever_does_not_read_stops_the_sender_and_the_pipe_of_a_cut_is_not_kept() {
    let pipes = Arc::new(Pipes::default());
    let (mut client, server, relayed) = started(&pipes).await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let sending = {
        let sent = Arc::clone(&sent);
        tokio::spawn(async move {
            let (mut server, block) = (server, vec![7; 64 * 1024]);
            while server.write_all(&block).await.is_ok() {
                sent.fetch_add(block.len(), std::sync::atomic::Ordering::Relaxed);
            }
        })
    };
    // It becomes a stream; then nobody reads, and at some point nothing more goes in.
    client.read_exact(&mut vec![0; STREAM_BYTES]).await.unwrap();
    let mut before = 0;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let now = sent.load(std::sync::atomic::Ordering::Relaxed);
        if pipes.places.available_permits() == MAX_PIPES - 1 && now == before {
            break;
        }
        before = now;
    }
    assert_eq!(idle(&pipes), 0);
    relayed.abort();
    assert!(relayed.await.unwrap_err().is_cancelled());
    sending.await.unwrap();
    drop(client);
    assert_eq!(
        (idle(&pipes), pipes.places.available_permits()),
        (0, MAX_PIPES),
        "it may have had bytes in it"
    );
}

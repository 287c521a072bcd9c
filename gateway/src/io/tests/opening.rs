//! What opens a tunnel's stream: TLS, whole, and nothing else either way before it.

use super::*;

/// A port that takes plain text takes it from its own network: who comes from another cluster has to say who he is.
#[test]
fn plain_text_comes_out_of_no_tunnel() {
    run(async {
        let world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        for plain in [
            &b"GET / HTTP/1.1\r\nhost: reviews.shop\r\n\r\n"[..],
            // The first bytes of TLS, and no ClientHello: what a port takes for plain text is nothing else here.
            b"\x16\nFLUSHALL\r\n",
            b"\x16\x03\x01\x00\x05\nFLUSHALL\r\n",
        ] {
            let mut stream = tunnel.connect(REVIEWS).await.unwrap();
            stream.write_all(plain).await.unwrap();
            is_cut(&mut stream).await;
        }
        until("they are counted", || world.door.refused("tunnel-not-tls") == 3).await;
        // Nor is a word of a server that speaks first for who says nothing, or half of it, and would speak later.
        let mut silent = tunnel.connect(REVIEWS).await.unwrap();
        let mut half = tunnel.connect(REVIEWS).await.unwrap();
        half.write_all(&HELLO[..5]).await.unwrap();
        is_cut(&mut silent).await;
        is_cut(&mut half).await;
        until("they are counted", || world.door.refused("tunnel-silent") == 2).await;
        assert_eq!(world.echo.heard(), 0, "not a byte went anywhere");
        begun(&mut tunnel).await;
    });
}

/// The port that it comes to takes silence for plain text, after a while: what comes late comes to it by a new connection.
#[test]
fn tls_that_begins_late_or_in_pieces_comes_out_whole() {
    run(async {
        let world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut stream = tunnel.connect(REVIEWS).await.unwrap();
        let echo = &world.echo;
        until("the connection that was dialled is there", || echo.talking() == 1).await;
        stream.write_all(&HELLO[..2]).await.unwrap();
        until("the connection that was dialled is let go", || echo.talking() == 0).await;
        assert_eq!(echo.heard(), 0);
        stream.write_all(&HELLO[2..]).await.unwrap();
        hears(&mut stream, &[GREETING, &HELLO].concat()).await;
        echoes(&mut stream).await;
    });
}

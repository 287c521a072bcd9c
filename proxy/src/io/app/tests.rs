//! Tests of the app's connections: what a burst leaves behind.

use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;

/// More than a worker kept once, and by far fewer than a test may have files.
const BURST: usize = 100;

#[tokio::test]
async fn what_a_burst_needed_is_there_for_the_next_and_closed_when_none_comes() {
    let burst = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let mut accepted = Vec::new();
            while let Ok(one) = listener.accept().await {
                accepted.push(one);
            }
        });
        let app = App { address, idle: RefCell::default(), shared: RefCell::default() };
        for kept in [false, true] {
            let mut burst = Vec::new();
            for _ in 0..BURST {
                let (connection, fresh) = app.borrow_connection().await.unwrap();
                assert_eq!(fresh, !kept);
                burst.push(connection);
            }
            burst.into_iter().for_each(|connection| app.give_back(connection));
            while !app.idle.borrow().iter().all(|idle| idle.connection.is_ready()) {
                tokio::task::yield_now().await;
            }
        }
        app.tidy(Instant::now());
        assert_eq!(app.idle.borrow().len(), BURST);
        app.tidy(Instant::now() + IDLE_AFTER + Duration::from_secs(1));
        assert_eq!(app.idle.borrow().len(), 0);
    };
    LocalSet::new().run_until(burst).await;
}

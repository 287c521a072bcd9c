//! BackendPolicy.limits.concurrency through real sidecars: who is refused first, in which words, and what callers make of it.

use super::*;
use balancing::example;

/// Somebody's request that the app never answers; it is over when this is dropped.
struct Silent {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shop {
    /// Not one that would be tried again.
    fn silent(&self, path: &'static str) -> Silent {
        let outbound = self.product.outbound;
        let task = tokio::task::spawn_local(async move {
            let mut client = TcpStream::connect(outbound).await.unwrap();
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: reviews.shop\r\nx-verdict: yes\r\ncontent-length: 0\r\n\r\n"
            );
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
        });
        Silent { task }
    }

    /// With what the requests come to that its proxy counts.
    async fn silent_until(&self, requests: usize, under_way: u32) -> Vec<Silent> {
        let held = (0..requests).map(|_| self.silent("/silent")).collect();
        until("they are there", async || counted(&self.reviews, "hanse_concurrency_under_way") == under_way)
            .await;
        held
    }
}

fn counted(sidecar: &Sidecar, series: &str) -> u32 {
    let metrics = sidecar.plane.telemetry.to_text();
    let line =
        metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.map_or(0, |value| value.parse().unwrap())
}

fn prefetch() -> Request<Full<Bytes>> {
    let mut request = get(REVIEWS);
    request.headers_mut().insert("x-purpose", http::HeaderValue::from_static("prefetch"));
    request
}

#[test]
fn the_example_of_concurrency_refuses_who_is_less_important_first() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        // A slow machine may see the first window end meanwhile: it is to have no more room then.
        shop.apply(&example("backend-policy-concurrency").replace("maxLimit: 200", "maxLimit: 20"));
        assert_eq!(shop.product.request(prefetch()).await.status, StatusCode::OK);
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_limit"), 20, "nothing is known yet");
        let first = shop.silent_until(14, 14).await;
        let refused = shop.product.request(prefetch()).await;
        let told = |answer: &Answer| (answer.status.as_u16(), answer.header("x-hanse-reason").to_owned());
        assert_eq!(told(&refused), (503, "shed".to_owned()), "{refused:?}");
        assert!((1..=3).contains(&refused.header("retry-after").parse::<u64>().unwrap()), "{refused:?}");
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK, "others have room");
        let second = shop.silent_until(4, 18).await;
        let refused = shop.product.get(REVIEWS).await;
        assert_eq!(told(&refused), (503, "shed".to_owned()));
        let request =
            Request::post("/s/m").header("host", "reviews.shop").header("content-type", "application/grpc");
        let call_of_grpc = shop.product.request(request.body(Full::default()).unwrap()).await;
        let words = ["grpc-status", "grpc-message"].map(|name| call_of_grpc.header(name).to_owned());
        assert_eq!((call_of_grpc.status.as_u16(), words), (200, ["14".to_owned(), "shed".to_owned()]));
        let checkout = plane_of(&shop.east.workload("checkout"), &shop.view);
        assert_eq!(call(&checkout, shop.reviews.inbound, "/").await.unwrap().status, StatusCode::OK);
        let news = get("http://reviews.shop.svc.clusterset.local/news");
        assert_eq!(shop.product.request(news).await.status, StatusCode::OK, "it needs no room");

        let metrics = shop.reviews.plane.telemetry.to_text();
        for line in [
            "hanse_shed_total{policy=\"shop/reviews\",priority=\"BestEffort\"} 1",
            "hanse_shed_total{policy=\"shop/reviews\",priority=\"Default\"} 2",
            "hanse_shed_total{policy=\"shop/reviews\",priority=\"Critical\"} 0",
            "response_flags=\"OM\"",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        // There is nobody else to ask, and nobody is to blame.
        let metrics = shop.product.plane.telemetry.to_text();
        assert!(
            !metrics.contains("hanse_retries_total{") && metrics.contains("response_flags=\"OM\""),
            "{metrics}"
        );
        drop((first, second));
        until("there is room again", async || shop.product.request(prefetch()).await.status == 200).await;
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_under_way"), 0);
    });
}

#[test]
fn what_one_endpoint_sheds_another_takes_and_no_endpoint_is_blamed() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy(
            "  limits: { concurrency: { maxLimit: 1 } }\n  loadBalancing: { algorithm: RoundRobin }\n  \
             health: { outlier: { consecutive5xx: 2, consecutiveGatewayErrors: 1, ejectFor: 1h } }",
        );
        let held = shop.silent_until(1, 1).await;
        let app = App::start("second").await;
        let second = shop.another("reviews-2", app.address);
        second.publish(&shop.view);
        for _ in 0..40 {
            let answer = shop.product.get(REVIEWS).await;
            assert_eq!((answer.status, answer.header("x-app")), (StatusCode::OK, "second"), "{answer:?}");
        }
        let retried = counted(&shop.product, "hanse_retries_total{service=\"shop/reviews\",reason=\"shed\"}");
        let shed = counted(&shop.reviews, "hanse_shed_total{policy=\"shop/reviews\",priority=\"Default\"}");
        assert!(shed > 0 && shed == retried, "{shed} were shed, {retried} tried elsewhere");
        drop(held);
        until("the first is asked again", async || {
            shop.product.get(REVIEWS).await.header("x-app") == "reviews-v1"
        })
        .await;
    });
}

/// The head of a request with a body, and half of that.
async fn half(shop: &Shop) -> TcpStream {
    let mut client = TcpStream::connect(shop.product.outbound).await.unwrap();
    let head = b"POST /x HTTP/1.1\r\nhost: reviews.shop\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbo";
    client.write_all(head).await.unwrap();
    client
}

#[test]
fn a_body_that_is_long_in_coming_takes_no_room() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { concurrency: { maxLimit: 1 } }");
        let mut client = half(&shop).await;
        until("the app hears of it", async || shop.app.as_ref().unwrap().live() == 1).await;
        until("it has taken too long", async || shop.product.get(REVIEWS).await.status == 200).await;
        for _ in 0..5 {
            assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        }
        client.write_all(b"dy").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"bytes\":4"), "{answer}");
        until("nothing is under way", async || counted(&shop.reviews, "hanse_concurrency_under_way") == 0)
            .await;
    });
}

#[test]
fn a_burst_of_bodies_that_are_still_to_come_does_not_pass_whole() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { concurrency: { maxLimit: 2 } }");
        let shed = "hanse_shed_total{policy=\"shop/reviews\",priority=\"Default\"}";
        // Only a burst that takes long itself could find places that others have lost meanwhile.
        until("most of a burst is refused", async || {
            let before = counted(&shop.reviews, shed);
            let mut burst = Vec::new();
            for _ in 0..12 {
                burst.push(half(&shop).await);
            }
            let later = tokio::time::Instant::now() + Duration::from_millis(500);
            while counted(&shop.reviews, shed) < before + 10 && tokio::time::Instant::now() < later {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            counted(&shop.reviews, shed) == before + 10
        })
        .await;
    });
}

#[test]
fn what_an_app_does_not_find_is_an_answer_however_long_it_looks() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { concurrency: {} }");
        until("the limit rises with demand", async || {
            let asked =
                (0..14).map(|_| shop.product.get("http://reviews.shop.svc.clusterset.local/late/404"));
            let answers = futures_util::future::join_all(asked).await;
            assert!(answers.iter().all(|answer| [404, 503].contains(&answer.status.as_u16())), "{answers:?}");
            counted(&shop.reviews, "hanse_concurrency_limit") > 20
        })
        .await;
    });
}

#[test]
fn who_waits_for_an_authorizer_holds_no_place_and_takes_one_afterwards() {
    on_local_set(async {
        let (mut shop, _authz, running) = authorize::guarded().await;
        shop.policy("  limits: { concurrency: { maxLimit: 1 } }");
        shop.apply(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: { name: reviews-writes, namespace: shop }\n\
             spec:\n  targetRefs: [{ kind: Service, name: reviews }]\n  action: External\n  \
             external: { backendRef: { name: authz }, timeout: 5s }\n  rules: [{ to: { methods: [POST] } }]\n",
        );
        let told = |answer: &Answer| (answer.status.as_u16(), answer.header("x-hanse-reason").to_owned());
        let held = {
            let waiting = authorize::ask(&shop, "POST", &[("x-verdict", "wait")]);
            let meanwhile = async {
                until("it is asked about", async || running.asked() == 1).await;
                for _ in 0..5 {
                    assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK, "the app rests");
                }
                let held = shop.silent_until(1, 1).await;
                running.let_go();
                held
            };
            let (answer, held) = tokio::join!(waiting, meanwhile);
            assert_eq!(told(&answer), (503, "shed".to_owned()), "another has the place now");
            held
        };
        let asked = running.asked();
        let answer = authorize::ask(&shop, "POST", &[("x-verdict", "yes")]).await;
        assert_eq!(told(&answer), (503, "shed".to_owned()));
        assert_eq!(running.asked(), asked, "who will get no place is not asked about");
        drop(held);
        until("there is room again", async || {
            authorize::ask(&shop, "POST", &[("x-verdict", "yes")]).await.status == 200
        })
        .await;
    });
}

#[test]
fn a_limit_that_is_taken_away_is_told_of_no_more() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { concurrency: { maxLimit: 7 } }");
        let held = shop.silent_until(3, 3).await;
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_limit"), 7);
        shop.policy("  limits: { maxRequests: 100 }");
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_limit"), 0);
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_under_way"), 3, "they are still there");
        drop(held);
        until("they have gone", async || counted(&shop.reviews, "hanse_concurrency_under_way") == 0).await;
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_limit"), 0);
    });
}

/// Has a length, and no end.
struct Unended(Option<Bytes>);

impl hyper::body::Body for Unended {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        self.0.take().map_or(std::task::Poll::Pending, |data| {
            std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(data))))
        })
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(4)
    }
}

#[test]
fn a_request_is_here_with_its_last_byte_whether_or_not_its_stream_has_ended() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { concurrency: { maxLimit: 1 } }");
        let stream = TcpStream::connect(shop.product.outbound).await.unwrap();
        let http = hyper::client::conn::http2::handshake(
            crate::runtime::worker::LocalExecutor,
            hyper_util::rt::TokioIo::new(stream),
        );
        let (mut sender, connection) = http.await.unwrap();
        tokio::task::spawn_local(connection);
        let body = Unended(Some(Bytes::from_static(b"body")));
        let asked = sender.send_request(Request::post("http://reviews.shop/silent").body(body).unwrap());
        tokio::task::spawn_local(async move { drop(asked.await) });
        until("it is under way", async || counted(&shop.reviews, "hanse_concurrency_under_way") == 1).await;
    });
}

#[test]
fn whoever_says_that_he_would_upgrade_needs_a_place_too() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { concurrency: { maxLimit: 1 } }");
        let ask = async || {
            let mut client = TcpStream::connect(shop.product.outbound).await.unwrap();
            let head =
                "GET /silent HTTP/1.1\r\nhost: reviews.shop\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            client
        };
        let first = ask().await;
        until("it is under way", async || counted(&shop.reviews, "hanse_concurrency_under_way") == 1).await;
        let head = upgrade::read_head(&mut ask().await).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-hanse-reason: shed"), "{head}");
        drop(first);
        until("there is room again", async || shop.product.get(REVIEWS).await.status == 200).await;
        assert_eq!(counted(&shop.reviews, "hanse_concurrency_under_way"), 0);
    });
}

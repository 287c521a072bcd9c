//! Keys of end users' issuers: fetched by the node that leads, over real sockets, from an issuer that may do anything.

use hanse_federation::policy::{PolicyKey, PolicyKind};

use super::strangers::{MadeUp, ok, redirect};
use super::*;

const ONE: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
/// The same key, called otherwise, with what else an issuer may write.
const TWO: &str = r#"{"at":1,"keys":[{"kid":"2","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kty":"OKP"}]}"#;

/// A document whose one rule says these things of its keys.
fn document(name: &str, keys: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: reviews }}]\n  jwtRules:\n  - issuer: https://id.example\n{keys}"
    )
}

/// Keys at a made-up issuer, which is believed by its own root.
fn at(issuer: &MadeUp, path: &str) -> String {
    let root = issuer.root.replace('\n', "\n      ");
    let address = issuer.address;
    format!("    jwksUri: https://{address}{path}\n    jwksRefresh: 5s\n    jwksRoots: |\n      {root}\n")
}

async fn apply(client: &Client, text: String, files: &[(&str, &str)]) -> PolicyApplyReply {
    let files = files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect();
    let request = PolicyApplyRequest { file: "a.yaml".to_owned(), text, dry_run: false, files };
    client.call(&request).await.unwrap()
}

async fn item(client: &Client, name: &str) -> (PolicyItem, Vec<Warning>) {
    let kind = Some(PolicyKind::RequestAuthentication);
    let request = PolicyGetRequest { kind, name: Some(format!("shop/{name}").parse().unwrap()) };
    let mut listing = client.call(&request).await.unwrap();
    (listing.items.remove(0), listing.warnings)
}

fn kept(cluster: &Cluster) -> Vec<String> {
    cluster.any().context.handle.state().view.issuer_keys.values().cloned().collect()
}

/// Without spaces and in one order, whatever the issuer writes.
fn told(keys: &str) -> bool {
    let set: serde_json::Value = serde_json::from_str(keys).unwrap();
    set.as_object().unwrap().len() == 1 && serde_json::to_string(&set).unwrap() == keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuers_keys_are_fetched_replaced_and_kept_while_it_is_silent() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let issuer = MadeUp::new(|path| if path == "/moved" { redirect("/keys") } else { ok(ONE) }).await;
    let reply = apply(&client, document("reviews", &at(&issuer, "/moved")), &[]).await;
    assert!(reply.applied, "{:?}", reply.diagnostics);
    let first = eventually("the first set", || kept(&east).pop()).await;
    assert!(told(&first) && first.contains(r#""kid":"1""#), "{first}");
    let revision = || east.any().context.handle.state().view.revision;
    let at_first = revision();

    issuer.answers(|_| ok(TWO));
    let second = eventually("the second set", || kept(&east).pop().filter(|keys| *keys != first)).await;
    assert!(told(&second) && second.contains(r#""kid":"2""#) && !second.contains(r#""kid":"1""#), "{second}");
    assert!(revision() > at_first);
    let (shown, warnings) = item(&client, "reviews").await;
    assert_eq!((shown.issuers[0].keys, &shown.issuers[0].error), (1, &None));
    assert!(shown.issuers[0].fetched.is_some() && warnings.is_empty(), "{warnings:?}");

    // Nonsense is not taken, and what is kept stays in force, which everybody who asks is told.
    issuer.answers(|_| ok(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}]}"#));
    let failed = || east.any().context.issuers.reports().pop().and_then(|report| report.error);
    let why = eventually("a fetch that fails", failed).await;
    assert!(why.contains("private"), "{why}");
    let (shown, warnings) = item(&client, "reviews").await;
    assert_eq!((shown.issuers[0].keys, shown.issuers[0].error.as_ref()), (1, Some(&why)));
    assert!(warnings[0].code == "E4140" && warnings[0].message.contains("stay in force"), "{warnings:?}");
    assert_eq!(kept(&east), [second]);

    let key = PolicyKey { kind: PolicyKind::RequestAuthentication, name: "shop/reviews".parse().unwrap() };
    client.call(&PolicyDeleteRequest { keys: vec![key] }).await.unwrap();
    eventually("a set that nobody names is dropped", || kept(&east).is_empty().then_some(())).await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_leads_no_fetch_astray() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let other = MadeUp::new(|_| ok(ONE)).await;
    let elsewhere = format!("https://localhost:{}/", other.address.port());
    let issuer = MadeUp::new(move |path| match path {
        "/away" => redirect(&elsewhere),
        "/plain" => redirect("http://127.0.0.1/"),
        "/large" => ok(vec![b' '; 300 * 1024]),
        _ => ok(ONE),
    })
    .await;
    let mut stranger = at(&issuer, "/stranger");
    let root = stranger.find("-----BEGIN").unwrap();
    stranger.replace_range(root.., &other.root.replace('\n', "\n      "));
    for (name, keys, why) in [
        ("away", at(&issuer, "/away"), "which is another host"),
        ("plain", at(&issuer, "/plain"), "its scheme is not https"),
        ("large", at(&issuer, "/large"), "more than 262144 bytes"),
        ("stranger", stranger, "is not believed"),
        ("inside", "    jwksUri: https://169.254.169.254/keys\n".to_owned(), "link-local"),
    ] {
        let reply = apply(&client, document(name, &keys), &[]).await;
        assert!(reply.applied, "{name}: {:?}", reply.diagnostics);
        let wanted = |report: &crate::io::issuers::IssuerReport| {
            report.error.as_ref().is_some_and(|error| error.contains(why))
        };
        let reports = || east.any().context.issuers.reports();
        eventually(why, || reports().iter().any(wanted).then_some(())).await;
    }
    assert_eq!(kept(&east), [""; 0]);
    let (shown, warnings) = item(&client, "away").await;
    assert_eq!(shown.issuers[0].keys, 0);
    assert!(warnings[0].message.contains("no token of this issuer is believed"), "{warnings:?}");
    for bad in [
        "    jwksUri: http://id.example/keys\n",
        "    jwksUri: https://id.example/keys\n    jwksRefresh: 1s\n",
        "    jwksUri: https://id.example/keys\n    jwksRoots: nothing\n",
        "    jwksRefresh: 1m\n    jwks: '{}'\n",
        "    audiences: [a]\n",
    ] {
        assert!(!apply(&client, document("bad", bad), &[]).await.applied, "{bad}");
    }
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_keys_comes_along_and_is_kept_as_if_written() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let text = document("filed", "    jwksFile: keys.json\n");
    let reply = apply(&client, text.clone(), &[]).await;
    let told = reply.diagnostics.iter().any(|d| d.message.contains("was not sent along"));
    assert!(!reply.applied && told, "{reply:?}");
    assert!(!apply(&client, text.clone(), &[("keys.json", "{}")]).await.applied);
    assert!(apply(&client, text, &[("keys.json", ONE)]).await.applied);
    // However small what was sent is: a file counts as often as it is named, also where nothing is applied.
    let large = format!("{ONE}{}", " ".repeat(200 << 10));
    let many: Vec<String> =
        (0..16).map(|n| document(&format!("f{n}"), "    jwksFile: keys.json\n")).collect();
    let validate = async |documents: &[String], content: &str| {
        let files = [("keys.json".to_owned(), content.to_owned())].into();
        let request =
            PolicyValidateRequest { file: "a.yaml".to_owned(), text: documents.join("---\n"), files };
        client.call(&request).await.map_err(|status| status.to_string())
    };
    assert!(validate(&many[..8], &large).await.unwrap().ok);
    let why = validate(&many, &large).await.unwrap_err();
    assert!(why.contains("as often as it is named"), "{why}");
    let why = validate(&many[..1], &format!("{large}{large}")).await.unwrap_err();
    assert!(why.contains("keys.json has"), "{why}");
    let rule = item(&client, "filed").await.0.document["spec"]["jwtRules"][0].clone();
    assert_eq!((rule["jwks"].as_str(), &rule["jwksFile"]), (Some(ONE), &serde_json::Value::Null));
    east.stop().await;
}

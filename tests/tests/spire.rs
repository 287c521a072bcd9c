//! SPIFFE federation with SPIRE, which nobody here wrote: two real servers and a cluster of ours, each of which fetches the
//! other's bundle, under both profiles of bundle endpoints.
//!
//! Skipped, with a word on stderr, where `HANSE_INTEROP_SPIRE_SERVER` names no `spire-server` (`tests/interop/spire`).

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hanse_identity::bundle::BundleDocument;
use hanse_identity::{Bundle, KeyId, Revocations, Timestamp, jwt};
use hanse_tests::bare::{AGENT, Cluster};
use hanse_tests::envoy::free_address;
use hanse_tests::spire::{self, Endpoint, Spire};
use hanse_tests::wait::until;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Source};

/// The longest that anything may take that is not waited for on purpose.
const SOON: Duration = Duration::from_secs(90);
const WORKLOAD: &str = "spiffe://east.example/ns/shop/sa/teller";
const AUDIENCE: &str = "counter";
/// The name of this machine in certificates of the web.
const HOST: &str = "localhost";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spire_and_hanse_follow_each_others_bundles_under_both_profiles() {
    let Some(mut scene) = Scene::set().await.unwrap() else { return };
    let told = scene.story().await;
    told.with_context(|| scene.logs()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "four minutes: a whole rotation, which gives foreign trust domains time to fetch"]
async fn spire_follows_a_whole_rotation_and_believes_every_svid_on_the_way() {
    let Some(scene) = Scene::set().await.unwrap() else { return };
    let told = scene.whole_rotation().await;
    told.with_context(|| scene.logs()).unwrap();
}

/// A cluster `east`, a workload of it, which is this process, and two servers of SPIRE.
struct Scene {
    cluster: Cluster,
    /// Its endpoint shows an SVID, and it fetches from one that does.
    north: Spire,
    /// Its endpoint shows a certificate of the web, and it fetches from one that does.
    south: Spire,
    api: WorkloadApiClient,
    source: X509Source,
    /// Where `east` serves its bundle: https_spiffe and https_web.
    by_svid: String,
    by_web: String,
    web_roots: PathBuf,
    /// Everything's files; goes last.
    dir: tempfile::TempDir,
}

impl Scene {
    async fn set() -> Result<Option<Self>> {
        let binary = match spire::installed() {
            Ok(binary) => binary,
            Err(why) => {
                // Past the test harness, which would keep it to itself.
                let _ = writeln!(std::io::stderr(), "skipped: SPIRE: {why}");
                return Ok(None);
            }
        };
        let dir = tempfile::tempdir()?;
        let (web_roots, certificate, key) = web_certificate(dir.path())?;
        let (svid, web) = (free_address()?, free_address()?);
        let (shown, secret) = (certificate.display().to_string(), key.display().to_string());
        let by_svid = ["--bundle-endpoint", &svid.to_string()].map(str::to_owned);
        let by_web = [
            ["--bundle-endpoint", &web.to_string()],
            ["--bundle-endpoint-profile", "https_web"],
            ["--bundle-endpoint-cert", &shown],
            ["--bundle-endpoint-key", &secret],
        ];
        let flags = [by_svid.to_vec(), by_web.concat().into_iter().map(str::to_owned).collect(), Vec::new()];
        let cluster = Cluster::found(&dir.path().join("east"), "east", &flags)?;
        let place = |name: &str| dir.path().join(name);
        let north = Spire::start(&binary, &place("north"), "north.example", &Endpoint::Spiffe, &web_roots)?;
        let shown = Endpoint::Web { certificate, key };
        let south = Spire::start(&binary, &place("south"), "south.example", &shown, &web_roots)?;

        register(&cluster, dir.path())?;
        let endpoint = cluster.workload_api();
        let source = spiffe::X509SourceBuilder::new().endpoint(&endpoint).build();
        let source = tokio::time::timeout(SOON, source).await.context("no SVID in time")??;
        let api = WorkloadApiClient::connect_to(&endpoint).await?;
        let (by_svid, by_web) = (format!("https://{svid}/"), format!("https://{HOST}:{}/", web.port()));
        Ok(Some(Self { cluster, north, south, api, source, by_svid, by_web, web_roots, dir }))
    }

    async fn story(&mut self) -> Result<()> {
        self.federate().await?;
        for spire in [&self.north, &self.south] {
            self.believes(spire).await?;
            self.is_believed_by(spire).await?;
            self.follows(spire).await?;
        }
        self.is_followed().await?;
        self.outlives_its_partner().await
    }

    /// Both directions, both profiles. Whose endpoint shows an SVID is told of with a first bundle.
    async fn federate(&self) -> Result<()> {
        let first = self.file("north.jwks", &self.north.own_document()?)?;
        let relationship =
            ["trust", "federate", "--trust-domain", "north.example", "--profile", "https_spiffe"];
        let (url, id) = (self.north.url("127.0.0.1"), self.north.endpoint_id());
        let how = ["--url", &url, "--endpoint-spiffe-id", &id, "--bundle", &first];
        self.cluster.run(relationship.iter().chain(&how))?;
        let relationship = ["trust", "federate", "--trust-domain", "south.example", "--profile", "https_web"];
        let (url, roots) = (self.south.url(HOST), self.web_roots.display().to_string());
        self.cluster.run(relationship.iter().chain(&["--url", &url, "--web-roots", &roots]))?;

        let first = self.file("east.jwks", &self.own_document()?)?;
        let create = ["federation", "create", "-trustDomain", "east.example", "-bundleEndpointURL"];
        let by_svid = [&self.by_svid, "-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID"];
        let id = "spiffe://east.example/hanse/endpoint/bundle";
        let with = [id, "-trustDomainBundleFormat", "spiffe", "-trustDomainBundlePath", &first];
        self.north.run(create.iter().chain(&by_svid).chain(&with))?;
        let by_web = [&self.by_web, "-bundleEndpointProfile", "https_web"];
        self.south.run(create.iter().chain(&by_web))?;
        for spire in [&self.north, &self.south] {
            spire.run(["federation", "refresh", "-id", "east.example"])?;
            self.both_are_up_to_date(spire).await?;
        }
        Ok(())
    }

    /// Each has of the other what the other says of itself, whoever had to fetch it.
    async fn both_are_up_to_date(&self, spire: &Spire) -> Result<()> {
        let domain = spire.trust_domain();
        until(&format!("we have what {domain} says of itself"), SOON, async || self.is_up_to_date(spire))
            .await?;
        let there = async || {
            let (ours, theirs) = (self.own_bundle()?, spire.bundle_of("east.example")?);
            ensure!(
                keys(&theirs.bundle) == keys(&ours.bundle),
                "{:?}, not {:?}",
                keys(&theirs.bundle),
                keys(&ours.bundle)
            );
            ensure!(!ours.bundle.jwt_authorities.is_empty(), "we have no JWT authority yet");
            Ok(())
        };
        until(&format!("{domain} has what we say of ourselves"), SOON, there).await
    }

    /// What we keep of it is what it says of itself, and a fetch has confirmed it.
    fn is_up_to_date(&self, spire: &Spire) -> Result<()> {
        let (theirs, item) = (spire.own_bundle()?, self.kept(spire)?);
        ensure!(item["state"] == "fresh", "{item}");
        ensure!(
            theirs.sequence.is_some() && item["sequence"].as_u64() == theirs.sequence,
            "{theirs:?}: {item}"
        );
        ensure!(item["refreshSeconds"] == spire::REFRESH_HINT.as_secs(), "{item}");
        let texts = |member: &str| -> BTreeSet<String> {
            let texts = item[member].as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        };
        let (x509, jwt) = keys(&theirs.bundle);
        ensure!(
            !x509.is_empty() && texts("authorities") == x509.iter().map(KeyId::to_string).collect(),
            "{item}"
        );
        ensure!(!jwt.is_empty() && texts("jwtAuthorities") == jwt, "{item}");
        Ok(())
    }

    /// SVIDs that SPIRE signs now are good by what our agent gives to a workload that federates with it.
    async fn believes(&self, spire: &Spire) -> Result<()> {
        let domain = spire.trust_domain();
        let id = format!("spiffe://{domain}/ns/vault/sa/guard");
        let chain = self.minted(spire, &id)?;
        let heard = async || {
            ensure!(validates(&self.roots(domain)?, &chain)?, "the bundle does not validate an SVID");
            Ok(())
        };
        until(&format!("a workload of ours believes {id}"), SOON, heard).await?;
        for other in ["east.example", "north.example", "south.example"].iter().filter(|d| **d != domain) {
            ensure!(!validates(&self.roots(other)?, &chain)?, "the bundle of {other} validates {id}");
        }
        let token = spire.run(["jwt", "mint", "-spiffeID", &id, "-audience", AUDIENCE])?;
        let heard = async || {
            let valid = self.api.validate_jwt_token(AUDIENCE, token.trim()).await?;
            ensure!(valid.spiffe_id().to_string() == id, "it is of {}", valid.spiffe_id());
            Ok(())
        };
        until(&format!("our agent believes a token of {id}"), SOON, heard).await?;
        let elsewhere = self.api.validate_jwt_token("elsewhere", token.trim()).await;
        ensure!(elsewhere.is_err(), "a token for another audience is believed");
        Ok(())
    }

    /// SVIDs that we sign now are good by what SPIRE keeps of us.
    async fn is_believed_by(&self, spire: &Spire) -> Result<()> {
        let theirs = spire.bundle_of("east.example")?.bundle;
        let roots: Vec<_> = theirs.authorities.iter().map(|a| CertificateDer::from(a.der.clone())).collect();
        let svid = self.source.svid()?;
        let chain: Vec<_> =
            svid.cert_chain().iter().map(|c| CertificateDer::from(c.as_bytes().to_vec())).collect();
        ensure!(validates(&roots, &chain)?, "{} does not believe our SVID", spire.trust_domain());
        let token = self.api.fetch_jwt_svid([AUDIENCE], None).await?;
        let valid = jwt::validate(|_| Some(&theirs), &Revocations::default(), token.token(), AUDIENCE, now());
        ensure!(valid?.id.to_string() == WORKLOAD, "the token is of somebody else");
        Ok(())
    }

    /// SPIRE prepares its next authorities, which we hear of by ourselves, and then signs with them.
    async fn follows(&self, spire: &Spire) -> Result<()> {
        let before = self.kept(spire)?["sequence"].as_u64();
        for kind in ["x509", "jwt"] {
            let said = spire.json(&["localauthority", kind, "prepare"])?;
            let next = said.pointer("/prepared_authority/authority_id").and_then(Value::as_str);
            let next = next.with_context(|| format!("no authority was prepared: {said}"))?;
            let heard = async || self.is_up_to_date(spire);
            until(&format!("we hear of the next {kind} authority of {}", spire.trust_domain()), SOON, heard)
                .await?;
            spire.run(["localauthority", kind, "activate", "-authorityID", next])?;
        }
        let after = self.kept(spire)?;
        ensure!(after["sequence"].as_u64() > before, "{before:?}, then {after}");
        ensure!(after["authorities"].as_array().is_some_and(|all| all.len() == 2), "{after}");
        self.believes(spire).await
    }

    /// A rotation of ours does not go on before strangers had time to fetch what is new; both servers do that by themselves,
    /// and so they do when it is taken back.
    async fn is_followed(&self) -> Result<()> {
        let before = self.own_bundle()?;
        let begun =
            self.cluster.output(["trust", "rotate", "--reissue-now", "--no-wait", "--timeout", "5s"])?;
        ensure!(!begun.status.success(), "what is new signs at once: {begun:?}");
        let held_up = async || {
            let status = self.cluster.json(&["trust", "rotate", "--status"])?;
            ensure!(status.pointer("/rotation/gate") == Some(&"spread".into()), "{status}");
            let waits = status["waitsFor"].as_array().context("no waitsFor")?;
            ensure!(waits.iter().any(|w| w["who"] == "foreign trust domains"), "{status}");
            Ok(())
        };
        until("the rotation waits for foreign trust domains", SOON, held_up).await?;
        let during = self.own_bundle()?;
        ensure!(during.bundle.authorities.len() == 2 * before.bundle.authorities.len(), "{during:?}");
        for spire in [&self.north, &self.south] {
            self.both_are_up_to_date(spire).await?;
            self.is_believed_by(spire).await?;
        }
        self.cluster.run(["trust", "rotate", "--abort"])?;
        let taken_back = self.own_bundle()?;
        ensure!(taken_back.sequence > during.sequence, "{taken_back:?}");
        ensure!(keys(&taken_back.bundle).0 == keys(&before.bundle).0, "{taken_back:?}");
        for spire in [&self.north, &self.south] {
            spire.run(["federation", "refresh", "-id", "east.example"])?;
            self.both_are_up_to_date(spire).await?;
            self.is_believed_by(spire).await?;
        }
        Ok(())
    }

    /// A partner that has gone is kept as it was, with its age, and found again.
    async fn outlives_its_partner(&mut self) -> Result<()> {
        let id = "spiffe://north.example/ns/vault/sa/guard";
        let chain = self.minted(&self.north, id)?;
        let token = self.north.run(["jwt", "mint", "-spiffeID", id, "-audience", AUDIENCE])?;
        let before = self.kept(&self.north)?;
        self.north.stop()?;
        let refused = self.cluster.output(["trust", "federation", "refresh", "north.example"])?;
        ensure!(!refused.status.success(), "a server that is gone was asked: {refused:?}");
        let after = self.kept(&self.north)?;
        ensure!(after["state"] == "stale" && after["error"].is_string(), "{after}");
        ensure!(
            after["sequence"] == before["sequence"] && after["authorities"] == before["authorities"],
            "{after}"
        );
        ensure!(after["fetched"].as_u64() < after["attempted"].as_u64(), "{after}");
        ensure!(validates(&self.roots("north.example")?, &chain)?, "the last good bundle is not served");
        self.api.validate_jwt_token(AUDIENCE, token.trim()).await?;
        let listed = String::from_utf8(self.cluster.run(["trust", "federation", "list"])?)?;
        println!("{listed}");
        ensure!(listed.lines().any(|l| l.starts_with("north.example") && l.contains("stale")), "{listed}");

        self.north.begin()?;
        self.cluster.run(["trust", "federation", "refresh", "north.example"])?;
        self.both_are_up_to_date(&self.north).await?;
        self.believes(&self.north).await
    }

    async fn whole_rotation(&self) -> Result<()> {
        self.federate().await?;
        let before = keys(&self.own_bundle()?.bundle).0;
        let began = std::time::Instant::now();
        let mut rotating = self.cluster.begin(["trust", "rotate", "--reissue-now", "--timeout", "10m"])?;
        let mut looked = 0_u32;
        let ended = loop {
            for spire in [&self.north, &self.south] {
                self.is_believed_by(spire).await?;
                looked += 1;
            }
            if let Some(ended) = rotating.try_wait()? {
                break ended;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        ensure!(ended.success(), "{ended}");
        println!(
            "rotated in {:.1?}; our SVIDs and tokens were good at SPIRE each of {looked} times",
            began.elapsed()
        );
        let after = keys(&self.own_bundle()?.bundle).0;
        ensure!(after.len() == before.len() && after.is_disjoint(&before), "{after:?} after {before:?}");
        for spire in [&self.north, &self.south] {
            self.both_are_up_to_date(spire).await?;
            self.is_believed_by(spire).await?;
        }
        Ok(())
    }

    /// A chain that SPIRE signs on demand.
    fn minted(&self, spire: &Spire, id: &str) -> Result<Vec<CertificateDer<'static>>> {
        let dir = tempfile::tempdir_in(self.dir.path())?;
        let into = dir.path().display().to_string();
        spire.run(["x509", "mint", "-spiffeID", id, "-write", &into])?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(dir.path().join("svid.pem"))?.collect();
        Ok(chain?)
    }

    /// What our agent gives as that trust domain's authorities.
    fn roots(&self, trust_domain: &str) -> Result<Vec<CertificateDer<'static>>> {
        let bundles = self.source.bundle_set()?;
        let bundle = bundles.get(&spiffe::TrustDomain::new(trust_domain)?);
        let bundle = bundle.with_context(|| format!("no bundle of {trust_domain}"))?;
        Ok(bundle.authorities().iter().map(|a| CertificateDer::from(a.as_bytes().to_vec())).collect())
    }

    /// What we keep of it, and how the last fetch went.
    fn kept(&self, spire: &Spire) -> Result<Value> {
        let listed = self.cluster.json(&["trust", "federation", "show", spire.trust_domain()])?;
        listed.pointer("/items/0").cloned().with_context(|| format!("{listed}"))
    }

    fn own_document(&self) -> Result<String> {
        let show = ["trust", "bundle", "show", "--cluster", "east", "--format", "spiffe-jwks"];
        Ok(String::from_utf8(self.cluster.run(show)?)?)
    }

    fn own_bundle(&self) -> Result<BundleDocument> {
        Ok(Bundle::from_jwks(&"east.example".parse()?, &self.own_document()?)?)
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn logs(&self) -> String {
        let of = |spire: &Spire| format!("--- {}\n{}\n", spire.trust_domain(), spire.log_tail());
        self.cluster.logs() + &of(&self.north) + &of(&self.south)
    }
}

/// This process, which federates with both.
fn register(cluster: &Cluster, dir: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let me = std::env::current_exe()?.canonicalize()?;
    // Whose processes we start: the owner of what was written.
    let uid = format!("unix:uid:{}", std::fs::metadata(dir)?.uid());
    let path = format!("unix:path:{}", me.display());
    let workload =
        ["workload", "register", WORKLOAD, "--agent", AGENT, "--selector", &uid, "--selector", &path];
    let federates = ["--federates-with", "north.example", "--federates-with", "south.example"];
    cluster.run(workload.iter().chain(&federates)).map(drop)
}

/// A certificate of the web for `HOST` below a root of its own: files with the root, the certificate and its key.
fn web_certificate(dir: &Path) -> Result<(PathBuf, PathBuf, PathBuf)> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use std::os::unix::fs::PermissionsExt as _;
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(rcgen::DnType::CommonName, "A root of the web");
    let key = KeyPair::generate()?;
    let certificate = root.self_signed(&key)?;
    let leaf_key = KeyPair::generate()?;
    let leaf =
        CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&leaf_key, &Issuer::new(root, key))?;
    let (roots, shown, secret) = (dir.join("roots.pem"), dir.join("web.pem"), dir.join("web.key"));
    std::fs::write(&roots, certificate.pem())?;
    std::fs::write(&shown, leaf.pem())?;
    std::fs::write(&secret, leaf_key.serialize_pem())?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    Ok((roots, shown, secret))
}

/// The keys of a bundle: of X.509 authorities, and the key IDs of JWT authorities.
fn keys(bundle: &Bundle) -> (BTreeSet<KeyId>, BTreeSet<String>) {
    let jwt = bundle.jwt_authorities.iter().map(|authority| authority.key_id.clone());
    (bundle.pins().into_iter().collect(), jwt.collect())
}

/// Whether these roots vouch for that chain, as a verifier says that is not ours.
fn validates(roots: &[CertificateDer<'_>], chain: &[CertificateDer<'_>]) -> Result<bool> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone().into_owned())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build()?;
    let (leaf, between) = chain.split_first().context("an empty chain")?;
    Ok(verifier.verify_client_cert(leaf, between, UnixTime::now()).is_ok())
}

fn now() -> Timestamp {
    hanse_control::io::context::now()
}

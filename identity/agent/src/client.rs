//! A client of the SPIFFE Workload API, for our own command line: one answer, and only over a Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hanse_identity::svid::SvidError;
use hanse_identity::{Svid, TrustDomain};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_stream::StreamExt as _;
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use zeroize::Zeroizing;

use crate::wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::wire::workload::{X509svid, X509svidRequest};

/// What SPIFFE Workload Endpoint §4 has before the path.
const SCHEME: &str = "unix://";
/// The tag that a certificate begins with.
const SEQUENCE: u8 = 0x30;
/// Largest answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Where the Workload API is: `unix:///ABSOLUTE/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApi(PathBuf);

/// An SVID as the Workload API gave it, with the authorities of its trust domain.
pub struct Fetched {
    pub svid: Svid,
    pub trust_domain: TrustDomain,
    /// DER, one certificate each.
    pub authorities: Vec<Vec<u8>>,
}

/// Why there is no SVID.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{} cannot be connected to: {source}", .path.display())]
    Connect { path: PathBuf, source: tonic::transport::Error },
    #[error("the Workload API does not answer within {0:?}")]
    Timeout(Duration),
    #[error("the Workload API answers {:?}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error("the Workload API gives no SVID to this process")]
    None,
    #[error("the SVID cannot be read: {0}")]
    Svid(#[from] SvidError),
    #[error("the SVID cannot be read: {0}")]
    Malformed(&'static str),
}

impl std::str::FromStr for WorkloadApi {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix(SCHEME).map(Path::new).filter(|path| path.is_absolute());
        path.map(|path| Self(path.to_owned()))
            .ok_or_else(|| format!("{text:?} is not like unix:///run/agent.sock"))
    }
}

impl std::fmt::Display for WorkloadApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}", self.0.display())
    }
}

impl WorkloadApi {
    /// The default identity of this process: the first SVID that is given.
    pub async fn fetch(&self, timeout: Duration) -> Result<Fetched, FetchError> {
        Ok(self.fetch_all(timeout).await?.swap_remove(0))
    }

    /// Every SVID that this process is given, the default one first; there is one at least.
    pub async fn fetch_all(&self, timeout: Duration) -> Result<Vec<Fetched>, FetchError> {
        let fetched = tokio::time::timeout(timeout, self.given()).await;
        fetched.map_err(|_| FetchError::Timeout(timeout))?
    }

    async fn given(&self) -> Result<Vec<Fetched>, FetchError> {
        let path = self.0.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.map_err(|source| FetchError::Connect { path: self.0.clone(), source })?;
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        let mut request = Request::new(X509svidRequest {});
        request
            .metadata_mut()
            .insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
        let mut answers = client.fetch_x509svid(request).await?.into_inner();
        let answer = answers.next().await.ok_or(FetchError::None)??;
        let given: Vec<Fetched> = answer.svids.into_iter().map(Fetched::read).collect::<Result<_, _>>()?;
        if given.is_empty() { Err(FetchError::None) } else { Ok(given) }
    }
}

impl Fetched {
    fn read(given: X509svid) -> Result<Self, FetchError> {
        let malformed = FetchError::Malformed;
        let chain = certificates(&given.x509_svid).ok_or(malformed("its chain is not DER after DER"))?;
        let authorities = certificates(&given.bundle).ok_or(malformed("its bundle is not DER after DER"))?;
        let svid = Svid::new(chain, Zeroizing::new(given.x509_svid_key))?;
        let trust_domain = svid.facts.id.trust_domain().clone();
        Ok(Self { svid, trust_domain, authorities })
    }
}

/// DER certificates that stand one after another (SPIFFE Workload API §5.2.1).
fn certificates(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (&first, rest) = bytes.strip_prefix(&[SEQUENCE])?.split_first()?;
        // DER: a length up to 127 is its own byte, else that byte says how many follow.
        let (more, bits) =
            if first < 0x80 { (0, usize::from(first)) } else { (usize::from(first - 0x80), 0) };
        let digits = rest.get(..more).filter(|digits| digits.len() <= 3)?;
        let content = digits.iter().fold(bits, |sum, digit| sum << 8 | usize::from(*digit));
        let length = 2 + more + content;
        let (certificate, rest) = bytes.split_at_checked(length)?;
        found.push(certificate.to_vec());
        bytes = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_stand_one_after_another() {
        let short = [0x30, 2, 5, 0];
        let long = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
        let both = [&short[..], &long, &short].concat();
        assert_eq!(certificates(&both), Some(vec![short.to_vec(), long.clone(), short.to_vec()]));
        assert_eq!(certificates(&[]), Some(Vec::new()));
        assert_eq!(certificates(&both[..both.len() - 1]), None);
        assert_eq!(certificates(&[0x31, 0]), None);
    }

    #[test]
    fn the_socket_is_an_absolute_path() {
        let api: WorkloadApi = "unix:///run/hanse/agent.sock".parse().unwrap();
        assert_eq!(api.to_string(), "unix:///run/hanse/agent.sock");
        for wrong in ["", "/run/agent.sock", "unix://agent.sock", "unix:agent.sock", "tcp://127.0.0.1:1"] {
            assert!(wrong.parse::<WorkloadApi>().is_err(), "{wrong}");
        }
    }
}

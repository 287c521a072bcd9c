//! The hooks that rustls calls during a handshake: each asks `verify`, or an `IdentitySource`, and no one else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::{ClientAuth, Expect, IdentitySource, TrustSource};
use crate::bundle::{AuthorityCertificate, Bundle, KeyId};
use crate::name::{MemberRole, TrustDomain};
use crate::revocation::Revocations;
use crate::svid::{MAX_CERTIFICATE_BYTES, MAX_CHAIN};
use crate::time::Timestamp;
use crate::verify::{Trust, Usage, VerifiedCaller, VerifyError, verify};

/// Believes an SVID of a known trust domain, on either side of the handshake.
pub(super) struct SvidVerifier {
    trust: Arc<dyn TrustSource>,
    expect: Expect,
    client_auth: ClientAuth,
    provider: Arc<CryptoProvider>,
}

/// Believes a control node whose chain ends in a pinned root: there is no bundle yet.
pub(super) struct PinnedVerifier {
    trust_domain: TrustDomain,
    pins: Vec<KeyId>,
    provider: Arc<CryptoProvider>,
}

/// Shows the identity of the moment.
pub(super) struct SessionIdentity(pub(super) Arc<dyn IdentitySource>);

impl SvidVerifier {
    pub(super) fn for_server(
        trust: Arc<dyn TrustSource>,
        expect: Expect,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { trust, expect, client_auth: ClientAuth::Required, provider }
    }

    pub(super) fn for_client(
        trust: Arc<dyn TrustSource>,
        client_auth: ClientAuth,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { trust, expect: Expect::Anyone, client_auth, provider }
    }

    fn believe(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        let chain = whole_chain(leaf, rest);
        let caller = verify(&self.trust.trust(), &chain, timestamp(now), usage).map_err(refusal)?;
        if !self.expect.admits(caller.id()) {
            return Err(refusal(VerifyError::Unexpected(caller.id().clone())));
        }
        Ok(())
    }
}

impl PinnedVerifier {
    pub(super) fn new(trust_domain: &TrustDomain, pins: &[KeyId], provider: Arc<CryptoProvider>) -> Self {
        Self { trust_domain: trust_domain.clone(), pins: pins.to_vec(), provider }
    }

    fn believe(&self, chain: &[&[u8]], now: Timestamp) -> Result<VerifiedCaller, VerifyError> {
        let unknown = || VerifyError::UnknownAuthority(self.trust_domain.clone());
        let bounded = chain.len() <= MAX_CHAIN && chain.iter().all(|der| der.len() <= MAX_CERTIFICATE_BYTES);
        let root = match chain {
            [_, .., root] if bounded => {
                AuthorityCertificate::parse(root, &self.trust_domain).map_err(|_| unknown())?
            }
            _ => return Err(unknown()),
        };
        if !self.pins.contains(&root.key_id) {
            return Err(unknown());
        }
        let bundle = Bundle::new(self.trust_domain.clone(), 0, vec![root]);
        let caller = verify(&Trust::new([&bundle], Revocations::default()), chain, now, Usage::Server)?;
        if !caller.id().is_member(&self.trust_domain, MemberRole::Node) {
            return Err(VerifyError::Unexpected(caller.id().clone()));
        }
        Ok(caller)
    }
}

fn whole_chain<'c>(leaf: &'c CertificateDer<'_>, rest: &'c [CertificateDer<'_>]) -> Vec<&'c [u8]> {
    std::iter::once(leaf).chain(rest).map(AsRef::as_ref).collect()
}

fn timestamp(now: UnixTime) -> Timestamp {
    Timestamp::default() + Duration::from_secs(now.as_secs())
}

/// What the other end is told: the nearest TLS alert. The reason itself stays here.
fn refusal(error: VerifyError) -> Error {
    Error::InvalidCertificate(match error {
        VerifyError::Revoked { .. } => CertificateError::Revoked,
        VerifyError::Expired => CertificateError::Expired,
        VerifyError::UnknownAuthority(_) | VerifyError::UnknownTrustDomain(_) => {
            CertificateError::UnknownIssuer
        }
        _ => CertificateError::ApplicationVerificationFailure,
    })
}

/// Never asked: both configurations speak TLS 1.3 and nothing else.
fn tls12_is_not_spoken() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken".to_owned()))
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.believe(leaf, rest, now, Usage::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_is_not_spoken()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SvidVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.believe(leaf, rest, now, Usage::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_is_not_spoken()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.believe(&whole_chain(leaf, rest), timestamp(now)).map_err(refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_is_not_spoken()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesServerCert for SessionIdentity {
    /// `None` ends the handshake: a server without identity answers nobody.
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.identity().map(|identity| identity.key.clone())
    }
}

impl ResolvesClientCert for SessionIdentity {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.identity().map(|identity| identity.key.clone())
    }

    fn has_certs(&self) -> bool {
        self.0.identity().is_some()
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier").field("expect", &self.expect).finish_non_exhaustive()
    }
}

impl fmt::Debug for PinnedVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedVerifier").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionIdentity")
    }
}

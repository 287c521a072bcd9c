//! Certificates for everybody but us: one root, a client and a server with SPIFFE IDs, P-256 as in an SVID.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::mesh::BARE_NAME;

/// The server's DNS name: peers check one.
pub const NAME: &str = "server.bench.example";
pub const CLIENT_ID: &str = "spiffe://bench.example/ns/bench/sa/client";
pub const SERVER_ID: &str = "spiffe://bench.example/ns/bench/sa/server";

/// A directory with the files; it goes with this.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    pub const ROOT: &str = "root.pem";
    pub const CLIENT: &str = "client.pem";
    pub const CLIENT_KEY: &str = "client.key";
    pub const SERVER: &str = "server.pem";
    pub const SERVER_KEY: &str = "server.key";
    /// haproxy wants certificate and key in one file.
    pub const CLIENT_ALL: &str = "client.all.pem";
    pub const SERVER_ALL: &str = "server.all.pem";

    pub fn make() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        let files = Self(directory);
        std::fs::write(files.file(Self::ROOT), root.pem())?;
        for (id, name, certificate_file, key_file, all_file) in [
            (CLIENT_ID, "client.bench.example", Self::CLIENT, Self::CLIENT_KEY, Self::CLIENT_ALL),
            (SERVER_ID, NAME, Self::SERVER, Self::SERVER_KEY, Self::SERVER_ALL),
        ] {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(vec![name.to_owned()])?;
            leaf.subject_alt_names.push(SanType::URI(id.try_into()?));
            leaf.subject_alt_names.push(SanType::DnsName(BARE_NAME.try_into()?));
            leaf.distinguished_name.push(rcgen::DnType::CommonName, name);
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            leaf.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            leaf.use_authority_key_identifier_extension = true;
            let certificate = leaf.signed_by(&key, &root)?.pem();
            let key = key.serialize_pem();
            std::fs::write(files.file(certificate_file), &certificate)?;
            std::fs::write(files.file(key_file), &key)?;
            std::fs::write(files.file(all_file), certificate + &key)?;
        }
        Ok(files)
    }

    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

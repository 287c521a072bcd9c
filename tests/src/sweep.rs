//! Sweep: looks for private keys in bytes and files, in every form in which one could have got there.
//!
//! Two kinds of needles: forms, that any private key has (PKCS#8 and SEC1 DER, PEM; raw, base64, hex or as an array of
//! numbers), and secrets that the test knows (the 32 bytes of a P-256 key's number, or of a key-encryption key).

use std::fs;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use anyhow::{Context as _, Result};
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Files are read in pieces of this many bytes.
const PIECE_BYTES: usize = 4 << 20;

/// PKCS#8 of a P-256 key from its version to the key: INTEGER 0, AlgorithmIdentifier, OCTET STRING, ECPrivateKey (RFC
/// 5958, RFC 5915). A public key has no version before its AlgorithmIdentifier.
const PKCS8_P256: &[u8] = &[
    0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04,
];
/// PKCS#8 of an Ed25519 key, likewise.
const PKCS8_ED25519: &[u8] =
    &[0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// PKCS#8 of an RSA key, likewise.
const PKCS8_RSA: &[u8] = &[
    0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05,
    0x00, 0x04,
];
/// ECPrivateKey (RFC 5915): SEQUENCE of 0x77 bytes, INTEGER 1, OCTET STRING of 32 bytes. The form of P-256 with its curve and
/// public key named; and the one inside PKCS#8, which has no curve.
const SEC1: [&[u8]; 2] =
    [&[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20], &[0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20]];
/// What PEM private keys of any kind have in common (RFC 7468, RFC 1421).
const PEM: &str = "PRIVATE KEY-----";

/// Where a needle was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub place: String,
    /// Which secret, or which form.
    pub needle: String,
}

/// What is looked for.
#[derive(Default)]
pub struct Needles {
    names: Vec<String>,
    patterns: Vec<Vec<u8>>,
}

/// Needles, ready to be found.
pub struct Sweep {
    names: Vec<String>,
    searcher: AhoCorasick,
    longest: usize,
}

impl Needles {
    /// The forms that every private key has.
    pub fn forms() -> Self {
        let mut needles = Self::default();
        let ders =
            [("PKCS#8 P-256", PKCS8_P256), ("PKCS#8 Ed25519", PKCS8_ED25519), ("PKCS#8 RSA", PKCS8_RSA)];
        for (name, der) in ders.into_iter().chain(SEC1.map(|der| ("SEC1 P-256", der))) {
            needles.add_encoded(name, der);
        }
        needles.add("PEM", PEM.as_bytes().to_vec());
        needles
    }

    /// A secret that the test knows.
    pub fn secret(&mut self, name: &str, bytes: &[u8]) {
        self.add_encoded(name, bytes);
    }

    /// Text that the test knows, as it stands.
    pub fn text(&mut self, name: &str, text: &str) {
        self.add(name, text.as_bytes().to_vec());
    }

    fn add(&mut self, name: &str, pattern: Vec<u8>) {
        self.names.push(name.to_owned());
        self.patterns.push(pattern);
    }

    fn add_encoded(&mut self, name: &str, bytes: &[u8]) {
        self.add(&format!("{name}, raw"), bytes.to_vec());
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        // Too short to mean anything in text.
        if bytes.len() < 12 {
            return;
        }
        self.add(&format!("{name}, HEX"), hex.to_uppercase().into_bytes());
        self.add(&format!("{name}, hex"), hex.into_bytes());
        let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
        self.add(&format!("{name}, numbers"), numbers.join(",").into_bytes());
        self.add(&format!("{name}, numbers with spaces"), numbers.join(", ").into_bytes());
        for offset in 0..3 {
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                self.add(&format!("{name}, base64"), inner_base64(&engine, bytes, offset));
            }
        }
    }

    pub fn ready(self) -> Result<Sweep> {
        let longest = self.patterns.iter().map(Vec::len).max().unwrap_or_default();
        let searcher = AhoCorasick::new(&self.patterns).context("the needles")?;
        Ok(Sweep { names: self.names, searcher, longest })
    }
}

/// The characters that the bytes have in base64 whatever is before and after them, when they begin `offset` bytes into
/// a group of three.
fn inner_base64(engine: &impl base64::Engine, bytes: &[u8], offset: usize) -> Vec<u8> {
    let padded = [&vec![0; offset][..], bytes].concat();
    let text = engine.encode(&padded).into_bytes();
    // A character has six bits: those that hold a bit of something else are left out.
    let (first, last) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
    text[first..last].to_vec()
}

impl Sweep {
    /// Every needle that is in the bytes, once.
    pub fn bytes(&self, place: &str, bytes: &[u8]) -> Vec<Hit> {
        let mut hits: Vec<_> = self
            .searcher
            .find_overlapping_iter(bytes)
            .map(|found| &self.names[found.pattern().as_usize()])
            .map(|needle| Hit { place: place.to_owned(), needle: needle.clone() })
            .collect();
        hits.sort();
        hits.dedup();
        hits
    }

    /// The same for a file of any size.
    pub fn file(&self, path: &Path) -> Result<Vec<Hit>> {
        use std::io::Read as _;
        let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
        let (mut hits, mut piece) = (Vec::new(), Vec::new());
        loop {
            // The end of the last piece again: a needle may lie across.
            let kept = piece.len().saturating_sub(self.longest);
            piece.drain(..kept);
            let before = piece.len();
            (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            if piece.len() == before {
                break;
            }
            hits.extend(self.bytes(&path.display().to_string(), &piece));
        }
        hits.sort();
        hits.dedup();
        Ok(hits)
    }

    /// Every file below a folder but those in `but`; the hits, and how many bytes were looked at.
    pub fn folder(&self, folder: &Path, but: &[PathBuf]) -> Result<(Vec<Hit>, u64)> {
        let (mut hits, mut bytes) = (Vec::new(), 0);
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if but.contains(&path) {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                let (more, read) = self.folder(&path, but)?;
                hits.extend(more);
                bytes += read;
            } else if meta.is_file() {
                hits.extend(self.file(&path)?);
                bytes += meta.len();
            }
        }
        Ok((hits, bytes))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn found(sweep: &Sweep, bytes: &[u8]) -> bool {
        !sweep.bytes("here", bytes).is_empty()
    }

    #[test]
    fn a_private_key_is_found_in_every_form_and_a_public_one_in_none() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let sweep = Needles::forms().ready().unwrap();
        let der = key.serialized_der();
        let standard = base64::engine::general_purpose::STANDARD;
        assert!(found(&sweep, der));
        assert!(found(&sweep, key.serialize_pem().as_bytes()));
        let scalar = &der[36..68];
        assert!(found(&sweep, &[&[0x30, 0x77, 2, 1, 1, 4, 0x20][..], scalar].concat()), "SEC1");
        for before in 0..3 {
            let inside = [&vec![b'x'; before][..], der].concat();
            assert!(found(&sweep, standard.encode(inside).as_bytes()), "base64 after {before} bytes");
        }
        assert!(found(&sweep, serde_json::to_string(der).unwrap().as_bytes()), "numbers");
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert!(!found(&sweep, &public) && !found(&sweep, key.public_key_pem().as_bytes()));
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        assert!(!found(&sweep, certificate.der()));
    }

    #[test]
    fn a_known_secret_is_found_in_every_form_and_across_pieces() {
        let secret: Vec<u8> = (0..32_u8).map(|n| n.wrapping_mul(37).wrapping_add(11)).collect();
        let mut needles = Needles::default();
        needles.secret("it", &secret);
        let sweep = needles.ready().unwrap();
        for (before, after) in [(0, 0), (1, 1), (2, 2), (5, 7)] {
            let inside = [&vec![9; before][..], &secret, &vec![8; after]].concat();
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                assert!(found(&sweep, engine.encode(&inside).as_bytes()), "{before} {after}");
            }
        }
        let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
        assert!(found(&sweep, hex.as_bytes()) && found(&sweep, hex.to_uppercase().as_bytes()));
        assert!(!found(&sweep, &secret[1..]) && !found(&sweep, &hex.as_bytes()[2..]));
        let dir = tempfile::tempdir().unwrap();
        for at in [0, PIECE_BYTES - 32, PIECE_BYTES - 10, PIECE_BYTES, PIECE_BYTES + 5] {
            let file = dir.path().join(at.to_string());
            fs::write(&file, [&vec![7; at][..], &secret, &[7; 100]].concat()).unwrap();
            assert_eq!(sweep.file(&file).unwrap().len(), 1, "at {at}");
        }
        let but = [dir.path().join("0")];
        assert_eq!(sweep.folder(dir.path(), &but).unwrap().0.len(), 4);
    }
}

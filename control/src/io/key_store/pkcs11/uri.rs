//! `pkcs11:` URIs (RFC 7512), as far as they say which token, through which module, with the PIN from which file.
//! A PIN in the URI itself is refused: arguments can be read by everybody on the host.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::io::keys;

/// Longest PIN, in bytes.
const MAX_PIN_BYTES: usize = 256;

/// A token of a module, and where its PIN is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUri {
    pub token: Option<String>,
    pub serial: Option<String>,
    pub manufacturer: Option<String>,
    pub model: Option<String>,
    pub slot_id: Option<u64>,
    pub module: PathBuf,
    pub pin_source: PathBuf,
}

/// Why text does not name a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("it does not begin with pkcs11:")]
    Scheme,
    #[error("{0:?} is not name=value")]
    Pair(String),
    #[error("{0:?} has a percent sign that encodes nothing")]
    Encoding(String),
    #[error("{0:?} is there twice")]
    Twice(String),
    #[error(
        "{0:?} is not known; token, serial, manufacturer, model and slot-id say which token, then ?module-path and pin-source"
    )]
    Unknown(String),
    #[error(
        "a PIN in an argument can be read by everybody on this host: write it to a file, 0600, and say pin-source=file:/PATH"
    )]
    PinValue,
    #[error("it does not say {0}")]
    Lacks(&'static str),
    #[error("{name} is to be an absolute path, and {value:?} is not")]
    Path { name: &'static str, value: String },
    #[error("slot-id {0:?} is not a number")]
    SlotId(String),
}

impl TokenUri {
    /// The PIN, from its file: 0600 or stricter; one line end at the end is not part of it.
    pub(super) fn read_pin(&self) -> Result<AuthPin, String> {
        let bytes = Zeroizing::new(keys::read_private(&self.pin_source).map_err(|e| e.to_string())?);
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let path = self.pin_source.display();
        if bytes.is_empty() || bytes.len() > MAX_PIN_BYTES {
            return Err(format!("{path} has no PIN of 1 to {MAX_PIN_BYTES} bytes in it"));
        }
        let pin = std::str::from_utf8(bytes).map_err(|_| format!("the PIN in {path} is not text"))?;
        Ok(AuthPin::new(pin.into()))
    }
}

impl FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("pkcs11:").ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self {
            token: None,
            serial: None,
            manufacturer: None,
            model: None,
            slot_id: None,
            module: PathBuf::new(),
            pin_source: PathBuf::new(),
        };
        for pair in path.split(';').filter(|p| !p.is_empty()) {
            let (name, value) = read_pair(pair)?;
            let slot = match name {
                "token" => &mut uri.token,
                "serial" => &mut uri.serial,
                "manufacturer" => &mut uri.manufacturer,
                "model" => &mut uri.model,
                "slot-id" => {
                    let number = value.parse().map_err(|_| UriError::SlotId(value))?;
                    if uri.slot_id.replace(number).is_some() {
                        return Err(UriError::Twice(name.to_owned()));
                    }
                    continue;
                }
                _ => return Err(UriError::Unknown(name.to_owned())),
            };
            if slot.replace(value).is_some() {
                return Err(UriError::Twice(name.to_owned()));
            }
        }
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = read_pair(pair)?;
            let (slot, name) = match name {
                "module-path" => (&mut uri.module, "module-path"),
                "pin-source" => (&mut uri.pin_source, "pin-source"),
                "pin-value" => return Err(UriError::PinValue),
                _ => return Err(UriError::Unknown(name.to_owned())),
            };
            if !slot.as_os_str().is_empty() {
                return Err(UriError::Twice(name.to_owned()));
            }
            let file = value.strip_prefix("file://").or_else(|| value.strip_prefix("file:"));
            let file = file.filter(|_| name == "pin-source").unwrap_or(&value);
            if !Path::new(file).is_absolute() {
                return Err(UriError::Path { name, value });
            }
            *slot = PathBuf::from(file);
        }
        let says_which =
            uri.token.is_some() || uri.serial.is_some() || uri.model.is_some() || uri.slot_id.is_some();
        match () {
            () if !says_which => Err(UriError::Lacks("which token (token=…)")),
            () if uri.module.as_os_str().is_empty() => Err(UriError::Lacks("which module (?module-path=…)")),
            () if uri.pin_source.as_os_str().is_empty() => {
                Err(UriError::Lacks("where the PIN is (&pin-source=file:…)"))
            }
            () => Ok(uri),
        }
    }
}

/// `name=value`, the value with its percent-encoding undone.
fn read_pair(pair: &str) -> Result<(&str, String), UriError> {
    let (name, value) = pair.split_once('=').ok_or_else(|| UriError::Pair(pair.to_owned()))?;
    let wrong = || UriError::Encoding(value.to_owned());
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(wrong)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = &rest[2..];
    }
    Ok((name, String::from_utf8(bytes).map_err(|_| wrong())?))
}

/// Which token, for people: without the module and the PIN's place.
impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("token", &self.token), ("serial", &self.serial), ("model", &self.model)];
        let named = parts.iter().filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={v}")));
        let slot = self.slot_id.map(|id| format!("slot-id={id}"));
        write!(f, "pkcs11:{}", named.chain(slot).collect::<Vec<_>>().join(";"))
    }
}

//! Name constraints of an authority: only such as path validation takes for what they mean.
//!
//! webpki compares DNS names, addresses and directory names, and lets some malformed constraints pass as if nothing
//! were constrained. An authority with a constraint that nobody here can compare is not an authority.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// Most constraints that an authority may have: each is compared with each name of what it signed.
const MAX_SUBTREES: usize = 32;

/// RFC 5280 §4.2.1.10: critical, not empty, each base well-formed. `Err` holds the rule that is broken.
pub(crate) fn sound(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    let constraints = certificate.name_constraints().map_err(|_| "its name constraints cannot be read")?;
    let Some(constraints) = constraints else { return Ok(()) };
    if !constraints.critical {
        return Err("its name constraints are not critical (RFC 5280 §4.2.1.10)");
    }
    let lists = [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees];
    let subtrees: Vec<_> = lists.into_iter().flatten().flatten().collect();
    if subtrees.is_empty() {
        return Err("its name constraints are empty (RFC 5280 §4.2.1.10)");
    }
    if subtrees.len() > MAX_SUBTREES {
        return Err("it has more than 32 name constraints");
    }
    subtrees.into_iter().try_for_each(|subtree| match &subtree.base {
        GeneralName::URI(_) => {
            Err("it constrains URI names, and nothing here compares them (X509-SVID §4.2)")
        }
        GeneralName::DNSName(name) if !is_dns_base(name) => Err("it constrains what is not a DNS name"),
        GeneralName::IPAddress(network) if !is_network(network) => Err("it constrains what is not a network"),
        GeneralName::Invalid(..) => Err("its name constraints cannot be read"),
        _ => Ok(()),
    })
}

/// A host and everything below it; empty means every host. No leading dot: that is for URIs.
fn is_dns_base(name: &str) -> bool {
    !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// An address and a mask that is ones, then zeros; IPv4 or IPv6.
fn is_network(bytes: &[u8]) -> bool {
    let (_, mask) = bytes.split_at(bytes.len() / 2);
    let ones: u32 = mask.iter().map(|b| b.leading_ones()).sum();
    let set: u32 = mask.iter().map(|b| b.count_ones()).sum();
    let first_gap = mask.iter().position(|b| *b != 0xff).unwrap_or(mask.len());
    let after_gap = mask.iter().skip(first_gap + 1).all(|b| *b == 0);
    matches!(bytes.len(), 8 | 32) && ones == set && after_gap
}

#[cfg(test)]
mod tests {
    //! Tests of constraint bases.

    use super::*;

    #[test]
    fn bases_are_well_formed() {
        assert!(is_dns_base("example.com") && is_dns_base("") && is_dns_base("_sip.Example.com"));
        assert!(!is_dns_base(".example.com") && !is_dns_base("*.example.com") && !is_dns_base("a b"));
        assert!(is_network(&[10, 0, 0, 0, 0xff, 0, 0, 0]));
        assert!(is_network(&[10, 0, 0, 0, 0xff, 0xf0, 0, 0]));
        assert!(is_network(&[0; 8]) && is_network(&[0; 32]) && is_network(&[0xff; 32]));
        for bad in [&[10, 0, 0, 0][..], &[], &[10, 0, 0, 0, 0xff, 0, 0xff, 0], &[10, 0, 0, 0, 0x0f, 0, 0, 0]]
        {
            assert!(!is_network(bad), "{bad:?}");
        }
    }
}

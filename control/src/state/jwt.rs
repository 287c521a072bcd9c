//! Commands about the keys that sign JWT-SVIDs.

use hanse_federation::Change;
use hanse_identity::bundle::MAX_JWT_AUTHORITIES;
use hanse_identity::{AuthorityState, JwtAuthority, NodeName, Timestamp};

use super::{Decision, State, already, bounded, done, not_found};
use crate::command::Refusal;

impl State {
    /// Puts a node's key into the cluster's own bundle, and takes out those that have ended: nothing that they signed
    /// is believed any more. A key that is there stays as it is; one that was retired does not come back.
    pub(super) fn jwt_authority_publish(
        &self,
        node: &NodeName,
        authority: &JwtAuthority,
        now: Timestamp,
    ) -> Decision {
        let mut nodes = self.private.nodes.values().map(|n| &n.name);
        if !nodes.clone().any(|n| n == node) {
            return Err(not_found("node", node, &mut nodes));
        }
        authority.check().map_err(|e| Refusal::Invalid(format!("JWT authority: {e}")))?;
        if !authority.names_its_key() {
            return Err(Refusal::Invalid("the key id of a JWT authority is not that of its key".to_owned()));
        }
        if authority.state != AuthorityState::Active || authority.not_after.is_none_or(|end| end <= now) {
            return Err(Refusal::Invalid(
                "a JWT authority is published active, with an end that is to come".to_owned(),
            ));
        }
        let mut bundle = self.own_bundle();
        match bundle.jwt_authorities.iter().find(|known| known.key_id == authority.key_id) {
            Some(known) if known.state == AuthorityState::Retired => {
                let key_id = &authority.key_id;
                return Err(Refusal::Precondition(format!("JWT authority {key_id} is retired for good")));
            }
            Some(_) => return already(),
            None => {}
        }
        bundle.jwt_authorities.retain(|known| known.not_after.is_none_or(|end| now < end));
        bounded("JWT authorities", bundle.jwt_authorities.len(), MAX_JWT_AUTHORITIES)?;
        bundle.jwt_authorities.push(authority.clone());
        bundle.sequence += 1;
        done(vec![Change::BundlePut(bundle)])
    }
}

//! Commands about roles: which SPIFFE ID holds which.
//!
//! An administrator's identity (`/hanse/admin/<name>`) that nobody has named has every role: so a new cluster can be
//! governed at all, and whoever holds a control node's authority can always make an administrator again. Naming it
//! restricts it to what it is given. A workload's identity has what it is given for as long as a registration of it says
//! that it is an administrator's: two people's words, and when the registration goes or lapses, so do the roles, whatever
//! certificates live. Agents, gateways and everyone of another trust domain have nothing and can be given nothing: their
//! keys are in other hands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hanse_identity::name::MemberRole;
use hanse_identity::token::Admits;
use hanse_identity::{NodeName, Registration, SpiffeId};

use super::{Decision, State, already, bounded};
use crate::command::{Answer, Refusal};
use crate::role::Role;

/// Most identities that are named in bindings.
pub const MAX_BINDINGS: usize = 1_000;
/// Longest SPIFFE ID that can hold a role, in bytes: it is in every audit row.
pub const MAX_HOLDER_BYTES: usize = 400;

/// Identities that were named, and what each holds. A named administrator may hold nothing.
pub type Bindings = BTreeMap<SpiffeId, BTreeSet<Role>>;

/// Everything.
fn every_role() -> BTreeSet<Role> {
    Role::ALL.into_iter().collect()
}

impl State {
    /// What an identity may do here. Control nodes have every role: what they forward is committed as they say.
    pub fn roles_of(&self, id: &SpiffeId) -> BTreeSet<Role> {
        if *id.trust_domain() != self.view.trust_domain {
            return BTreeSet::new();
        }
        let named = self.private.roles.get(id);
        match id.as_member() {
            Some((MemberRole::Node, _)) => every_role(),
            Some((MemberRole::Admin, _)) => named.cloned().unwrap_or_else(every_role),
            Some(_) => BTreeSet::new(),
            None => named.filter(|_| self.is_admin_workload(id)).cloned().unwrap_or_default(),
        }
    }

    /// Whether a registration of that workload says that it may act as an administrator.
    pub fn is_admin_workload(&self, id: &SpiffeId) -> bool {
        self.registrations_of(id).any(|registration| registration.admin)
    }

    /// Whether a workload was given roles, in force or not.
    fn is_named(&self, id: &SpiffeId) -> bool {
        self.private.roles.get(id).is_some_and(|roles| !roles.is_empty())
    }

    /// Whether whoever proposed this holds that role; the mesh itself (no actor) always does.
    pub(super) fn actor_has(&self, actor: &str, role: Role) -> bool {
        actor.is_empty() || actor.parse().is_ok_and(|id| self.roles_of(&id).contains(&role))
    }

    pub(super) fn role_bind(&mut self, id: &SpiffeId, roles: &BTreeSet<Role>) -> Decision {
        self.can_hold_roles(id)?;
        if roles.is_empty() {
            return Err(Refusal::Invalid("no role is named".into()));
        }
        let before = self.private.roles.get(id);
        let after: BTreeSet<Role> = before.into_iter().flatten().chain(roles).copied().collect();
        self.set_roles(id, after)
    }

    /// Of an administrator that nobody has named yet, this leaves every other role.
    pub(super) fn role_unbind(&mut self, id: &SpiffeId, roles: &BTreeSet<Role>) -> Decision {
        self.can_hold_roles(id)?;
        let before = match id.as_member() {
            Some(_) => self.roles_of(id),
            None => self.private.roles.get(id).cloned().unwrap_or_default(),
        };
        if id.as_member().is_none() && !self.private.roles.contains_key(id) {
            return Err(Refusal::NotFound { what: format!("a role binding of {id}") });
        }
        self.set_roles(id, before.difference(roles).copied().collect())
    }

    fn set_roles(&mut self, id: &SpiffeId, roles: BTreeSet<Role>) -> Decision {
        let before = self.private.roles.get(id);
        if before == Some(&roles) {
            return already();
        }
        if before.is_none() {
            bounded("identities with roles", self.private.roles.len(), MAX_BINDINGS)?;
        }
        // A workload that holds nothing is as one that was never named; an administrator is not.
        if roles.is_empty() && id.as_member().is_none() {
            self.private.roles.remove(id);
        } else {
            self.private.roles.insert(id.clone(), roles);
        }
        Ok((Answer::Done, Vec::new()))
    }

    fn can_hold_roles(&self, id: &SpiffeId) -> Result<(), Refusal> {
        let own = &self.view.trust_domain;
        if id.trust_domain() != own {
            return Err(Refusal::NotAllowed(format!(
                "{id} is not of trust domain {own}: another domain's authorities must not make administrators here"
            )));
        }
        match id.as_member() {
            Some((MemberRole::Admin, _)) => {}
            Some((role, _)) => {
                return Err(Refusal::NotAllowed(format!("{id} is a {}, it holds no roles", role.as_str())));
            }
            None if id.path().is_empty() || id.path() == "/hanse" || id.path().starts_with("/hanse/") => {
                return Err(Refusal::Invalid(format!("{id} is neither an administrator nor a workload")));
            }
            None => {}
        }
        if id.to_string().len() > MAX_HOLDER_BYTES {
            return Err(Refusal::Invalid(format!(
                "a SPIFFE ID that holds roles has at most {MAX_HOLDER_BYTES} bytes"
            )));
        }
        Ok(())
    }

    /// Who may hand out an identity that holds roles or is a nested issuer, or make it one: otherwise an operator could
    /// register itself as one.
    pub(super) fn may_register(&self, actor: &str, new: &Registration) -> Result<(), Refusal> {
        let id = &new.id;
        let why = match (self.is_named(id), self.is_nested_issuer(id)) {
            _ if self.actor_has(actor, Role::CaAdmin) => return Ok(()),
            _ if new.admin => "is to be an administrator",
            _ if new.downstream => "is to be a nested issuer",
            (true, _) => "holds roles",
            (_, true) => "is a nested issuer",
            (false, false) => return Ok(()),
        };
        Err(Refusal::NotAllowed(format!("{id} {why}: who registers it needs the role {}", Role::CaAdmin)))
    }

    /// The same for a token with which another host could take the place of an agent that hands out such an identity.
    pub(super) fn may_admit(&self, actor: &str, admits: &Admits) -> Result<(), Refusal> {
        let Admits::Agent(agent) = admits else { return Ok(()) };
        match self.holder_on(agent) {
            Some(r) if !self.actor_has(actor, Role::CaAdmin) => Err(Refusal::NotAllowed(format!(
                "{} is registered on agent {agent} and {}: who makes a token for it needs the role {}",
                r.id,
                if r.downstream { "is a nested issuer" } else { "holds roles" },
                Role::CaAdmin
            ))),
            _ => Ok(()),
        }
    }

    fn holder_on(&self, agent: &NodeName) -> Option<&Registration> {
        let mut here = self.private.registrations.values().map(Arc::as_ref).filter(|r| r.agent.covers(agent));
        here.find(|r| r.downstream || self.is_named(&r.id))
    }
}

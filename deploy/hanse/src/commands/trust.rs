//! `hanse trust`: whom this cluster trusts, and who may trust it.

use super::{Outcome, federation};
use crate::cli::{Global, TrustCommand};

pub async fn run(global: &Global, command: &TrustCommand) -> Outcome {
    match command {
        TrustCommand::Federate(wanted) => federation::federate(global, wanted).await,
        TrustCommand::Federation(command) => federation::run(global, command).await,
    }
}

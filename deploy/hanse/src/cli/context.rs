//! `hanse context` as declared.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts
    List,
}

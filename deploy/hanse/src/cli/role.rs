//! `hanse role` as declared.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Give an identity roles; an administrator that is named for the first time then has these and no others
    #[command(
        after_help = "Roles:\n  viewer            lists, shows, checks (whoever has another role may read too)\n  operator          services, policies, workloads, agents\n  ca-admin          revocations, trust, roles\n  federation-admin  other clusters, foreign trust domains\n\nExamples:\n  hanse role bind spiffe://east.example/hanse/admin/ann operator federation-admin\n  hanse role bind spiffe://east.example/ns/ops/sa/deployer operator\n  hanse workload register spiffe://east.example/ns/ops/sa/deployer --agent host-1 --selector unix:user:deployer --admin"
    )]
    Bind {
        /// SPIFFE ID of an administrator or a workload of this cluster
        id: hanse_identity::SpiffeId,
        /// viewer, operator, ca-admin, federation-admin
        #[arg(required = true)]
        roles: Vec<hanse_control::role::Role>,
    },
    /// Take roles away; an administrator that was never named keeps every other
    #[command(after_help = "Example:\n  hanse role unbind spiffe://east.example/hanse/admin/ann ca-admin")]
    Unbind {
        /// SPIFFE ID
        id: hanse_identity::SpiffeId,
        /// viewer, operator, ca-admin, federation-admin
        #[arg(required = true)]
        roles: Vec<hanse_control::role::Role>,
    },
    /// List who was given which roles
    List,
}

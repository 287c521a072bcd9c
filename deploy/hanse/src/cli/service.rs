//! `hanse service` as declared.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services, of this cluster and imported
    List,
    /// Show the failover ladder of a service
    Endpoints {
        /// NAMESPACE/NAME, or NAME with -n
        name: String,
        /// REGION/ZONE of the caller
        #[arg(long, default_value = "")]
        from: String,
    },
    /// Offer a service to joined clusters
    Export {
        /// NAMESPACE/NAME, or NAME with -n
        name: String,
        /// Only to these clusters [default: all]
        #[arg(long, value_delimiter = ',')]
        to: Vec<hanse_identity::ClusterName>,
    },
    /// Offer it no longer
    Unexport {
        /// NAMESPACE/NAME, or NAME with -n
        name: String,
    },
}

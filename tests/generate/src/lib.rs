//! Generates the Rust code of every `.proto`, without protoc. The output is in the tree; a test keeps it current.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// One run of the generator: which proto, what to make of it, where it goes.
struct Job {
    proto_dir: &'static str,
    proto: &'static str,
    /// Directory below the workspace root.
    out: &'static str,
    make: Make,
    /// Messages that another crate owns: (proto path, Rust path).
    external: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq)]
enum Make {
    Messages,
    Client,
    Server,
    Both,
}

const JOBS: &[Job] = &[
    Job {
        proto_dir: "identity/proto",
        proto: "issue.proto",
        out: "identity/src/wire",
        make: Make::Messages,
        external: &[],
    },
    Job {
        proto_dir: "identity/proto",
        proto: "issue.proto",
        out: "identity/agent/src/wire",
        make: Make::Client,
        external: &[(".hanse.issue.v1", "::hanse_identity::wire::issue")],
    },
    Job {
        proto_dir: "identity/proto",
        proto: "issue.proto",
        out: "control/src/wire",
        make: Make::Server,
        external: &[(".hanse.issue.v1", "::hanse_identity::wire::issue")],
    },
    Job {
        proto_dir: "federation/proto",
        proto: "watch.proto",
        out: "federation/src/wire",
        make: Make::Messages,
        external: &[],
    },
    Job {
        proto_dir: "federation/proto",
        proto: "watch.proto",
        out: "proxy/src/wire",
        make: Make::Client,
        external: &[(".hanse.watch.v1", "::hanse_federation::wire::watch")],
    },
    Job {
        proto_dir: "federation/proto",
        proto: "watch.proto",
        out: "control/src/wire",
        make: Make::Server,
        external: &[(".hanse.watch.v1", "::hanse_federation::wire::watch")],
    },
    Job {
        proto_dir: "control/proto",
        proto: "control.proto",
        out: "control/src/wire",
        make: Make::Both,
        external: &[],
    },
    Job {
        proto_dir: "identity/agent/proto",
        proto: "workload.proto",
        out: "identity/agent/src/wire",
        make: Make::Both,
        external: &[],
    },
];

/// Descriptors that gRPC reflection serves: the `.proto`, the directories that it and its imports are in, the file.
struct Described {
    proto: &'static str,
    proto_dirs: ProtoDirs,
    out: &'static str,
}

enum ProtoDirs {
    /// Below the workspace root.
    Ours(&'static str),
    /// Below the `proto` directory of the crate that we have Envoy's API from.
    Envoy(&'static [&'static str]),
}

const DESCRIBED: &[Described] = &[
    Described {
        proto: "workload.proto",
        proto_dirs: ProtoDirs::Ours("identity/agent/proto"),
        out: "identity/agent/src/wire/workload.binpb",
    },
    Described {
        proto: "envoy/service/secret/v3/sds.proto",
        proto_dirs: ProtoDirs::Envoy(&["data-plane-api", "googleapis", "protoc-gen-validate", "xds"]),
        out: "identity/agent/src/wire/envoy.service.secret.v3.binpb",
    },
];

/// Where cargo keeps the sources of a crate that the workspace depends on.
fn sources_of(root: &Path, package: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let found =
        packages.iter().find(|p| p["name"] == package).with_context(|| format!("no crate {package}"))?;
    let manifest = found["manifest_path"].as_str().context("a crate without manifest")?;
    Ok(Path::new(manifest).parent().context("a manifest without directory")?.to_owned())
}

/// The `.proto` and everything that it imports as a `FileDescriptorSet`, without comments.
fn describe(root: &Path, described: &Described) -> Result<Vec<u8>> {
    let dirs = match described.proto_dirs {
        ProtoDirs::Ours(dir) => vec![root.join(dir)],
        ProtoDirs::Envoy(dirs) => {
            let protos = sources_of(root, "envoy-types")?.join("proto");
            dirs.iter().map(|dir| protos.join(dir)).collect()
        }
    };
    let mut compiler = protox::Compiler::new(dirs)?;
    compiler.include_imports(true).include_source_info(false).open_file(described.proto)?;
    Ok(compiler.encode_file_descriptor_set())
}

/// Writes all generated files below `out_root`, as they lie below `root`; answers their relative paths.
pub fn generate(root: &Path, out_root: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for job in JOBS {
        let descriptors = protox::compile([job.proto], [root.join(job.proto_dir)])
            .with_context(|| format!("{} does not compile", job.proto))?;
        let package = descriptors.file.last().context("no file compiled")?.package().to_owned();
        let scratch = tempfile::tempdir()?;
        let mut builder = tonic_prost_build::configure()
            .out_dir(scratch.path())
            .build_client(matches!(job.make, Make::Client | Make::Both))
            .build_server(matches!(job.make, Make::Server | Make::Both))
            .build_transport(false)
            .emit_rerun_if_changed(false);
        for (proto, rust) in job.external {
            builder = builder.extern_path(*proto, *rust);
        }
        builder.compile_fds(descriptors)?;
        let name = if package.is_empty() { "_.rs".to_owned() } else { format!("{package}.rs") };
        let target_name = if package.is_empty() { job.proto.replace(".proto", ".rs") } else { name.clone() };
        let relative = Path::new(job.out).join(target_name);
        let target = out_root.join(&relative);
        std::fs::create_dir_all(target.parent().expect("a file below a directory"))?;
        std::fs::copy(scratch.path().join(&name), &target)
            .with_context(|| format!("generated {name} for {}", job.out))?;
        written.push(relative);
    }
    for described in DESCRIBED {
        let target = out_root.join(described.out);
        std::fs::create_dir_all(target.parent().expect("a file below a directory"))?;
        let bytes =
            describe(root, described).with_context(|| format!("{} is not described", described.proto))?;
        std::fs::write(&target, bytes)?;
        written.push(PathBuf::from(described.out));
    }
    Ok(written)
}

/// The workspace's root, from where this crate was built.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

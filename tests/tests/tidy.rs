//! The few rules that are structure, kept by tests: who may know whom, what the pure crates may not touch, that
//! every file says what it owns, that generated code is current, that documents name files that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    hanse_generate::workspace_root().canonicalize().unwrap()
}

/// Crate → crates of the house that it may depend on.
const MAY_KNOW: &[(&str, &str, &[&str])] = &[
    ("identity", "hanse-identity", &[]),
    ("identity/agent", "hanse-agent", &["hanse-identity"]),
    ("federation", "hanse-federation", &["hanse-identity"]),
    ("proxy", "hanse-proxy", &["hanse-identity", "hanse-federation"]),
    ("gateway", "hanse-gateway", &["hanse-identity", "hanse-federation", "hanse-proxy"]),
    ("control", "hanse-control", &["hanse-identity", "hanse-federation"]),
    ("deploy/kubernetes", "hanse-kubernetes", &["hanse-identity", "hanse-federation", "hanse-control"]),
    ("tests/generate", "hanse-generate", &[]),
    ("tests/fuzz", "hanse-fuzz", &["hanse-identity", "hanse-federation"]),
];

fn dependencies(folder: &str) -> BTreeMap<String, toml::Value> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let table = manifest["dependencies"].as_table().unwrap();
    table.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[test]
fn dependencies_point_one_way() {
    for (folder, name, allowed) in MAY_KNOW {
        for dependency in dependencies(folder).keys().filter(|d| d.starts_with("hanse")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn every_member_has_a_rule() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        let known = MAY_KNOW.iter().any(|(folder, ..)| *folder == member);
        // The binary and the tests may know everyone.
        assert!(known || ["deploy/hanse", "tests"].contains(&member), "{member} has no dependency rule");
    }
}

#[test]
fn the_sidecar_links_no_control_plane() {
    let known: BTreeMap<&str, &[&str]> =
        MAY_KNOW.iter().map(|(_, name, allowed)| (*name, *allowed)).collect();
    for data_plane in ["hanse-proxy", "hanse-gateway", "hanse-agent"] {
        assert!(!known[data_plane].contains(&"hanse-control"));
    }
    for name in ["proxy", "gateway", "identity/agent"] {
        for banned in ["raft", "redb", "kube"] {
            assert!(!dependencies(name).contains_key(banned), "{name} must not know {banned}");
        }
    }
}

/// What is for the demo is not for the commands: they would do for it what they do for nobody else.
#[test]
fn commands_do_not_know_the_demo() {
    let commands = root().join("deploy/hanse/src/commands");
    for file in rust_files(&commands) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("demo::"), "{} names the demo", file.display());
    }
}

#[test]
fn pure_crates_have_no_clock_socket_runtime_or_randomness() {
    const BANNED_CRATES: &[&str] =
        &["tokio", "tonic", "hyper", "kube", "mio", "socket2", "rand", "getrandom", "async-trait", "tracing"];
    const BANNED_WORDS: &[&str] = &[
        "SystemTime::now",
        "Instant::now",
        "UnixTime::now",
        "now_utc",
        "std::net::Tcp",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "std::fs",
        "std::thread",
        "thread_rng",
        "SystemRandom",
        "std::env",
        "async fn",
        ".await",
        "KeyPair::generate",
    ];
    for folder in ["identity", "federation"] {
        for dependency in dependencies(folder).keys() {
            let banned =
                BANNED_CRATES.iter().any(|b| dependency == b || dependency.starts_with(&format!("{b}-")));
            assert!(!banned, "{folder} must not depend on {dependency}");
        }
        for file in rust_files(&root().join(folder).join("src")) {
            if is_test(&file) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap();
                for word in BANNED_WORDS {
                    assert!(!line.contains(word), "{}:{}: {word}", file.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn every_file_opens_by_saying_what_it_owns() {
    for file in all_rust_files() {
        let text = fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 12, "{} opens with {first:?}", file.display());
    }
}

#[test]
fn unsafe_code_is_nowhere() {
    for file in all_rust_files() {
        let text = fs::read_to_string(&file).unwrap();
        let said = concat!("allow(un", "safe_code)");
        assert!(!text.contains(said), "{} allows it", file.display());
    }
}

#[test]
fn generated_code_is_current() {
    let fresh = tempfile::tempdir().unwrap();
    let written = hanse_generate::generate(&root(), fresh.path()).unwrap();
    assert!(written.len() >= 8, "the generator made {} files", written.len());
    for path in written {
        let ours = fs::read(root().join(&path)).unwrap_or_default();
        let theirs = fs::read(fresh.path().join(&path)).unwrap();
        assert!(ours == theirs, "{} is not current: cargo run -p hanse-generate", path.display());
    }
}

#[test]
fn documents_name_files_that_exist() {
    for document in
        ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "SECURITY.md", "CONTRIBUTING.md", "DECISIONS.md"]
    {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let path = quoted.split("::").next().unwrap();
            let looks_like_one = path.ends_with(".rs") || path.ends_with(".proto") || path.ends_with(".toml");
            if looks_like_one && path.contains('/') && !path.contains([' ', '<', '*', '{', '$']) {
                assert!(root().join(path).exists(), "{document} names {path}, which does not exist");
            }
        }
    }
}

#[test]
fn documents_name_tests_that_exist() {
    let mut tests = BTreeSet::new();
    for file in all_rust_files() {
        let text = fs::read_to_string(&file).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            let function = line.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
            match function {
                Some((name, _)) if marked => {
                    tests.insert(name.to_owned());
                    marked = false;
                }
                // Other attributes may stand between.
                _ => {
                    marked = line.starts_with("#[test]")
                        || line.starts_with("#[tokio::test")
                        || marked && line.starts_with('#')
                }
            }
        }
    }
    assert!(tests.len() > 500, "{} tests were found", tests.len());
    let mut cited = 0;
    for document in ["SECURITY.md", "DECISIONS.md", "SPECIFICATION.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let words = name.split('_').count();
            let looks_like_one =
                words > 3 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            // Metrics have the name of the house.
            if looks_like_one && !name.starts_with("hanse_") {
                assert!(tests.contains(name), "{document} names the test {name}, which does not exist");
                cited += 1;
            }
        }
    }
    assert!(cited > 30, "{cited} tests are cited");
}

#[test]
fn every_example_is_applied_by_a_test() {
    let tests = all_rust_files().into_iter().filter(|file| is_test(file));
    let texts: Vec<String> = tests.map(|file| fs::read_to_string(file).unwrap()).collect();
    for example in fs::read_dir(root().join("deploy/examples")).unwrap() {
        let file = example.unwrap().file_name().into_string().unwrap();
        let name = file.strip_suffix(".yaml").expect("examples are YAML");
        let by_name = format!("example(\"{name}\")");
        let applied = texts.iter().any(|text| text.contains(&by_name) || text.contains(&format!("/{file}")));
        assert!(applied, "{file} is named by no test: an example that nobody applies is not known to work");
    }
}

#[test]
fn architecture_is_short_enough_to_read() {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines <= 300, "ARCHITECTURE.md has {lines} lines");
}

fn is_test(file: &Path) -> bool {
    // A fixture is compiled for tests only.
    file.components().any(|c| c.as_os_str() == "tests")
        || file.ends_with("tests.rs")
        || file.ends_with("fixture.rs")
}

fn all_rust_files() -> Vec<PathBuf> {
    let folders = ["identity", "federation", "proxy", "gateway", "control", "deploy", "tests"];
    let files = folders.iter().flat_map(|folder| rust_files(&root().join(folder)));
    // Generated files say so in their own first line.
    files.filter(|f| !f.components().any(|c| c.as_os_str() == "wire")).collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

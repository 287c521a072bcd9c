//! `hanse policy`: documents in, diagnostics or effects out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hanse_control::admin::{
    PolicyAction, PolicyApplyReply, PolicyApplyRequest, PolicyDeleteRequest, PolicyGetRequest,
    PolicyValidateRequest,
};
use hanse_federation::policy::{Diagnostic, PolicyKey, PolicyKind, PolicySpec, Severity, parse};
use hanse_identity::jwt::user::JwkSet;
use serde_json::json;

use super::{Outcome, qualified};
use crate::cli::{Global, PolicyCommand};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Format, Listing};

pub async fn run(global: &Global, command: &PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Apply { files, dry_run } => apply(global, files, *dry_run).await,
        PolicyCommand::Get { kind, name } => get(global, *kind, name.as_deref()).await,
        PolicyCommand::Delete { kind, names } => delete(global, *kind, names).await,
        PolicyCommand::Validate { files, offline } => validate(global, files, *offline).await,
    }
}

/// Applies one text; the code that the demo uses too.
pub async fn apply_text(
    connection: &Connection,
    file: &str,
    text: &str,
    dry_run: bool,
) -> Result<PolicyApplyReply, Failure> {
    let files = files_beside(file, text)?;
    let request = PolicyApplyRequest { file: file.to_owned(), text: text.to_owned(), dry_run, files };
    connection.call(&request).await
}

/// Files, and the YAML and JSON files of directories, with their texts.
pub fn texts(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Failure> {
    let mut texts = Vec::new();
    for path in paths {
        if !path.is_dir() {
            texts.push((path.display().to_string(), super::read(path)?));
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| Failure::unreadable(path, e))?;
        let mut files: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|p| is_document(p)).collect();
        files.sort();
        for file in files {
            texts.push((file.display().to_string(), super::read(&file)?));
        }
    }
    Ok(texts)
}

fn is_document(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// What `jwksFile`s of a text name, read from beside it. Key sets only: no document of somebody else's gets another file of
/// this machine sent away.
fn files_beside(file: &str, text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut files = BTreeMap::new();
    // What cannot be read, the control node says in full.
    for (document, _) in parse(file, text).unwrap_or_default() {
        let PolicySpec::RequestAuthentication(spec) = document.spec else { continue };
        for name in spec.jwt_rules.into_iter().filter_map(|rule| rule.jwks_file) {
            let path = Path::new(file).with_file_name("").join(&name);
            let content = super::read(&path)?;
            if let Err(why) = JwkSet::parse(&content) {
                let message = format!("jwksFile {}: {why}", path.display());
                return Err(Failure::new(Exit::No, "E4005", message).fix("name the issuer's JWK set"));
            }
            files.insert(name, content);
        }
    }
    Ok(files)
}

async fn apply(global: &Global, files: &[PathBuf], dry_run: bool) -> Outcome {
    let connection = Connection::open(global)?;
    let mut diagnostics = Vec::new();
    let mut items = Vec::new();
    let mut refused = false;
    let mut meta = json!({});
    for (file, text) in texts(files)? {
        let reply = apply_text(&connection, &file, &text, dry_run).await?;
        refused |= has_error(&reply.diagnostics);
        meta = serde_json::to_value(&reply.meta).unwrap_or_default();
        items.extend(reply.items);
        diagnostics.extend(reply.diagnostics);
        if refused {
            break;
        }
    }
    print_diagnostics(global, &diagnostics);
    let titles = ["POLICY", "ACTION"];
    Listing::of("PolicyApply", &meta, &items, &titles, |effect| {
        let action = match effect.action {
            PolicyAction::Created => "created",
            PolicyAction::Changed => "changed",
            PolicyAction::Unchanged => "unchanged",
        };
        let action = if refused { "refused" } else { action };
        let suffix = if dry_run { " (dry run)" } else { "" };
        [format!("{}/{}", effect.key.kind, effect.key.name), format!("{action}{suffix}")]
    })
    .more("applied", &(!refused && !dry_run))
    .more("diagnostics", &diagnostics)
    .print(global.output);
    Ok(if refused { Exit::No } else { Exit::Done })
}

async fn get(global: &Global, kind: Option<PolicyKind>, name: Option<&str>) -> Outcome {
    let name = name.map(|n| qualified(global, n)).transpose()?;
    let wanted = name.clone();
    let policies = Connection::open(global)?.call(&PolicyGetRequest { kind, name }).await?;
    if let Some(name) = wanted
        && policies.items.is_empty()
    {
        let kind = kind.map_or("policy".to_owned(), |k| k.to_string());
        return Err(Failure::new(Exit::NotFound, "E4001", format!("there is no {kind} {name}"))
            .fix("hanse policy get lists what there is"));
    }
    if global.output == Format::Yaml {
        // As their authors would write them: what `policy apply` takes.
        let documents: Vec<String> = policies.items.iter().map(|i| output::yaml(&i.document)).collect();
        output::data(&documents.join("---\n"));
        return Ok(Exit::Done);
    }
    Listing::of("PolicyList", &policies.meta, &policies.items, &["POLICY", "AGE"], |item| {
        [format!("{}/{}", item.key.kind, item.key.name), output::age(item.created)]
    })
    .warnings(&policies.warnings)
    .print(global.output);
    Ok(Exit::Done)
}

async fn delete(global: &Global, kind: PolicyKind, names: &[String]) -> Outcome {
    let names = names.iter().map(|n| qualified(global, n)).collect::<Result<Vec<_>, _>>()?;
    let keys: Vec<PolicyKey> = names.into_iter().map(|name| PolicyKey { kind, name }).collect();
    let list: Vec<String> = keys.iter().map(|k| format!("{}/{}", k.kind, k.name)).collect();
    let written = Connection::open(global)?.call(&PolicyDeleteRequest { keys }).await?;
    super::service::report(global, &written, &format!("{} deleted", list.join(", ")));
    Ok(Exit::Done)
}

async fn validate(global: &Global, files: &[PathBuf], offline: bool) -> Outcome {
    let mut diagnostics = Vec::new();
    let mut documents = 0;
    let texts = texts(files)?;
    let count = texts.len();
    for (file, text) in texts {
        if offline {
            match parse(&file, &text) {
                Ok(read) => documents += read.len(),
                Err(found) => diagnostics.extend(found),
            }
        } else {
            let files = files_beside(&file, &text)?;
            let reply = Connection::open(global)?.call(&PolicyValidateRequest { file, text, files }).await?;
            documents += reply.documents;
            diagnostics.extend(reply.diagnostics);
        }
    }
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    let ok = errors == 0;
    let body = json!({ "ok": ok, "documents": documents, "diagnostics": diagnostics });
    if global.output.is_json() || global.output == Format::Yaml {
        output::print(global.output, "PolicyValidate", &body, "");
    } else {
        diagnostics.iter().for_each(|d| output::data(&line(d)));
        let warnings = diagnostics.len() - errors;
        output::data(&format!(
            "{}, {} in {}, {}\n",
            counted(errors, "error"),
            counted(warnings, "warning"),
            counted(count, "file"),
            counted(documents, "document")
        ));
    }
    Ok(if ok { Exit::Done } else { Exit::No })
}

fn has_error(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|d| d.severity == Severity::Error)
}

pub fn print_diagnostics(global: &Global, diagnostics: &[Diagnostic]) {
    if !global.output.is_json() {
        diagnostics.iter().for_each(|d| eprint!("{}", line(d)));
    }
}

fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// `file:line:column: error[E4107]: message`, and the fix under it.
fn line(diagnostic: &Diagnostic) -> String {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = match (diagnostic.line, diagnostic.column) {
        (0, _) => diagnostic.file.clone(),
        (line, 0) => format!("{}:{line}", diagnostic.file),
        (line, column) => format!("{}:{line}:{column}", diagnostic.file),
    };
    let mut text = format!("{place}: {severity}[{}]: {}\n", diagnostic.code, diagnostic.message);
    if !diagnostic.path.is_empty() {
        text.push_str(&format!("   = at   {}\n", diagnostic.path));
    }
    if !diagnostic.fix.is_empty() {
        text.push_str(&format!("   = fix  {}\n", diagnostic.fix));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[test]
    fn only_key_sets_are_sent_along_and_from_beside_the_document() {
        let folder = tempfile::tempdir().unwrap();
        let document = folder.path().join("a.yaml").display().to_string();
        let text = |file: &str| {
            format!(
                "apiVersion: hanse.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{ name: a, namespace: shop }}\nspec:\n  \
                 targetRefs: [{{ kind: Service, name: reviews }}]\n  jwtRules: [{{ issuer: i, jwksFile: {file} }}]\n"
            )
        };
        std::fs::write(folder.path().join("keys.json"), KEYS).unwrap();
        let sent = files_beside(&document, &text("keys.json")).unwrap();
        assert_eq!(sent, BTreeMap::from([("keys.json".to_owned(), KEYS.to_owned())]));
        std::fs::write(folder.path().join("other"), "hunter2").unwrap();
        let refused = files_beside(&document, &text("other")).unwrap_err();
        assert_eq!(refused.code, "E4005");
        assert!(!refused.message.contains("hunter2"), "{}", refused.message);
        assert!(files_beside(&document, &text("nowhere.json")).is_err());
        assert!(files_beside(&document, "kind: nothing").unwrap().is_empty());
    }

    #[test]
    fn a_diagnostic_names_its_place_and_its_fix() {
        let diagnostic = Diagnostic {
            code: "E4107".into(),
            severity: Severity::Error,
            message: "no cluster exports shop/reviews-v9".into(),
            file: "canary.yaml".into(),
            line: 19,
            column: 13,
            fix: "did you mean reviews-v2?".into(),
            path: "spec.rules[0]".into(),
        };
        assert_eq!(
            line(&diagnostic),
            "canary.yaml:19:13: error[E4107]: no cluster exports shop/reviews-v9\n   = at   spec.rules[0]\n   = fix  did you mean reviews-v2?\n"
        );
        assert!(line(&Diagnostic { line: 0, ..diagnostic }).starts_with("canary.yaml: error"));
    }
}

//! `hanse context`: which clusters this command line can talk to.

use serde_json::json;

use super::Outcome;
use crate::cli::{ContextCommand, Global};
use crate::context::{Configuration, path};
use crate::errors::Exit;
use crate::output::Listing;

pub fn run(global: &Global, command: &ContextCommand) -> Outcome {
    match command {
        ContextCommand::List => list(global),
    }
}

fn list(global: &Global) -> Outcome {
    let path = path();
    let configuration = match &path {
        Some(path) => Configuration::read(path)?,
        None => Configuration::default(),
    };
    let chosen = configuration.choose(global.context.as_deref()).ok().map(|(name, _)| name.to_owned());
    let items: Vec<_> = configuration
        .contexts
        .iter()
        .map(|(name, context)| {
            json!({ "name": name, "credential": context.credential, "current": chosen.as_ref() == Some(name) })
        })
        .collect();
    let meta = json!({ "file": path });
    let text = |item: &serde_json::Value, member: &str| item[member].as_str().unwrap_or_default().to_owned();
    Listing::of("ContextList", &meta, &items, &["NAME", "CURRENT", "CREDENTIAL"], |item| {
        let current = if item["current"] == true { "yes" } else { "" };
        [text(item, "name"), current.to_owned(), text(item, "credential")]
    })
    .print(global.output);
    Ok(Exit::Done)
}

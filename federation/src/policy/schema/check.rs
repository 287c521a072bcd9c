//! The walk over a document's tree: everything that is wrong with its shape.

use super::{Field, Need, Problem, Shape};
use crate::policy::tree::{Content, Entry, Node};
use crate::policy::value::near;

/// Everything that is wrong with the shape of `node`, which is at `path`.
pub fn check(shape: &Shape, node: &Node, path: &str, problems: &mut Vec<Problem>) {
    let mut report = |code, message: String, fix: String| {
        problems.push(Problem { code, place: node.place, path: path.to_owned(), message, fix });
    };
    match (shape, &node.content) {
        (Shape::Any, _) | (Shape::Truth, Content::Bool(_)) => {}
        (Shape::Object(fields), Content::Object(entries)) => {
            check_object(fields, node, entries, path, problems)
        }
        (Shape::Map { key, of }, Content::Object(entries)) => {
            for entry in entries {
                let path = format!("{path}.{}", entry.key);
                if let Err(message) = key(&entry.key) {
                    let place = entry.key_place;
                    problems.push(Problem {
                        code: "E4005",
                        place,
                        path: path.clone(),
                        message,
                        fix: String::new(),
                    });
                }
                check(of, &entry.value, &path, problems);
            }
        }
        (Shape::List { of, at_least, at_most }, Content::List(items)) => {
            if items.len() < *at_least {
                report("E4004", format!("{} needs at least {at_least}", last(path)), String::new());
            }
            if items.len() > *at_most {
                let message = format!("{} has {}; at most {at_most} are allowed", last(path), items.len());
                report("E4005", message, "split it into several documents".to_owned());
                return;
            }
            for (index, item) in items.iter().enumerate() {
                check(of, item, &format!("{path}[{index}]"), problems);
            }
        }
        (Shape::Text(test), Content::Text(text)) => {
            if let Err(message) = test(text) {
                report("E4005", format!("{}: {message}", last(path)), String::new());
            }
        }
        (Shape::TextOrInteger { integer, .. }, Content::Integer(_)) => check(integer, node, path, problems),
        (Shape::TextOrInteger { text, .. }, _) => check(text, node, path, problems),
        (Shape::OneOf(known), Content::Text(text)) if known.contains(&text.as_str()) => {}
        (Shape::OneOf(known), Content::Text(text)) => {
            let fix = match near(text, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("write one of: {}", quote_empty(known)),
            };
            report("E4005", format!("{} cannot be {:?}", last(path), shortened(text)), fix);
        }
        (Shape::Integer { from, to }, Content::Integer(number)) => {
            if number < from || number > to {
                report(
                    "E4005",
                    format!("{} is {number}; it has to be {from} to {to}", last(path)),
                    String::new(),
                );
            }
        }
        (wanted, _) => {
            let (wanted, fix) = wanted.describe(node);
            report("E4002", format!("{} has to be {wanted}, found {}", last(path), node.what()), fix);
        }
    }
}

fn check_object(fields: &[Field], node: &Node, entries: &[Entry], path: &str, problems: &mut Vec<Problem>) {
    let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for entry in entries {
        let path = inside(&entry.key);
        let Some(field) = fields.iter().find(|field| field.name == entry.key) else {
            problems.push(unknown(fields, entry, path));
            continue;
        };
        if let Need::NotYet(instead) = field.need {
            problems.push(Problem {
                code: "E4125",
                place: entry.key_place,
                path,
                message: format!("{} is not supported by this version", entry.key),
                fix: instead.to_owned(),
            });
        } else if !entry.value.is_null() {
            check(field.shape, &entry.value, &path, problems);
        }
    }
    // A slip of the pen is one mistake, not an unknown field and a missing one.
    let misspelt = |name: &str| entries.iter().any(|entry| suggestion(fields, &entry.key) == Some(name));
    for field in fields.iter().filter(|field| matches!(field.need, Need::Required)) {
        if node.get(field.name).is_none_or(Node::is_null) && !misspelt(field.name) {
            problems.push(Problem {
                code: "E4004",
                place: node.place,
                path: inside(field.name),
                message: match path {
                    "" => format!("the document has no {}", field.name),
                    _ => format!("{} has no {}", last(path), field.name),
                },
                fix: format!("add {}", field.name),
            });
        }
    }
}

fn suggestion(fields: &[Field], key: &str) -> Option<&'static str> {
    near(key, fields.iter().map(|field| field.name))
}

fn unknown(fields: &[Field], entry: &Entry, path: String) -> Problem {
    let known = || fields.iter().filter(|f| !matches!(f.need, Need::NotYet(_))).map(|f| f.name);
    let fix = match suggestion(fields, &entry.key) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known here: {}", known().collect::<Vec<_>>().join(", ")),
    };
    let message = format!("unknown field {:?}", shortened(&entry.key));
    Problem { code: "E4001", place: entry.key_place, path, message, fix }
}

impl Shape {
    /// What is wanted, and how to mend `node` where that is plain to see.
    fn describe(&self, node: &Node) -> (&'static str, String) {
        let scalar = match &node.content {
            Content::Bool(value) => Some(value.to_string()),
            Content::Integer(number) => Some(number.to_string()),
            Content::Float(number) => Some(number.to_string()),
            _ => None,
        };
        let quoted = scalar.map(|text| format!("put it in quotes: \"{text}\"")).unwrap_or_default();
        match self {
            Self::Object(_) | Self::Map { .. } => ("an object", String::new()),
            Self::List { .. } => ("a list", "put a - before it".to_owned()),
            Self::Text(test) if test(&probe(node, "%")).is_ok() && test(&probe(node, "")).is_err() => {
                ("a percentage", format!("write {}", probe(node, "%")))
            }
            Self::Text(test) if test(&probe(node, "s")).is_ok() && test(&probe(node, "")).is_err() => {
                ("a duration", format!("write {}, or with another unit: ms, m, h", probe(node, "s")))
            }
            Self::Text(_) | Self::OneOf(_) | Self::TextOrInteger { .. } => ("a text", quoted),
            Self::Integer { .. } => ("a whole number", String::new()),
            Self::Truth => ("true or false", String::new()),
            Self::Any => ("anything", String::new()),
        }
    }
}

/// A number with a unit behind it, to see whether only the unit is missing.
fn probe(node: &Node, unit: &str) -> String {
    match &node.content {
        Content::Integer(number) => format!("{number}{unit}"),
        _ => String::new(),
    }
}

fn last(path: &str) -> &str {
    match path.rsplit('.').next() {
        Some("") | None => "the document",
        Some(field) => field,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn quote_empty(known: &[&str]) -> String {
    known.iter().map(|k| if k.is_empty() { "\"\"" } else { k }).collect::<Vec<_>>().join(", ")
}

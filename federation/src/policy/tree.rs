//! A YAML or JSON text as a tree in which every key and value knows its place.
//!
//! Bounded before anything is built: bytes, documents, nodes, depth, and what aliases may expand to. A document that
//! is not YAML does not hide what is wrong with the next one.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Options, Spanned};

/// Largest text that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Most documents in one text.
pub const MAX_DOCUMENTS: usize = 1000;
/// Most nodes of one document, aliases expanded.
const MAX_NODES: usize = 100_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// 1-based; 0 = unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub place: Place,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub key_place: Place,
    pub value: Node,
}

/// A document that cannot be read as YAML or JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub place: Place,
    pub message: String,
}

/// Every document of a text, in order, or why it is none. Empty documents are passed over.
pub fn read(text: &str) -> Vec<Result<Node, Unreadable>> {
    let refused = |message: String| vec![Err(Unreadable { place: Place::default(), message })];
    if text.len() > MAX_TEXT_BYTES {
        return refused(format!("the file has {} bytes; at most {MAX_TEXT_BYTES} are read", text.len()));
    }
    let mut documents = Vec::new();
    let mut rest = text;
    let mut lines_before = 0;
    while !rest.is_empty() {
        let mut broken = None;
        let mut reader = rest.as_bytes();
        for document in serde_saphyr::read_with_options::<_, Node>(&mut reader, options()) {
            if documents.len() == MAX_DOCUMENTS {
                documents.push(Err(Unreadable {
                    place: document.as_ref().map_or_else(place_of, |node| node.place).below(lines_before),
                    message: format!("the file has more than {MAX_DOCUMENTS} documents"),
                }));
                return documents;
            }
            match document {
                Ok(mut node) => {
                    node.shift(lines_before);
                    documents.push(Ok(node));
                }
                Err(error) => {
                    let place = place_of(&error);
                    documents.push(Err(Unreadable {
                        place: place.below(lines_before),
                        message: message_of(&error),
                    }));
                    broken = Some(place.line);
                    break;
                }
            }
        }
        // After a broken document go on at the next `---` below the place where it broke.
        let Some(next) = broken.and_then(|line| next_document(rest, line)) else { break };
        lines_before += rest[..next].matches('\n').count();
        rest = &rest[next..];
    }
    documents
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(MAX_TEXT_BYTES),
            max_documents: MAX_DOCUMENTS + 1,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_depth: MAX_DEPTH,
            max_aliases: 1000,
            max_anchors: 1000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 1000,
        },
    }
}

/// Where the first document starts that begins after line `line` (1-based) of `text`.
fn next_document(text: &str, line: usize) -> Option<usize> {
    let mut offset = 0;
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let starts = content
            .strip_prefix("---")
            .is_some_and(|after| after.trim_end().is_empty() || after.starts_with([' ', '\t']));
        if starts && index + 1 > line.max(1) {
            return Some(offset);
        }
        offset += content.len();
    }
    None
}

fn place_of(error: &Error) -> Place {
    error.location().map(Place::from).unwrap_or_default()
}

fn message_of(error: &Error) -> String {
    // The message repeats the place, which the diagnostic has already.
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    match first.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, message)) => message.to_owned(),
        None => first.split(" at line ").next().unwrap_or(first).to_owned(),
    }
}

impl Place {
    fn below(self, lines: usize) -> Self {
        if self.line == 0 { self } else { Self { line: self.line + lines, ..self } }
    }
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self { line: number(location.line()), column: number(location.column()) }
    }
}

impl Node {
    fn shift(&mut self, lines: usize) {
        if lines == 0 {
            return;
        }
        self.place = self.place.below(lines);
        match &mut self.content {
            Content::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Content::Object(entries) => entries.iter_mut().for_each(|entry| {
                entry.key_place = entry.key_place.below(lines);
                entry.value.shift(lines);
            }),
            _ => {}
        }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        let Content::Object(entries) = &self.content else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.content, Content::Null)
    }

    /// What it is, for "found …".
    pub fn what(&self) -> String {
        match &self.content {
            Content::Null => "nothing".to_owned(),
            Content::Bool(value) => format!("the truth value {value}"),
            Content::Integer(number) => format!("the number {number}"),
            Content::Float(number) => format!("the number {number}"),
            Content::Text(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
            Content::List(_) => "a list".to_owned(),
            Content::Object(_) => "an object".to_owned(),
        }
    }

    /// The place of the field at `path` (`spec.rules[1].name`), or of the deepest part of it that was written.
    pub fn find(&self, path: &str) -> Place {
        let mut place = self.place;
        let mut node = self;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let found = match (&node.content, step.strip_suffix(']')) {
                (Content::List(items), Some(index)) => {
                    index.parse::<usize>().ok().and_then(|i| items.get(i)).map(|item| (item.place, item))
                }
                (Content::Object(entries), None) => {
                    entries.iter().find(|e| e.key == step).map(|e| (e.value.place, &e.value))
                }
                _ => None,
            };
            let Some((at, next)) = found else { break };
            (place, node) = (at, next);
        }
        place
    }

    /// Plain JSON; nulls in objects are left out, as if not written.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Integer(number) => match i64::try_from(*number) {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(number.to_string()),
            },
            Content::Float(number) => Value::from(*number),
            Content::Text(text) => Value::from(text.as_str()),
            Content::List(items) => items.iter().map(Node::to_json).collect(),
            Content::Object(entries) => entries
                .iter()
                .filter(|entry| !entry.value.is_null())
                .map(|entry| (entry.key.clone(), entry.value.to_json()))
                .collect(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { place: spanned.referenced.into(), content: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Content, E> {
        Ok(Content::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Content, E> {
        Ok(Content::Integer(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Content, E> {
        Ok(Content::Integer(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Content, E> {
        Ok(Content::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut object = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let value = entries.next_value()?;
            object.push(Entry { key: key.value, key_place: key.referenced.into(), value });
        }
        Ok(Content::Object(object))
    }
}

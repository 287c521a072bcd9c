//! What goes to stdout: tables for people, one JSON envelope for programs. stderr is for talk.

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

/// Version of the JSON contract; within it documents only grow.
pub const API_VERSION: &str = "cli.hanse.dev/v1";

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    #[value(alias = "text")]
    Table,
    /// Table with every column
    Wide,
    /// One document: apiVersion, kind, meta, items, warnings
    Json,
    /// One item per line
    Jsonl,
    /// The document as YAML
    Yaml,
    /// Names only, one per line
    Name,
}

impl Format {
    /// Whether a program reads it.
    pub fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// A list as a command answers it, before the format is known.
#[derive(Debug, Default)]
pub struct Listing {
    pub kind: &'static str,
    pub meta: Value,
    pub items: Vec<Value>,
    pub warnings: Vec<Value>,
    /// Further members of the envelope.
    pub more: serde_json::Map<String, Value>,
    pub table: Table,
    /// Lines under the table.
    pub notes: Vec<String>,
}

/// Columns and rows; the first column is the name.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Column {
    title: &'static str,
    wide_only: bool,
}

impl Table {
    /// Columns by title; one that starts with `+` is shown with `-o wide` only.
    pub fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| Column {
            title: title.strip_prefix('+').unwrap_or(title),
            wide_only: title.starts_with('+'),
        };
        Self { columns: titles.iter().map(column).collect(), rows: Vec::new() }
    }

    pub fn row<Cell: ToString>(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().map(|c| c.to_string()).collect());
    }

    /// The table with aligned columns, two spaces between them.
    pub fn render(&self, wide: bool) -> String {
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|i| wide || !self.columns[*i].wide_only).collect();
        let cell = |row: &'_ Vec<String>, i: usize| match row.get(i).map(String::as_str) {
            None | Some("") => "-".to_owned(),
            Some(text) => text.to_owned(),
        };
        let width = |i: usize| {
            let cells = self.rows.iter().map(|r| cell(r, i).chars().count());
            cells.chain([self.columns[i].title.chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = shown.iter().map(|i| width(*i)).collect();
        let line = |cells: Vec<String>| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
            format!("{}\n", padded.join("  ").trim_end())
        };
        let mut text = line(shown.iter().map(|i| self.columns[*i].title.to_owned()).collect());
        for row in &self.rows {
            text.push_str(&line(shown.iter().map(|i| cell(row, *i)).collect()));
        }
        text
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().filter_map(|r| r.first()).map(String::as_str)
    }
}

impl Listing {
    /// From items and what each becomes as a row.
    pub fn of<T: Serialize, const N: usize>(
        kind: &'static str,
        meta: &impl Serialize,
        items: &[T],
        titles: &[&'static str],
        row: impl Fn(&T) -> [String; N],
    ) -> Self {
        let mut table = Table::new(titles);
        items.iter().for_each(|item| table.row(row(item)));
        let mut meta = value(meta);
        // Control nodes count milliseconds; the contract of the command line has times in RFC 3339.
        if let Some(at) = meta.get("observedAt").and_then(Value::as_u64) {
            meta["observedAt"] = Value::String(hanse_identity::Timestamp(at).to_string());
        }
        Self { kind, meta, items: items.iter().map(value).collect(), table, ..Self::default() }
    }

    pub fn warnings(mut self, warnings: &[impl Serialize]) -> Self {
        self.warnings = warnings.iter().map(value).collect();
        self
    }

    pub fn more(mut self, name: &str, member: &impl Serialize) -> Self {
        self.more.insert(name.to_owned(), value(member));
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The whole document.
    pub fn envelope(&self) -> Value {
        let mut envelope = json!({
            "apiVersion": API_VERSION, "kind": self.kind, "meta": self.meta,
            "items": self.items, "warnings": self.warnings,
        });
        if let Value::Object(members) = &mut envelope {
            members.extend(self.more.clone());
        }
        envelope
    }

    /// Writes it to stdout in that format; warnings of a table go to stderr.
    pub fn print(&self, format: Format) {
        match format {
            Format::Json => data(&pretty(&self.envelope())),
            Format::Jsonl => self.items.iter().for_each(|item| data(&format!("{item}\n"))),
            Format::Yaml => data(&yaml(&self.envelope())),
            Format::Name => self.table.names().for_each(|name| data(&format!("{name}\n"))),
            Format::Table | Format::Wide => {
                data(&self.table.render(format == Format::Wide));
                self.notes.iter().for_each(|note| data(&format!("{note}\n")));
                for warning in &self.warnings {
                    let text = |name: &str| warning[name].as_str().unwrap_or_default().to_owned();
                    eprintln!("warning {} {}", text("code"), text("message"));
                }
            }
        }
    }
}

/// One document that is no list.
pub fn document(kind: &'static str, body: &impl Serialize) -> Value {
    let mut document = json!({ "apiVersion": API_VERSION, "kind": kind });
    match (value(body), &mut document) {
        (Value::Object(body), Value::Object(members)) => members.extend(body),
        (other, Value::Object(members)) => {
            members.insert("value".to_owned(), other);
        }
        _ => {}
    }
    document
}

/// Prints `text` for people, or the document for programs.
pub fn print(format: Format, kind: &'static str, body: &impl Serialize, text: &str) {
    match format {
        Format::Json => data(&pretty(&document(kind, body))),
        Format::Jsonl => data(&format!("{}\n", document(kind, body))),
        Format::Yaml => data(&yaml(&document(kind, body))),
        Format::Table | Format::Wide | Format::Name => data(text),
    }
}

/// Writes to stdout; a reader that has gone away ends the program as quietly as `head` expects.
pub fn data(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn value(body: &impl Serialize) -> Value {
    serde_json::to_value(body).expect("the CLI's documents have string keys and no failing serialisers")
}

fn pretty(document: &Value) -> String {
    format!("{document:#}\n")
}

/// The document as YAML.
pub fn yaml(document: &Value) -> String {
    serde_saphyr::to_string(document).expect("a JSON document can be written as YAML")
}

/// `3m`, `22h`: how long, in the one or two units that matter.
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{}.{}s", seconds, milliseconds % 1000 / 100),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago, seen from now.
pub fn age(then: hanse_identity::Timestamp) -> String {
    duration(crate::now().since(then).as_millis() as u64)
}

/// How long until then; `expired` if it has passed.
pub fn left(then: hanse_identity::Timestamp) -> String {
    match then.left(crate::now()).as_millis() as u64 {
        0 => "expired".to_owned(),
        milliseconds => duration(milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_wide_columns_are_kept_for_wide() {
        let mut table = Table::new(&["NAME", "+ID", "STATE"]);
        table.row(["a", "1", "ok"]);
        table.row(["long-name", "2", ""]);
        assert_eq!(table.render(false), "NAME       STATE\na          ok\nlong-name  -\n");
        assert_eq!(table.render(true), "NAME       ID  STATE\na          1   ok\nlong-name  2   -\n");
    }

    #[test]
    fn the_envelope_has_the_members_of_the_contract() {
        let listing = Listing::of("XList", &json!({"cluster": "east"}), &[json!({"a": 1})], &["A"], |item| {
            [item["a"].to_string()]
        })
        .more("quorum", &3);
        let envelope = listing.envelope();
        assert_eq!(envelope["apiVersion"], API_VERSION);
        assert_eq!(envelope["kind"], "XList");
        assert_eq!(envelope["meta"]["cluster"], "east");
        assert_eq!(envelope["items"][0]["a"], 1);
        assert_eq!(envelope["warnings"], json!([]));
        assert_eq!(envelope["quorum"], 3);
    }

    #[test]
    fn durations_are_short() {
        for (milliseconds, text) in
            [(12, "12ms"), (1900, "1.9s"), (61_000, "1m"), (7_200_000, "2h"), (200_000_000, "2d")]
        {
            assert_eq!(duration(milliseconds), text);
        }
    }
}
